"""An RGB image as the patches that the vision encoder reads.

The arithmetic is that of `Qwen2VLImageProcessorPil` in transformers 5.23 (models/qwen2_vl/
image_processing_pil_qwen2_vl.py) and of its base, `PilBackend`: a bicubic resize by Pillow to whole merged patches;
levels times 1/255 in float64, rounded to float32; minus the mean, over the standard deviation, in float32. A level is
one of 256, so all that follows the resize is one table here.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from .errors import InputError
from .manifest import Preprocessing

MAX_ASPECT_RATIO = 200


@dataclass(frozen=True)
class Patches:
    """One image for the vision encoder.

    `pixel_values`: [grid_h * grid_w, 3 * temporal_patch_size * patch_size**2] float32. The rows run over the merged
    patches, row by row of the image, and within each over its `merge_size`^2 patches; a row is channel, time, y, x.
    `grid`: (grid_h, grid_w), the image's height and width in patches.
    """

    pixel_values: npt.NDArray[np.float32]
    grid: tuple[int, int]


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (height, width) in pixels to which an image is resized before it is cut into patches.

    Both are multiples of `factor`, their product is within `min_pixels` and `max_pixels`, and the aspect ratio is kept
    as nearly as that allows; a very thin image may come out above `max_pixels`, since no side goes below `factor`. The
    formula is `smart_resize` of transformers' image_processing_pil_qwen2_vl.py.

    Raises `InputError` where a side is not positive, or one is more than 200 times the other.
    """
    if min(height, width) < 1:
        raise InputError(f"the image has no pixels ({width} x {height})")
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise InputError(
            f"the image is {width} x {height} pixels; crop it until no side is over {MAX_ASPECT_RATIO} times the other"
        )
    # Python's round, half to even, is part of the formula.
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def token_grid(height: int, width: int, settings: Preprocessing) -> tuple[int, int]:
    """The (height, width) in visual tokens, one for each merged patch, of an image of `height` x `width` pixels.

    Raises `InputError` as `smart_resize` does.
    """
    side = _merged_patch_side(settings)
    new_height, new_width = _resized(height, width, settings)
    return new_height // side, new_width // side


def preprocess(image: Image.Image, settings: Preprocessing) -> Patches:
    """Resize `image`, which is of mode RGB, and cut it into normalized patches.

    Raises `InputError` as `smart_resize` does, and where the image has another mode.
    """
    if image.mode != "RGB":
        raise InputError(f"the image has mode {image.mode} and not RGB; read it with load_image")
    height, width = _resized(image.height, image.width, settings)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    grid = height // settings.patch_size, width // settings.patch_size
    return Patches(_patchify(pixels, _normalized_levels(settings), settings), grid)


def with_pixel_limits(settings: Preprocessing, min_pixels: int | None, max_pixels: int | None) -> Preprocessing:
    """`settings` with other limits on the pixels of a resized image; None keeps the one that is there.

    Raises `InputError` where a limit is not positive, no merged patch fits into `max_pixels`, or min is above max.
    """
    low = settings.min_pixels if min_pixels is None else min_pixels
    high = settings.max_pixels if max_pixels is None else max_pixels
    side = _merged_patch_side(settings)
    if low < 1:
        raise InputError(f"min_pixels is {low}; give at least 1")
    if high < side**2:
        raise InputError(f"max_pixels is {high}; give at least {side**2}, one patch of {side} x {side}")
    if low > high:
        raise InputError(f"min_pixels ({low}) is above max_pixels ({high}); lower the one or raise the other")
    return dataclasses.replace(settings, min_pixels=low, max_pixels=high)


def _merged_patch_side(settings: Preprocessing) -> int:
    """Pixels along one side of the square that becomes one visual token."""
    return settings.patch_size * settings.merge_size


def _resized(height: int, width: int, settings: Preprocessing) -> tuple[int, int]:
    return smart_resize(height, width, _merged_patch_side(settings), settings.min_pixels, settings.max_pixels)


def _normalized_levels(settings: Preprocessing) -> npt.NDArray[np.float32]:
    """[3, 256] float32: what each of the 256 levels of each channel becomes."""
    levels = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    mean = np.array(settings.image_mean, dtype=np.float32)[:, None]
    std = np.array(settings.image_std, dtype=np.float32)[:, None]
    return (levels - mean) / std


def _patchify(
    pixels: npt.NDArray[np.uint8], table: npt.NDArray[np.float32], settings: Preprocessing
) -> npt.NDArray[np.float32]:
    """`pixels` [height, width, 3] looked up in `table` [3, 256] and laid out as `Patches.pixel_values`.

    One row of merged patches and one channel at a time, so that nothing but the result is as large as the result:

        rows [merge_y * patch_y, width] -> [merge_y, patch_y, columns, merge_x, patch_x]
                                        -> [columns, merge_y, merge_x, time, patch_y, patch_x]
    """
    patch, merge, side = settings.patch_size, settings.merge_size, _merged_patch_side(settings)
    bands, columns = pixels.shape[0] // side, pixels.shape[1] // side
    out = np.empty((bands, columns, merge, merge, 3, settings.temporal_patch_size, patch, patch), dtype=np.float32)
    for band, rows in enumerate(pixels.reshape(bands, side, columns * side, 3)):
        for channel in range(3):
            values = table[channel][rows[..., channel]].reshape(merge, patch, columns, merge, patch)
            # A still image fills every moment of the temporal patch: the new axis is broadcast.
            out[band, :, :, :, channel] = values.transpose(2, 0, 3, 1, 4)[:, :, :, None]
    return out.reshape(bands * columns * merge**2, -1)
