"""`python -m medvlm.demo.stress OUT`: a checkpoint that is the same function and looks harder to a quantizer.

Real checkpoints have a few channels whose activations are tens of times larger than the others (LLM.int8(), Dettmers
et al. 2022; Massive Activations, Sun et al. 2024); the demo model, small and briefly trained, has none. Here a handful
of channels at every place where scales fold (`export.folds`) are made larger where they are made, and what reads them
smaller by the same factor.
"""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from ..export.chat_template import TEMPLATE_FILES
from ..export.checkpoint import Checkpoint, open_checkpoint
from ..export.config import CONFIG, GENERATION, PREPROCESSOR_FILES, read_json
from ..export.folds import FoldedReader, FoldSite, text_sites, vision_sites
from ..export.output import atomic_directory
from ..export.safetensors import SINGLE
from ..export.tensors import HEAD
from ..runtime.bundle import TOKENIZER
from ..runtime.commands import ErrorCommand
from ..runtime.errors import InputError
from .evaluate import CHECKPOINT
from .hub_layout import write_safetensors

FACTOR, CHANNELS = 50.0, 6
# Attention's values are few, and each is read by every head of a group.
_VALUE_CHANNELS = 2


def write_stress(
    checkpoint: Path, out: Path, *, factor: float = FACTOR, channels: int = CHANNELS, seed: int = 0
) -> None:
    """Write the stress version of `checkpoint` into the new directory `out`, in F32 and with a head of its own.

    factor: how much larger the chosen channels get. channels: how many at each site, two at most where they are
    attention's values; another `seed` chooses others. Raises `InputError` for an argument that will not do and
    `CheckpointError` for a checkpoint.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise InputError(f"factor is {factor:g}; give a number above 0")
    if channels < 1:
        raise InputError(f"channels is {channels}; give at least 1")
    opened = open_checkpoint(checkpoint)
    _check_new(out)
    config = opened.config
    sites = [*vision_sites(config.vision), *text_sites(config.text)]
    read = FoldedReader(opened.read, sites, _scales(sites, factor, channels, seed))
    # The head reads larger channels of the final norm, so that it is no longer the embedding table.
    names = [*opened.tensors] if HEAD in opened.tensors else [*opened.tensors, HEAD]
    with atomic_directory(out) as directory:
        write_safetensors(directory / SINGLE, ((name, read(name)) for name in names), "F32")
        write_settings(opened, directory, tied=False)


def _scales(sites: Sequence[FoldSite], factor: float, channels: int, seed: int) -> dict[str, NDArray[np.float32]]:
    """Scales [channels] of every site: what makes a chosen channel is divided by them, and so grows by `factor`."""
    rng, scales = np.random.default_rng(seed), {}
    for site in sites:
        wanted = min(channels, _VALUE_CHANNELS) if "/attn/" in site.name else channels
        scales[site.name] = np.ones(site.channels, np.float32)
        scales[site.name][rng.choice(site.channels, min(wanted, site.channels), replace=False)] = 1 / factor
    return scales


def write_settings(opened: Checkpoint, directory: Path, *, tied: bool) -> None:
    """Everything but the weights, as the checkpoint has it; config.json says that they are F32, and whether `tied`."""
    for name in (TOKENIZER, GENERATION, *PREPROCESSOR_FILES, *TEMPLATE_FILES):
        if (opened.directory / name).is_file():
            shutil.copyfile(opened.directory / name, directory / name)
    config = read_json(opened.directory / CONFIG)
    for section in (config, config.get("text_config")):
        if isinstance(section, dict):
            # transformers 5 writes `dtype`, the hub's files have `torch_dtype`.
            stored = {key: "float32" for key in ("dtype", "torch_dtype") if key in section}
            section |= {"tie_word_embeddings": tied, **stored}
    (directory / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")


def _check_new(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} exists; choose another OUT")
    if not out.resolve().parent.is_dir():
        raise InputError(f"{out.parent} is not a directory; create it first")


@click.command(cls=ErrorCommand)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    default=CHECKPOINT,
    help="A checkpoint in the hub's form  [default: the demo's own]",
)
@click.option("--factor", default=FACTOR, show_default=True, help="How much larger the chosen channels get.")
@click.option("--channels", default=CHANNELS, show_default=True, help="How many at each place.")
@click.option("--seed", default=0, show_default=True, help="Another one chooses other channels.")
def main(out: Path, checkpoint: Path, factor: float, channels: int, seed: int) -> None:
    """Write a checkpoint to OUT that is the same function as the demo's, with a few far larger channels."""
    write_stress(checkpoint, out, factor=factor, channels=channels, seed=seed)


if __name__ == "__main__":
    main()
