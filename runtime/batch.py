"""Several answers decoded together: each is what it would be alone, and reading the weights is shared.

At full size a step of 2, 4, 8 sequences takes 1.2, 1.8, 2.7 times a step of one (INT4, 200 slots filled, two
shared cores: medians of 22, in turns).
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .batch_decoder import BatchDecoder
from .context import check_fit
from .decoder import Decoder, rounded_up
from .decoding import Decoding
from .errors import AuditError, InputError
from .generate import Feed, Generation, Token
from .prefix import ImageSpan
from .processor import Request
from .result import Answer
from .session import one_line_failures
from .stream import Progress, Record, Transcript

if TYPE_CHECKING:
    from .model import MedVLM

_Prompt = tuple[bytes, tuple[ImageSpan, ...]]

DEFAULT_BATCH_SIZE = 8
MAX_CACHE_BYTES = 4_000_000_000
"""How much the caches of a batch may take if every answer becomes as long as it may."""


def answer_batch(
    model: "MedVLM",
    requests: Sequence[Request],
    decoding: Decoding,
    votes: Sequence[int] | None = None,
    *,
    batch_size: int | None = None,
    preprocess_s: Sequence[float] | None = None,
) -> list[Answer]:
    """Answer prepared requests, `batch_size` of them decoded together; the answers in the order of the requests.

    votes: for each request its `vote` of `MedVLM.run`. preprocess_s: the seconds that preparing each took.
    batch_size: by default 8, or as many as fit in `MAX_CACHE_BYTES`: each sequence takes the slots of the longest
    prompt and its answer, `kv_bytes_per_token` bytes each. An answer that ends makes room for the next request.
    Each answer has a sampler, a form and limits of its own, so that only rounding can tell it from the one that
    `MedVLM.run` gives: products of several rows are summed up in another order, and activations that are quantized
    (accuracy level 4) then fall on the other side of a step now and then. Of the demo model's tokens that is 1 in
    16,000. There are no drafts, and an answer's decoding time includes what is done for others meanwhile.
    On a GPU requests are answered one after the other.
    Raises `InputError`, before any work, for a request or a batch that does not fit.
    """
    for request in requests:
        check_fit(request, model.max_length)
    if not requests:
        return []
    if model.device != "cpu":
        return _one_by_one(model, requests, decoding, votes, preprocess_s)
    capacity = rounded_up(max(len(r.token_ids) + model.free_slots(r, decoding) for r in requests))
    size = _batch_size(len(requests), batch_size, capacity * model.manifest.text.kv_bytes_per_token)
    model.end_stream()
    (lag, _), *_ = Counter(request.lag for request in requests).most_common()
    decoder = model.batch_decoder(size, capacity, lag)
    nothing = [0] * len(requests)
    return _Batch(model, decoder, requests, decoding, votes or nothing, preprocess_s or nothing).run()


def _one_by_one(
    model: "MedVLM",
    requests: Sequence[Request],
    decoding: Decoding,
    votes: Sequence[int] | None,
    preprocess_s: Sequence[float] | None,
) -> list[Answer]:
    answers: dict[int, Answer] = {}
    for number in _by_prompt(requests):
        vote, seconds = votes[number] if votes else 0, preprocess_s[number] if preprocess_s else 0.0
        answers[number] = model.run(requests[number], decoding, preprocess_s=seconds, vote=vote).finish()
    return [answers[number] for number in range(len(requests))]


def _batch_size(requests: int, batch_size: int | None, bytes_each: int) -> int:
    """How many are decoded together. Raises `InputError` for a number that does not fit."""
    if batch_size is None:
        return min(requests, DEFAULT_BATCH_SIZE, max(1, MAX_CACHE_BYTES // bytes_each))
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1")
    size = min(requests, batch_size)
    if size > 1 and size * bytes_each > MAX_CACHE_BYTES:
        raise InputError(
            f"a batch of {size} takes {size * bytes_each / 1e6:.0f} MB of KV cache and {MAX_CACHE_BYTES / 1e6:.0f} MB "
            f"are allowed; give a batch_size of {max(1, MAX_CACHE_BYTES // bytes_each)} or fewer max_new_tokens"
        )
    return size


@dataclass
class _Member:
    """An answer being written: the number of its request, and the call that it waits for."""

    number: int
    transcript: Transcript
    generation: Generation
    feed: Feed = field(default_factory=lambda: Feed([]))

    def advance(self, logits: NDArray[np.float32] | None = None) -> bool:
        """Write on with the logits [1, vocab_size] of the call, up to the next; False once the answer has ended."""
        event = next(self.generation) if logits is None else self.generation.send(logits)
        while isinstance(event, Token):
            self.transcript.add(event)
            event = next(self.generation, None)
        if event is not None:
            self.feed = event
        return event is not None


class _Batch:
    """The sequences of a `BatchDecoder`, the answers being written in them, and the requests that wait for one."""

    def __init__(
        self,
        model: "MedVLM",
        decoder: BatchDecoder,
        requests: Sequence[Request],
        decoding: Decoding,
        votes: Sequence[int],
        preprocess_s: Sequence[float],
    ) -> None:
        self._model, self._decoder, self._requests, self._decoding = model, decoder, requests, decoding
        self._votes, self._preprocess_s = votes, preprocess_s
        self._waiting = deque(_by_prompt(requests))
        self._members: list[_Member] = []
        self._answers: dict[int, Answer] = {}
        self._prefilled: _Prefilled | None = None

    def run(self) -> list[Answer]:
        """Answer all. Where it cannot go on, the answers that were begun are recorded as stopped or failed."""
        try:
            while len(self._members) < len(self._decoder.lengths) and self._seat(len(self._members)):
                pass
            while self._members:
                self._step()
        except AuditError:
            raise
        except BaseException as error:
            self._abandon("failed" if isinstance(error, Exception) else "stopped")
            raise
        return [self._answers[number] for number in range(len(self._requests))]

    def _step(self) -> None:
        """A token for each answer being written. One that ends leaves its sequence to the next request."""
        feeds = [member.feed for member in self._members]
        for sequence, feed in enumerate(feeds):
            self._decoder.rewind(sequence, feed.surplus)
        with one_line_failures("decode"):
            logits = self._decoder.step([token_id for feed in feeds for token_id in feed.token_ids])
        # From the last on: what fills a gap has had its logits then.
        for sequence in reversed(range(len(feeds))):
            member = self._members[sequence]
            if not member.advance(logits[sequence : sequence + 1]):
                self._end(member.number, member.transcript)
                if not self._seat(sequence):
                    self._decoder.remove(sequence)
                    self._members[sequence] = self._members[-1]
                    self._members.pop()

    def _seat(self, sequence: int) -> bool:
        """Begin the next answer in `sequence`; False where no request waits."""
        while self._waiting:
            number = self._waiting.popleft()
            request = self._requests[number]
            transcript = Transcript(request, load_s=self._model.load_s, preprocess_s=self._preprocess_s[number])
            prefilled = self._prefill(request, transcript.progress)
            generation = self._model.generation(
                request, self._decoding, self._votes[number], prefilled.logits, transcript.progress, one_by_one=True
            )
            member = _Member(number, transcript, generation)
            if member.advance():
                self._decoder.put(sequence, prefilled.decoder, request.lag)
                self._members[sequence : sequence + 1] = [member]
                return True
            self._end(number, transcript)
        return False

    def _end(self, number: int, transcript: Transcript) -> None:
        answer = transcript.answer()
        self._record(number)(answer.finish_reason, answer.timings.total_s, answer)
        self._answers[number] = answer

    def _abandon(self, outcome: str) -> None:
        for member in self._members:
            if member.number not in self._answers:
                self._record(member.number)(outcome, member.transcript.elapsed_s, None)

    def _record(self, number: int) -> Record:
        return self._model.recording(self._requests[number], self._decoding, self._votes[number])

    def _prefill(self, request: Request, progress: Progress) -> "_Prefilled":
        """The prompt of the request before, if it is the same; else a new one."""
        prompt = _prompt(request)
        if self._prefilled is None or self._prefilled.prompt != prompt:
            # What held it may be overwritten from here on.
            self._prefilled = None
            decoder, logits = self._model.prefill.fill(request, 0, progress)
            assert isinstance(decoder, Decoder)  # noqa: S101 - of a model on a CPU
            self._prefilled = _Prefilled(prompt, decoder, np.asarray(logits))
        else:
            progress.cached_tokens = len(request.token_ids)
        return self._prefilled


@dataclass(frozen=True)
class _Prefilled:
    """A prompt, the decoder that holds it, and the logits [vocab_size] after it."""

    prompt: _Prompt
    decoder: Decoder
    logits: NDArray[np.float32]


def _prompt(request: Request) -> _Prompt:
    """What is equal where prompts are."""
    return request.token_ids.tobytes(), request.contents.images


def _by_prompt(requests: Sequence[Request]) -> list[int]:
    """The numbers of the requests, those with the same prompt behind each other."""
    first: dict[_Prompt, int] = {}
    return sorted(range(len(requests)), key=lambda i: first.setdefault(_prompt(requests[i]), i))
