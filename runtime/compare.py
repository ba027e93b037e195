"""Two bundles asked the same questions, and one read the other's answers.

Only one is loaded at a time: first A answers everything, then B reads A's answers and gives its own.
"""

import dataclasses
import gc
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .bundle import TOKENIZER, Bundle, open_bundle
from .comparison import Comparison, Reading, summarize
from .context import check_fit, context_length
from .dataset import DatasetItem
from .decoding import Decoding
from .errors import InputError, MedVLMError
from .model import MedVLM
from .processor import Processor, Request
from .result import Answer
from .session import check_device
from .statistics import kl_divergence

# What the model itself would say: drafts and a form to keep are the runtime's.
PLAIN = Decoding(constrained=False, max_draft=0)


def compare(
    bundle_a: Path,
    bundle_b: Path,
    items: Sequence[DatasetItem],
    *,
    decoding: Decoding = PLAIN,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> Comparison:
    """Answer `items` with both bundles, and read A's answers with both.

    decoding: of the answers, each bundle's own. progress: called with "A" or "B" after each question, twice as often
    as there are questions. A's logits wait for B in a temporary file: vocab_size x 4 bytes (0.6 MB at full size) for
    each token of A's answers; it is removed at the end, however that comes.
    Raises `InputError`, before any session is opened, for bundles that cannot be compared or a question that cannot be
    asked, and `MedVLMError` where the disk is full.
    """
    check_device("auto")
    if not items:
        raise InputError("there are no questions to compare by; give at least one")
    a, b = open_bundle(bundle_a), open_bundle(bundle_b)
    _check_same_tokens(a, b)
    # What fits behind a prompt must fit in both.
    length = min(context_length(bundle, None) for bundle in (a, b))
    asked = _Asked(items, _decodings(a, b, items, length, decoding), length, threads, progress)
    with _Spool(a.manifest.text.vocab_size) as spool:
        answers_a = _answer(a, asked, spool)
        # A model and its last stream refer to each other. Nothing of it must be in memory when the next comes.
        gc.collect()
        answers_b, readings = _answer_and_read(b, asked, answers_a, spool)
    gc.collect()
    return summarize(items, answers_a, answers_b, readings)


@dataclass(frozen=True)
class _Asked:
    """The questions, and how both bundles are asked them; decodings: one for each question."""

    items: Sequence[DatasetItem]
    decodings: Sequence[Decoding]
    length: int
    threads: int | None
    progress: Callable[[str], None]

    def load(self, bundle: Bundle) -> MedVLM:
        return MedVLM(bundle, threads=self.threads, max_length=self.length)

    def ask(self, model: MedVLM) -> Iterator[tuple[Request, Answer]]:
        """Each question as the model reads it, with its answer."""
        for item, decoding in zip(self.items, self.decodings, strict=True):
            request = model.processor.prepare(item.images, item.problem)
            yield request, model.run(request, decoding).finish()


def _answer(bundle: Bundle, asked: _Asked, spool: "_Spool") -> list[Answer]:
    """A's answers. The logits at their tokens go into `spool`."""
    answers, model = [], asked.load(bundle)
    for request, answer in asked.ask(model):
        spool.append(model.score(request, answer.token_ids))
        answers.append(answer)
        asked.progress("A")
    return answers


def _answer_and_read(
    bundle: Bundle, asked: _Asked, answers_a: Sequence[Answer], spool: "_Spool"
) -> tuple[list[Answer], list[Reading]]:
    """B's answers, and what it makes of A's."""
    answers, readings, model = [], [], asked.load(bundle)
    for (request, answer), answer_a in zip(asked.ask(model), answers_a, strict=True):
        logits_a, logits_b = spool.read(len(answer_a.token_ids)), model.score(request, answer_a.token_ids)
        agrees = logits_a.argmax(axis=1) == logits_b.argmax(axis=1)
        readings.append(Reading(kl_divergence(logits_a, logits_b), agrees))
        if not np.isfinite(readings[-1].kl).all():
            raise MedVLMError(f"a bundle's logits are not finite at question {len(answers)}; export both again")
        answers.append(answer)
        asked.progress("B")
    return answers, readings


def _check_same_tokens(a: Bundle, b: Bundle) -> None:
    """Raise `InputError` unless a token is the same in both: else no distribution over them can be compared."""
    same_size = a.manifest.text.vocab_size == b.manifest.text.vocab_size
    if not same_size or a.manifest.files[TOKENIZER].sha256 != b.manifest.files[TOKENIZER].sha256:
        raise InputError(
            f"{a.directory} and {b.directory} have different vocabularies or tokenizers; "
            "give two bundles of one checkpoint, or of two that share it"
        )


def _decodings(a: Bundle, b: Bundle, items: Sequence[DatasetItem], length: int, decoding: Decoding) -> list[Decoding]:
    """`decoding` for each question, its answer no longer than fits behind the longer prompt.

    Raises `InputError` for a question that one of the bundles cannot be asked. Nothing of the images is kept.
    """
    decodings, processors = [], (Processor(a), Processor(b))
    for item in items:
        try:
            requests = [processor.prepare(item.images, item.problem) for processor in processors]
            for request in requests:
                check_fit(request, length)
        except InputError as error:
            raise InputError(f"question {item.index}: {error}") from None
        # The last token of an answer needs no room.
        room = length - max(len(request.token_ids) for request in requests) + 1
        decodings.append(dataclasses.replace(decoding, max_new_tokens=min(decoding.max_new_tokens, room)))
    return decodings


class _Spool:
    """Rows of logits in a temporary file, written one after the other and then read in the same order.

    It is written, not mapped: a full disk is then an error that can be told, where a mapping ends the process.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size, self._read = vocab_size, 0

    def __enter__(self) -> "_Spool":
        # On Linux it has no name: nothing is left of it even if the process is killed.
        self._file = tempfile.TemporaryFile(buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, logits: NDArray[np.float32]) -> None:
        """Write rows [tokens, vocab_size]. Raises `MedVLMError` where there is no room."""
        data = np.ascontiguousarray(logits).data.cast("B")
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise MedVLMError(
                f"the logits cannot be kept in {tempfile.gettempdir()} ({error.strerror}); "
                "set TMPDIR to a folder with more room, or give fewer --questions"
            ) from None

    def read(self, tokens: int) -> NDArray[np.float32]:
        """The next rows [tokens, vocab_size]."""
        self._file.seek(self._read)
        values = np.fromfile(self._file, np.float32, tokens * self._vocab_size)
        self._read += values.nbytes
        return values.reshape(tokens, self._vocab_size)
