"""What a bundle lost against its checkpoint in float32, measured on questions, for its manifest and for a report."""

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..runtime.compare import carry_out, plan
from ..runtime.comparison import Comparison
from ..runtime.dataset import DatasetItem
from ..runtime.interrupts import terminate_as_interrupt
from ..runtime.manifest import MANIFEST, Manifest
from .checkpoint import Checkpoint
from .convert import bundle_bytes, write_bundle
from .output import check_space
from .recipe import make_recipe
from .samples import ANSWERING

_EXACT = make_recipe("fp32")
# A token of an answer keeps the logits of the whole vocabulary in a temporary file.
_TOKENS = 128


def check_measuring(checkpoint: Checkpoint, out: Path, questions: int, other_bytes: int) -> None:
    """Raise `InputError` where the disk has no room for the float32 bundle beside `other_bytes` of others."""
    logits = questions * _TOKENS * checkpoint.config.text.vocab_size * 4
    check_space(out, other_bytes + bundle_bytes(checkpoint, _EXACT))
    check_space(Path(tempfile.gettempdir()) / out.name, logits)


def measure_loss(
    checkpoint: Checkpoint,
    out: Path,
    items: Sequence[DatasetItem],
    threads: int | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> Comparison:
    """Compare the bundle `out` with the float32 one of its checkpoint, which is written beside it and removed again."""
    with _temporary_sibling(out) as folder:
        write_bundle(checkpoint, folder / "fp32", _EXACT)
        planned = plan(folder / "fp32", out, items, decoding=ANSWERING, threads=threads)
        return carry_out(planned, lambda side: progress("fp32" if side == "A" else "the bundle"))


def note_loss(out: Path, manifest: Manifest, found: Comparison, dataset: str) -> Manifest:
    """Write into the manifest of the bundle `out` what it lost; the new manifest."""
    manifest = dataclasses.replace(manifest, loss=found.loss(dataset))
    partial = out / f".{MANIFEST}.partial"
    partial.write_text(manifest.to_json(), encoding="utf-8")
    partial.replace(out / MANIFEST)
    return manifest


@contextlib.contextmanager
def _temporary_sibling(out: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.resolve().parent))
    try:
        with terminate_as_interrupt():
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
