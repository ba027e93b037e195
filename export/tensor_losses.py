"""What each product of a bundle lost, gathered while the bundle is written."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quant.error import relative_error
from ..runtime.comparison import Comparison
from ..runtime.manifest import Manifest
from .convert import GraphName
from .recipe import CALIBRATED, HEAD_SCOPE
from .report import Calibration, Report, TensorLoss
from .stored import Stored


class TensorLosses:
    """Collects the losses; give it to `write_bundle` as what observes."""

    def __init__(self) -> None:
        self.tensors: list[TensorLoss] = []

    def __call__(self, graph: GraphName, scope: str, weight: NDArray[np.float32], stored: Stored) -> None:
        """Note what was stored for the weight [out, in] of a product."""
        self.tensors.append(
            TensorLoss(
                part="head" if scope == HEAD_SCOPE else graph,
                scope=scope,
                precision=stored.precision.label,
                weights=weight.size,
                bytes=stored.nbytes,
                relative_error=relative_error(weight, stored.values),
            )
        )


def make_report(manifest: Manifest, losses: TensorLosses, found: Comparison, dataset: str, seconds: float) -> Report:
    """The report of a bundle that was compared with its checkpoint. seconds: of exporting and measuring together."""
    return Report(
        source=manifest.source.name,
        created_by=manifest.created_by,
        recipe=manifest.recipe,
        total_bytes=sum(file.size for file in manifest.files.values()),
        tensors=tuple(losses.tensors),
        dataset=dataset,
        comparison=found,
        calibration=_calibration(manifest.recipe),
        seconds=seconds,
    )


def _calibration(recipe: dict[str, Any]) -> Calibration | None:
    """What the decoder's method saw, where it looks at activations."""
    method, data = recipe["decoder"].get("method"), recipe["calibration"]
    if method not in CALIBRATED or data is None:
        return None
    return Calibration(dataset=data["dataset"], images=data["questions"], method=method)
