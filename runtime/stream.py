"""One answer while it is generated: its text piece by piece, its stages timed, and the answer at its end."""

import time
from collections.abc import Callable, Iterator

from .answer import parse_answer
from .errors import MedVLMError
from .generate import Token
from .processor import Request
from .result import Answer, Timings


class Clock:
    """Marks the ends of stages; `seconds` of a stage run from the mark before it."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        """End a stage now."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


class Stream(Iterator[str]):
    """The text of one answer, piece by piece; `answer` once it has ended.

    What the reader does between two pieces counts as decoding time.
    """

    def __init__(
        self, request: Request, generate: Callable[[Clock], Iterator[Token]], *, load_s: float, preprocess_s: float
    ) -> None:
        """`generate` yields the tokens and marks "vision" and "prefill" on its clock before the first."""
        self._request, self._load_s, self._preprocess_s = request, load_s, preprocess_s
        self._tokens: list[Token] = []
        self._pieces = self._read(generate)
        self._answer: Answer | None = None
        self._replaced = False

    def __next__(self) -> str:
        if self._replaced and self._answer is None:
            raise MedVLMError("this stream ended when another question was asked; read one stream at a time")
        return next(self._pieces)

    def replace(self) -> None:
        """End the stream, unless it has ended: another question takes the cache."""
        self._replaced = True

    @property
    def answer(self) -> Answer:
        """The answer. Raises `MedVLMError` while the stream has not ended."""
        if self._answer is None:
            raise MedVLMError("the answer is not complete; read the stream to its end first")
        return self._answer

    def _read(self, generate: Callable[[Clock], Iterator[Token]]) -> Iterator[str]:
        clock = Clock()
        for token in generate(clock):
            if not self._tokens:
                clock.mark("first")
            self._tokens.append(token)
            if token.text:
                yield token.text
        clock.mark("decode")
        self._answer = self._make_answer(self._timings(clock.seconds))

    def _make_answer(self, timings: Timings) -> Answer:
        text = "".join(token.text for token in self._tokens)
        parsed = parse_answer(text, self._request.options)
        return Answer(
            text=text,
            reasoning=parsed.reasoning,
            choice=parsed.choice,
            choice_text=parsed.choice_text,
            strict_choice=parsed.strict_choice,
            flags=parsed.flags,
            finish_reason=self._tokens[-1].finish_reason or "length",
            token_ids=tuple(token.id for token in self._tokens),
            prompt_tokens=len(self._request.token_ids),
            visual_tokens=self._request.visual_tokens,
            new_tokens=len(self._tokens),
            timings=timings,
            notes=self._request.notes,
        )

    def _timings(self, seconds: dict[str, float]) -> Timings:
        prefill_s = seconds["prefill"] + seconds["first"]
        first_token_s = self._preprocess_s + seconds["vision"] + prefill_s
        later = len(self._tokens) - 1
        return Timings(
            load_s=self._load_s,
            preprocess_s=self._preprocess_s,
            vision_s=seconds["vision"],
            prefill_s=prefill_s,
            first_token_s=first_token_s,
            decode_s=seconds["decode"],
            total_s=first_token_s + seconds["decode"],
            prefill_tokens_per_s=len(self._request.token_ids) / prefill_s,
            decode_tokens_per_s=later / seconds["decode"] if later else None,
        )
