"""One answer while it is generated: its text piece by piece, its stages timed, and the answer at its end."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from .answer import parse_answer
from .constrain import AnswerForm
from .errors import Interrupted, MedVLMError
from .generate import Token
from .lookup import PromptLookup
from .options import margin
from .processor import Request
from .result import Answer, Timings


class Clock:
    """Marks the ends of stages; `seconds` of a stage are those since the mark before, of all its marks together."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def mark(self, stage: str) -> None:
        """End a stage now, or a part of it."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now


@dataclass
class Progress:
    """What is noted about an answer while it is generated.

    clock: marks of "preprocess", "vision" and "prefill". cached_tokens: how much of the prompt was in the cache.
    form and lookup: what watched over its form and what drafted it, where something did. graph_seconds: the seconds
    spent in onnxruntime's decoder so far.
    """

    clock: Clock
    cached_tokens: int = 0
    form: AnswerForm | None = None
    lookup: PromptLookup | None = None
    graph_seconds: Callable[[], float] = lambda: 0.0


class Transcript:
    """One answer while it is generated: the tokens so far, and what `progress` notes of how they came to be."""

    def __init__(self, request: Request, *, load_s: float, preprocess_s: float) -> None:
        """Start the clock. preprocess_s: the seconds that were spent on `request` before."""
        self.progress = Progress(Clock())
        self._request, self._load_s, self._preprocess_s = request, load_s, preprocess_s
        self._tokens: list[Token] = []
        self._graph_s = 0.0
        self._started = time.perf_counter()
        # When each token came, in seconds on time.perf_counter's clock.
        self.moments: list[float] = []

    def add(self, token: Token) -> None:
        """Append a token, which is the last if it has a reason to end."""
        if not self._tokens:
            self.progress.clock.mark("first")
            self._graph_s = -self.progress.graph_seconds()
        self._tokens.append(token)
        self.moments.append(time.perf_counter())

    @property
    def elapsed_s(self) -> float:
        """Seconds from the question until now."""
        return self._preprocess_s + time.perf_counter() - self._started

    def answer(self) -> Answer:
        """The answer, at the end of which decoding is taken to be now."""
        progress = self.progress
        progress.clock.mark("decode")
        self._graph_s += progress.graph_seconds()
        probabilities = progress.form.probabilities if progress.form else {}
        text = "".join(token.text for token in self._tokens)
        parsed = parse_answer(text, self._request.options)
        return Answer(
            text=text,
            reasoning=parsed.reasoning,
            choice=parsed.choice,
            choice_text=parsed.choice_text,
            strict_choice=parsed.strict_choice,
            flags=parsed.flags,
            finish_reason=self._tokens[-1].finish_reason or "stop",
            token_ids=tuple(token.id for token in self._tokens),
            prompt_tokens=len(self._request.token_ids),
            visual_tokens=self._request.visual_tokens,
            new_tokens=len(self._tokens),
            options=probabilities,
            margin=margin(probabilities) if probabilities else None,
            cached_tokens=progress.cached_tokens,
            drafted_tokens=progress.lookup.drafted if progress.lookup else 0,
            accepted_tokens=progress.lookup.accepted if progress.lookup else 0,
            timings=self._timings(),
            notes=self._request.notes,
        )

    def _timings(self) -> Timings:
        progress = self.progress
        seconds = progress.clock.seconds
        preprocess_s = self._preprocess_s + seconds["preprocess"]
        prefill_s = seconds["prefill"] + seconds["first"]
        first_token_s = preprocess_s + seconds["vision"] + prefill_s
        later = len(self._tokens) - 1
        return Timings(
            load_s=self._load_s,
            preprocess_s=preprocess_s,
            vision_s=seconds["vision"],
            prefill_s=prefill_s,
            first_token_s=first_token_s,
            decode_s=seconds["decode"],
            decode_graph_s=self._graph_s,
            total_s=first_token_s + seconds["decode"],
            prefill_tokens_per_s=(len(self._request.token_ids) - progress.cached_tokens) / prefill_s,
            decode_tokens_per_s=later / seconds["decode"] if later else None,
        )


Record = Callable[[str, float, Answer | None], None]
"""Called once with how an answer ended, the seconds that it took, and the answer where it came to its end."""


class Stream(Iterator[str]):
    """The text of one answer, piece by piece; `answer` once it has ended.

    What the reader does between two pieces counts as decoding time.
    """

    def __init__(
        self,
        request: Request,
        generate: Callable[[Progress], Iterator[Token]],
        *,
        load_s: float,
        preprocess_s: float,
        record: Record | None = None,
    ) -> None:
        """`generate` yields the tokens, and notes in its argument what `Progress` says before the first.

        record: told of the end before `answer` is there, so that nobody has an answer that it could not note.
        """
        self._request, self._record = request, record
        self._pieces = self._read(generate, load_s, preprocess_s)
        self._answer: Answer | None = None
        # When each token came, in seconds on time.perf_counter's clock; empty until the stream is read.
        self.moments: list[float] = []
        self._replaced = False

    def __next__(self) -> str:
        if self._replaced and self._answer is None:
            raise MedVLMError("this stream ended when another question was asked; read one stream at a time")
        return next(self._pieces)

    @property
    def options(self) -> dict[str, str]:
        """The letters that the question offers, with their texts."""
        return self._request.options

    def finish(self) -> Answer:
        """Read the stream to its end; the answer."""
        for _ in self:
            pass
        return self.answer

    def stop(self) -> Answer:
        """End the answer behind the piece that was read last, as if the model had ended there; the answer.

        Raises `MedVLMError` where no piece was read yet, or the answer has ended.
        """
        if self._answer is not None or not self.moments:
            raise MedVLMError("only an answer that is being read can be stopped")
        with contextlib.suppress(StopIteration):
            self._pieces.send(True)
        return self.answer

    def replace(self) -> None:
        """End the stream, unless it has ended: another question takes the cache."""
        self._replaced = True
        self.close()

    def close(self) -> None:
        """Read no further; a stream that was begun and has not ended is recorded as stopped."""
        self._pieces.close()

    @property
    def answer(self) -> Answer:
        """The answer. Raises `MedVLMError` while the stream has not ended."""
        if self._answer is None:
            raise MedVLMError("the answer is not complete; read the stream to its end first")
        return self._answer

    def _read(
        self, generate: Callable[[Progress], Iterator[Token]], load_s: float, preprocess_s: float
    ) -> Generator[str, bool | None, None]:
        """The pieces; sent True behind one, it is the last."""
        transcript = Transcript(self._request, load_s=load_s, preprocess_s=preprocess_s)
        self.moments = transcript.moments
        record = self._record or (lambda outcome, seconds, answer: None)
        try:
            for token in generate(transcript.progress):
                transcript.add(token)
                if token.text and (yield token.text):
                    break
            answer = transcript.answer()
        except (GeneratorExit, Interrupted, KeyboardInterrupt):
            record("stopped", transcript.elapsed_s, None)
            raise
        except Exception:
            record("failed", transcript.elapsed_s, None)
            raise
        record(answer.finish_reason, answer.timings.total_s, answer)
        self._answer = answer
