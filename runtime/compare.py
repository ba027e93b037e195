"""Two bundles asked the same questions, and one read the other's answers.

Only one is loaded at a time: first A answers everything, then B reads A's answers and gives its own. Where several Bs
are compared with one A, `reference` keeps what A said for all of them.
"""

import contextlib
import dataclasses
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
from .dicom.view import DEFAULT_VIEW, View
from .errors import InputError, MedVLMError
from .model import MedVLM, check_threads
from .processor import Processor, Request
from .result import Answer
from .session import check_device
from .statistics import kl_divergence

# What the model itself would say: drafts and a form to keep are the runtime's.
PLAIN = Decoding(constrained=False, max_draft=0)

Progress = Callable[[str], None]
"""Called with "A" or "B" after each of its questions: twice as often as there are questions."""


@dataclass(frozen=True)
class Plan:
    """A comparison that was found possible.

    decodings: how each of `items` is answered. length: tokens of prompt and answer together, for both bundles.
    view: how DICOM images are shown.
    """

    a: Bundle
    b: Bundle
    items: Sequence[DatasetItem]
    decodings: Sequence[Decoding]
    length: int
    threads: int | None
    view: View = DEFAULT_VIEW


def compare(
    bundle_a: Path,
    bundle_b: Path,
    items: Sequence[DatasetItem],
    *,
    decoding: Decoding = PLAIN,
    threads: int | None = None,
    view: View = DEFAULT_VIEW,
    progress: Progress = lambda what: None,
) -> Comparison:
    """Answer `items` with both bundles, each by itself, and read A's answers with both: see `plan` and `carry_out`."""
    return carry_out(plan(bundle_a, bundle_b, items, decoding=decoding, threads=threads, view=view), progress)


def plan(
    bundle_a: Path,
    bundle_b: Path,
    items: Sequence[DatasetItem],
    *,
    decoding: Decoding = PLAIN,
    threads: int | None = None,
    view: View = DEFAULT_VIEW,
) -> Plan:
    """Look at everything that can be wrong; no session is opened.

    decoding: of the answers. threads: as `MedVLM.load` takes them. view: how DICOM images are shown. Raises
    `InputError` for bundles that cannot be compared or a question that cannot be asked.
    """
    check_device("auto")
    check_threads(threads)
    if not items:
        raise InputError("there are no questions to compare by; give at least one")
    a, b = open_bundle(bundle_a), open_bundle(bundle_b)
    _check_same_tokens(a, b)
    # What fits behind a prompt must fit in both.
    length = min(context_length(bundle, None) for bundle in (a, b))
    return Plan(a, b, items, _decodings(a, b, items, length, decoding, view), length, threads, view)


def carry_out(plan: Plan, progress: Progress = lambda what: None) -> Comparison:
    """Load A, then B, and compare; raises as `reference`."""
    with reference(plan, progress) as kept:
        # A is out of memory here: it went with the call that loaded it.
        return _against(kept, plan, progress)


@dataclass(frozen=True)
class Reference:
    """What A said: its answers to the items of `plan`, and the logits at their tokens."""

    plan: Plan
    answers: Sequence[Answer]
    logits: "_Spool"

    def compare(self, bundle_b: Path, progress: Progress = lambda what: None) -> Comparison:
        """Load a bundle and compare it with A as `carry_out` would; "B" is what `progress` is called with.

        Raises `InputError` for a bundle that does not read questions as the plan's B does: what fits may then differ.
        """
        b = open_bundle(bundle_b)
        _check_same_tokens(self.plan.a, b)
        if _reads(b) != _reads(self.plan.b):
            raise InputError(
                f"{bundle_b} reads questions in another way than {self.plan.b.directory}; plan anew for it"
            )
        return _against(self, dataclasses.replace(self.plan, b=b), progress)


@contextlib.contextmanager
def reference(plan: Plan, progress: Progress = lambda what: None) -> Iterator[Reference]:
    """Load A and keep what it says, to compare any number of bundles with it within the block.

    A's logits wait in a temporary file: vocab_size x 4 bytes (0.6 MB at full size) for each token of A's answers. It is
    removed at the end, however that comes. Raises `MedVLMError` where there is no room for it.
    """
    with _Spool(plan.a.manifest.text.vocab_size) as spool:
        yield Reference(plan, _answer(plan, spool, progress), spool)


def _answer(plan: Plan, spool: "_Spool", progress: Progress) -> list[Answer]:
    """A's answers. The logits at their tokens go into `spool`."""
    answers, model = [], _load(plan.a, plan)
    for request, answer in _ask(model, plan):
        spool.append(model.score(request, answer.token_ids))
        answers.append(answer)
        progress("A")
    return answers


def _against(kept: Reference, plan: Plan, progress: Progress) -> Comparison:
    """Load B of `plan`: its answers, and what it makes of A's."""
    answers, readings, model = [], [], _load(plan.b, plan)
    kept.logits.rewind()
    for (request, answer), answer_a in zip(_ask(model, plan), kept.answers, strict=True):
        logits_a, logits_b = kept.logits.read(len(answer_a.token_ids)), model.score(request, answer_a.token_ids)
        reading = Reading(kl_divergence(logits_a, logits_b), logits_a.argmax(axis=1) == logits_b.argmax(axis=1))
        if not np.isfinite(reading.kl).all():
            index = plan.items[len(answers)].index
            raise MedVLMError(f"question {index}: the logits of a bundle are not finite; export both bundles again")
        answers.append(answer)
        readings.append(reading)
        progress("B")
    return summarize(plan.items, kept.answers, answers, readings)


def _load(bundle: Bundle, plan: Plan) -> MedVLM:
    return MedVLM(bundle, threads=plan.threads, max_length=plan.length)


def _ask(model: MedVLM, plan: Plan) -> Iterator[tuple[Request, Answer]]:
    """Each question as the model reads it, with its answer."""
    for item, decoding in zip(plan.items, plan.decodings, strict=True):
        request = model.processor.prepare(item.images, item.problem, view=plan.view)
        yield request, model.run(request, decoding).finish()


def _reads(bundle: Bundle) -> tuple[object, ...]:
    """What decides how many tokens a question has, and how many fit, beside the tokenizer."""
    manifest = bundle.manifest
    return manifest.preprocessing, manifest.prompt, context_length(bundle, None)


def _check_same_tokens(a: Bundle, b: Bundle) -> None:
    """Raise `InputError` unless a token is the same in both: else no distribution over them can be compared."""
    same_size = a.manifest.text.vocab_size == b.manifest.text.vocab_size
    if not same_size or a.manifest.files[TOKENIZER].sha256 != b.manifest.files[TOKENIZER].sha256:
        raise InputError(
            f"{a.directory} and {b.directory} have different vocabularies or tokenizers; "
            "give two bundles of one checkpoint, or of two that share it"
        )


def _decodings(
    a: Bundle, b: Bundle, items: Sequence[DatasetItem], length: int, decoding: Decoding, view: View
) -> list[Decoding]:
    """`decoding` for each question, its answer no longer than fits behind the longer prompt.

    Raises `InputError` for a question that one of the bundles cannot be asked. Nothing of the images is kept.
    """
    decodings, processors = [], (Processor(a), Processor(b))
    for item in items:
        try:
            requests = [processor.prepare(item.images, item.problem, view=view) for processor in processors]
            for request in requests:
                check_fit(request, length)
        except InputError as error:
            raise InputError(f"question {item.index}: {error}") from None
        # The last token of an answer needs no room.
        room = length - max(len(request.token_ids) for request in requests) + 1
        decodings.append(dataclasses.replace(decoding, max_new_tokens=min(decoding.max_new_tokens, room)))
    return decodings


class _Spool:
    """Rows of logits in a temporary file, written one after the other and then read in the same order, often.

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

    def rewind(self) -> None:
        """Read from the first row on again."""
        self._read = 0

    def read(self, tokens: int) -> NDArray[np.float32]:
        """The next rows [tokens, vocab_size]."""
        self._file.seek(self._read)
        values = np.fromfile(self._file, np.float32, tokens * self._vocab_size)
        self._read += values.nbytes
        return values.reshape(tokens, self._vocab_size)
