"""The vision encoder: one image's patches to the rows of its visual tokens."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .manifest import VisionDims
from .positions import vision_tables
from .preprocess import Patches

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class VisionEncoder:
    """Runs the session of the vision graph."""

    def __init__(self, session: "InferenceSession", dims: VisionDims, options: Any) -> None:
        """options: onnxruntime.RunOptions of every run, which its types do not name."""
        self._session, self._dims, self._options = session, dims, options

    def encode(self, patches: Patches) -> NDArray[np.float32]:
        """The image's features [visual tokens, out_dim]."""
        cos, sin = vision_tables(patches.grid, self._dims)
        inputs = {"pixel_values": patches.pixel_values, "cos": cos, "sin": sin}
        (features,) = self._session.run(["image_features"], inputs, self._options)
        return np.asarray(features)
