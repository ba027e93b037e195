"""What looks at activations before a bundle is written: answers, calibrated blocks, mixed precisions."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ..runtime.bundle import sha256
from ..runtime.dataset import DatasetItem
from .calibrate import Calibrator
from .checkpoint import Checkpoint
from .convert import bundle_bytes, write_bundle
from .folds import FoldedReader, text_sites
from .layers import ReadTensor
from .output import check_space
from .prepare import smooth_scales
from .recipe import CalibrationData, Recipe, make_recipe
from .samples import Progress, Sample, answer_all, make_samples, read_all
from .sensitivity import choose_eight_bits, sensitivities
from .workdir import Workdir

# Says what the checkpoint would: at 8 bits none of the demo model's answers has another letter.
_SPEAKER = make_recipe("int8", prefill="same")


@dataclass(frozen=True)
class Calibration:
    """Questions whose activations are collected.

    name: what the manifest calls them. mixed_mb: megabytes over 4 bits that tensors of 8 bits may take together.
    """

    name: str
    items: Sequence[DatasetItem]
    threads: int | None = None
    mixed_mb: float | None = None


@dataclass(frozen=True)
class Collected:
    """A recipe with all that activations decided, and where the blocks lie; `workdir` is to be removed after use."""

    recipe: Recipe
    workdir: Workdir


def steps(checkpoint: Checkpoint, recipe: Recipe, calibration: Calibration) -> int:
    """How often `collect` reports progress where it makes the samples itself."""
    layers = checkpoint.config.text.layers + 1
    passes = (calibration.mixed_mb is not None) + recipe.calibrated
    return len(calibration.items) + checkpoint.config.vision.depth + layers * passes


def check_collection(checkpoint: Checkpoint, out: Path, recipe: Recipe, calibration: Calibration) -> None:
    """Raise `InputError` where the disk has no room for what is kept meanwhile."""
    text = checkpoint.config.text
    # Samples and both streams are embeddings, of questions that are seldom longer than this.
    streams = 3 * len(calibration.items) * 1024 * text.hidden_size * 4
    size = bundle_bytes(checkpoint, recipe)
    # At 8 bits nothing takes twice as much.
    size += int(min((calibration.mixed_mb or 0) * 1e6, size))
    check_space(out, size + max(bundle_bytes(checkpoint, _SPEAKER), streams + size))


def collect(
    checkpoint: Checkpoint,
    out: Path,
    recipe: Recipe,
    calibration: Calibration,
    progress: Progress = lambda what: None,
    samples: Sequence[Sample] | None = None,
) -> Collected:
    """Run the questions through the model and decide what `recipe` and `calibration` leave open.

    All that was done is kept in a folder beside `out`, under a name of its own for these very settings: after an
    interruption the same call goes on from there. samples: what `collect_samples` made of the same questions, so that
    several recipes of one checkpoint share them; made here where they are not given.
    """
    workdir = Workdir(out.resolve().with_name(f".{out.name}.calibration-{_digest(checkpoint, recipe, calibration)}"))
    if samples is None:
        samples = collect_samples(checkpoint, calibration, workdir, progress)
    recipe = dataclasses.replace(recipe, calibration=CalibrationData(calibration.name, len(calibration.items)))
    read = smoothed_reader(checkpoint, recipe)
    if calibration.mixed_mb is not None:
        chosen = workdir.eight_bits()
        if chosen is None:
            found = sensitivities(checkpoint.config.text, read, recipe, samples, calibration.threads, progress)
            chosen = choose_eight_bits(found, calibration.mixed_mb * 1e6)
            workdir.save_eight_bits(chosen)
        else:
            for _ in range(checkpoint.config.text.layers + 1):
                progress("done before")
        recipe = dataclasses.replace(recipe, eight_bits=chosen)
    if recipe.calibrated:
        Calibrator(checkpoint.config.text, read, recipe, calibration.threads).run(samples, workdir, progress)
    return Collected(recipe, workdir)


def collect_samples(
    checkpoint: Checkpoint, calibration: Calibration, workdir: Workdir, progress: Progress = lambda what: None
) -> list[Sample]:
    """The questions with the model's own answers, as the decoder reads them; kept in `workdir`, or found there."""
    config, speaker = checkpoint.config, workdir.path / "speaker"
    samples = workdir.samples()
    if samples is not None:
        for _ in range(len(calibration.items) + config.vision.depth):
            progress("done before")
        return samples
    if not speaker.exists():
        write_bundle(checkpoint, speaker, _SPEAKER)
    answers = answer_all(speaker, calibration.items, calibration.threads, progress)
    asked = read_all(speaker, calibration.items, answers)
    samples = make_samples(
        asked, checkpoint.read, config.vision, config.text, threads=calibration.threads, progress=progress
    )
    workdir.save_samples(samples)
    shutil.rmtree(speaker)
    return samples


def smoothed_reader(checkpoint: Checkpoint, recipe: Recipe) -> ReadTensor:
    """Reads the decoder with the scales folded in that its weights alone decide."""
    if not recipe.smooth:
        return checkpoint.read
    scales = smooth_scales(checkpoint, recipe, lambda what: None)
    return FoldedReader(checkpoint.read, text_sites(checkpoint.config.text), scales)


def _digest(checkpoint: Checkpoint, recipe: Recipe, calibration: Calibration) -> str:
    """A name for everything that the results depend on."""
    files = sorted({info.file for info in checkpoint.tensors.values()})
    questions = [[item.problem, *map(sha256, item.images)] for item in calibration.items]
    version, stamps = metadata.version("medvlm"), [_stamp(file) for file in files]
    settings = [version, recipe.to_json(), calibration.mixed_mb, stamps, questions]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]


def _stamp(path: Path) -> list[Any]:
    """What tells a file from a changed one without reading it."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
