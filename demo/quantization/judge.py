"""One model's bundles held against its float32 one: what it says itself is computed once for all of them."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...export.calibration import Calibration, Collected, collect, collect_samples
from ...export.checkpoint import Checkpoint, open_checkpoint
from ...export.convert import write_bundle
from ...export.recipe import Recipe, make_recipe
from ...export.samples import ANSWERING, Sample
from ...export.workdir import Workdir
from ...runtime.compare import Reference, plan, reference
from ...runtime.dataset import DatasetItem, read_dataset
from ...runtime.manifest import Manifest
from ..dataset import make_item
from ..saved import DATASET, save_dataset, write_questions
from .cases import WAYS, Case
from .rows import Row, make_row

_CALIBRATION = "demo"


@dataclass(frozen=True)
class Questions:
    """Questions that bundles are measured on, and others that activations are collected on."""

    measuring: Sequence[DatasetItem]
    calibrating: Sequence[DatasetItem]


def draw_questions(directory: Path, measuring: int, calibrating: int) -> Questions:
    """The first questions of the test split and of the split for validation, written below `directory`.

    No scan is in two splits, and the model was trained on neither.
    """
    asked, calibration = directory / "test", directory / "validate"
    for folder in (asked, calibration):
        folder.mkdir()
    save_dataset(asked, (make_item("test", index) for index in range(measuring)))
    return Questions(read_dataset(asked / DATASET), read_dataset(write_questions(calibration, calibrating)))


def judge(
    model: str,
    directory: Path,
    cases: Sequence[Case],
    questions: Questions,
    keep: Callable[[Row], None],
    threads: int | None = None,
) -> None:
    """Measure `cases` of the checkpoint in `directory`, called `model`; `keep` gets the row of each as it is known."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundles = _Bundles(open_checkpoint(directory), folder, questions.calibrating, threads)
        exact = folder / "fp32"
        bundles.write(exact, make_recipe("fp32"))
        planned = plan(exact, exact, questions.measuring, decoding=ANSWERING, threads=threads)
        kept = stack.enter_context(reference(planned))
        for case in cases:
            keep(_measure(model, case, bundles, kept))


def _measure(model: str, case: Case, bundles: "_Bundles", kept: Reference) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        manifest = bundles.write(out, case.recipe, WAYS[case.way].mixed_mb)
        return make_row(model, case, len(bundles.calibrating), kept.compare(out), manifest)


class _Bundles:
    """Writes bundles of one checkpoint. Its samples are made once, and a calibration serves all that follow and can."""

    def __init__(
        self, checkpoint: Checkpoint, folder: Path, calibrating: Sequence[DatasetItem], threads: int | None
    ) -> None:
        self.calibrating = calibrating
        self._checkpoint, self._folder = checkpoint, folder
        self._calibration = Calibration(_CALIBRATION, calibrating, threads)
        self._decided_by: object = None
        self._collected: Collected | None = None

    @cached_property
    def _samples(self) -> list[Sample]:
        workdir = Workdir(self._folder / "samples")
        try:
            return collect_samples(self._checkpoint, self._calibration, workdir)
        finally:
            workdir.remove()

    def write(self, out: Path, recipe: Recipe, mixed_mb: float | None = None) -> Manifest:
        """Write the bundle of `recipe` to `out`, with so many megabytes for tensors of 8 bits."""
        if not recipe.calibrated and mixed_mb is None:
            return write_bundle(self._checkpoint, out, recipe)
        collected = self._collect(recipe, mixed_mb)
        found = collected.recipe
        recipe = dataclasses.replace(recipe, calibration=found.calibration, eight_bits=found.eight_bits)
        return write_bundle(self._checkpoint, out, recipe, calibrated=collected.workdir)

    def _collect(self, recipe: Recipe, mixed_mb: float | None) -> Collected:
        decided_by = _decides_blocks(recipe), mixed_mb
        if self._collected is not None and self._decided_by == decided_by:
            return self._collected
        if self._collected is not None:
            self._collected.workdir.remove()
        out = self._folder / "calibrated"
        calibration = dataclasses.replace(self._calibration, mixed_mb=mixed_mb)
        self._collected = collect(self._checkpoint, out, recipe, calibration, samples=self._samples)
        self._decided_by = decided_by
        return self._collected


def _decides_blocks(recipe: Recipe) -> object:
    """What calibrated blocks depend on: neither the vision encoder, which is float32 where activations are collected,
    nor how the blocks are multiplied; prompts' precision, as a graph of their own lets them go through exactly.
    """
    blocks = [dataclasses.replace(part, accuracy_level=0) for part in (recipe.decoder, recipe.head)]
    return blocks, recipe.smooth, recipe.prefill
