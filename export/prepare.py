"""What is decided about the weights before any is written: scales to fold in, and which blocks stand for what."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..quant import blockwise
from ..quant.scaling import outlier_scales
from .checkpoint import Checkpoint
from .folds import FoldSite, Scales, text_sites, vision_sites
from .layers import ReadTensor
from .packing import Pack, pack_blocks
from .recipe import HEAD_SCOPE, Blockwise, Float16, Float32, Recipe
from .workdir import Workdir


@dataclass(frozen=True)
class Prepared:
    """Scales by the name of their site, and what packs the decoder's and the head's products."""

    vision_scales: Scales
    text_scales: Scales
    pack: Pack


def prepare(
    checkpoint: Checkpoint, recipe: Recipe, calibrated: Workdir | None, progress: Callable[[str], None]
) -> Prepared:
    """Choose the scales of `recipe`, from weights alone or from what a calibration left."""
    vision_scales: Scales = {}
    text_scales: Scales = {}
    if recipe.smooth:
        if not isinstance(recipe.vision, Float32 | Float16):
            vision_scales = expected_scales(checkpoint.read, vision_sites(checkpoint.config.vision), progress)
        text_scales = smooth_scales(checkpoint, recipe, progress)
    if calibrated is not None:
        text_scales = {**text_scales, **calibrated.scales()}
    return Prepared(vision_scales, text_scales, _packer(recipe, calibrated))


def _packer(recipe: Recipe, calibrated: Workdir | None) -> Pack:
    """Packs the decoder's products and the head's: as a calibration did, else by weights alone."""

    def pack(scope: str, weight: NDArray[np.float32], precision: Blockwise) -> blockwise.Blockwise:
        blocks = calibrated.blocks(scope) if calibrated else None
        chosen = recipe.precision_of(scope)
        return blocks or pack_blocks(scope, weight, chosen if isinstance(chosen, Blockwise) else precision)

    return pack


def smooth_scales(checkpoint: Checkpoint, recipe: Recipe, progress: Callable[[str], None]) -> Scales:
    """The decoder's scales by its weights alone; none where AWQ chooses them, or nothing is rounded."""

    def wanted(site: FoldSite) -> bool:
        precision = recipe.precision_of(site.scope)
        if isinstance(precision, Blockwise):
            return "awq" not in precision.method
        return site.scope != HEAD_SCOPE and recipe.prefill is not None

    return expected_scales(checkpoint.read, filter(wanted, text_sites(checkpoint.config.text)), progress)


def expected_scales(
    read: ReadTensor, sites: Iterable[FoldSite], progress: Callable[[str], None]
) -> dict[str, NDArray[np.float32]]:
    """Scales of outlier channels, by site, for activations as the weights let them be expected."""
    scales = {}
    for site in sites:
        found = outlier_scales([read(name) for name in site.read], site.moments(read), site.columns)
        if (found != 1).any():
            scales[site.name] = found
        progress(f"scales of {site.name}")
    return scales
