"""The reference is `Qwen2VLImageProcessorPil` of transformers itself."""

import dataclasses
import io
import math
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from medvlm.runtime.errors import InputError
from medvlm.runtime.images import load_image
from medvlm.runtime.manifest import Preprocessing
from medvlm.runtime.preprocess import Patches, preprocess, smart_resize, token_grid, with_pixel_limits
from PIL import Image
from transformers.image_utils import load_image as transformers_load_image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as transformers_smart_resize

# The values of Qwen2-VL's preprocessor_config.json, but for max_pixels: training's, which also keeps these tests quick.
HUB = Preprocessing(
    min_pixels=3136,
    max_pixels=401408,
    patch_size=14,
    temporal_patch_size=2,
    merge_size=2,
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.26862954, 0.26130258, 0.27577711),
)
EXIF_ORIENTATION = 274
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def reference(image: Image.Image, settings: Preprocessing = HUB) -> Patches:
    processor = Qwen2VLImageProcessorPil(
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        patch_size=settings.patch_size,
        temporal_patch_size=settings.temporal_patch_size,
        merge_size=settings.merge_size,
        image_mean=list(settings.image_mean),
        image_std=list(settings.image_std),
    )
    batch: Any = processor(images=[image], return_tensors="np")
    time, grid_h, grid_w = (int(n) for n in batch["image_grid_thw"][0])
    assert time == 1
    return Patches(batch["pixel_values"], (grid_h, grid_w))


def noise(*shape: int, top: int = 256) -> npt.NDArray[np.int64]:
    return np.random.default_rng(7).integers(0, top, shape)


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(noise(height, width, 3).astype(np.uint8))


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def assert_same(ours: Patches, theirs: Patches) -> None:
    assert ours.grid == theirs.grid
    assert ours.pixel_values.dtype == theirs.pixel_values.dtype == np.float32
    assert ours.pixel_values.shape == theirs.pixel_values.shape
    assert np.abs(ours.pixel_values - theirs.pixel_values).max() <= 1e-6


def ours(source: Image.Image | bytes) -> Patches:
    return preprocess(load_image(source).pixels, HUB)


SIZES = [(1, 1), (28, 28), (224, 224), (1024, 1024), (1462, 1010), (3000, 200), (200, 3000), (29, 83)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_patches_are_those_of_transformers_at_every_size(height: int, width: int) -> None:
    image = picture(height, width)
    assert_same(preprocess(image, HUB), reference(image))


def test_patches_are_those_of_transformers_without_any_resize() -> None:
    image = picture(56, 84)
    result = preprocess(image, HUB)
    assert result.grid == (4, 6)
    assert np.array_equal(result.pixel_values, reference(image).pixel_values)


@pytest.mark.parametrize(
    ("min_pixels", "max_pixels"), [(784, 784), (3136, 12845056), (3136, 50176), (200704, 401408), (250000, 250000)]
)
@pytest.mark.parametrize(("height", "width"), [(40, 60), (224, 224), (700, 333)])
def test_pixel_limits_act_as_in_transformers(min_pixels: int, max_pixels: int, height: int, width: int) -> None:
    settings = with_pixel_limits(HUB, min_pixels, max_pixels)
    image = picture(height, width)
    assert_same(preprocess(image, settings), reference(image, settings))


@pytest.mark.parametrize(("patch_size", "temporal_patch_size", "merge_size"), [(14, 1, 2), (8, 2, 3), (16, 3, 1)])
def test_patch_sizes_act_as_in_transformers(patch_size: int, temporal_patch_size: int, merge_size: int) -> None:
    settings = dataclasses.replace(
        HUB, patch_size=patch_size, temporal_patch_size=temporal_patch_size, merge_size=merge_size
    )
    image = picture(90, 130)
    assert_same(preprocess(image, settings), reference(image, settings))


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "CMYK", "YCbCr", "HSV"])
def test_modes_without_alpha_are_read_as_the_processor_reads_them(mode: str) -> None:
    image = picture(100, 130).convert(mode)
    assert_same(ours(image), reference(image))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opaque_alpha_is_read_as_the_processor_reads_it(mode: str) -> None:
    image = picture(100, 130).convert(mode)
    assert_same(ours(image), reference(image))


def test_transparency_is_read_as_the_processor_reads_it() -> None:
    rgba = Image.fromarray(noise(100, 130, 4).astype(np.uint8))
    for image in (rgba, rgba.convert("LA")):
        assert_same(ours(image), reference(image))


def test_a_transparent_palette_is_read_as_the_processor_reads_it() -> None:
    stored = file_of(picture(100, 130).convert("P"), "PNG", transparency=bytes(range(256)))
    assert_same(ours(stored), reference(Image.open(io.BytesIO(stored))))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_files_are_read_as_transformers_reads_them(kind: str, mode: str) -> None:
    stored = file_of(picture(100, 130).convert(mode), kind)
    assert_same(ours(stored), reference(transformers_load_image(Image.open(io.BytesIO(stored)))))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_equals_the_reference_on_the_scaled_image(kind: str) -> None:
    deep = noise(100, 130, top=4096)
    deep[0, 0] = 4095
    by_hand = np.array([[round(int(v) * 255 / 4095) for v in row] for row in deep], dtype=np.uint8)
    stored = file_of(Image.fromarray(deep.astype(np.uint16)), kind)
    assert_same(ours(stored), reference(Image.fromarray(by_hand)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, *TRANSPOSITIONS])
def test_exif_orientation_equals_the_reference_on_the_turned_image(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    image = picture(60, 90)
    stored = file_of(image, kind, exif=exif)
    as_stored = Image.open(io.BytesIO(file_of(image, kind))).convert("RGB")
    upright = as_stored.transpose(TRANSPOSITIONS[orientation]) if orientation > 1 else as_stored
    assert_same(ours(stored), reference(upright))


def test_one_merged_patch_is_laid_out_channel_time_y_x() -> None:
    # Worked out by hand: with mean 0 and std 1/255 a value is the level itself; 2 x 2 patches of 2 x 2 pixels.
    settings = Preprocessing(16, 16, 2, 2, 2, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
    levels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    result = preprocess(Image.fromarray(levels), settings)
    red, green, blue = ([0, 3, 12, 15], [1, 4, 13, 16], [2, 5, 14, 17])
    assert result.grid == (2, 2)
    assert result.pixel_values[0] == pytest.approx([*red, *red, *green, *green, *blue, *blue])
    assert result.pixel_values[1, :4] == pytest.approx([6, 9, 18, 21])
    assert result.pixel_values[2, :4] == pytest.approx([24, 27, 36, 39])


def test_an_image_that_is_not_rgb_is_refused() -> None:
    with pytest.raises(InputError, match=r"mode L and not RGB; read it with load_image$"):
        preprocess(Image.new("L", (28, 28)), HUB)


def test_preprocessing_needs_little_more_memory_than_its_result() -> None:
    image = picture(1008, 1008)
    settings = with_pixel_limits(HUB, None, 12845056)
    tracemalloc.start()
    try:
        size = preprocess(image, settings).pixel_values.nbytes
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.25 * size


positive = st.integers(1, 20_000)


@given(height=positive, width=positive, factor=st.sampled_from([8, 14, 28, 32]), limits=st.tuples(positive, positive))
def test_smart_resize_is_that_of_transformers(height: int, width: int, factor: int, limits: tuple[int, int]) -> None:
    min_pixels, max_pixels = min(limits), factor**2 * max(limits)
    if max(height, width) / min(height, width) > 200:
        with pytest.raises(InputError):
            smart_resize(height, width, factor, min_pixels, max_pixels)
        return
    result = smart_resize(height, width, factor, min_pixels, max_pixels)
    assert result == transformers_smart_resize(height, width, factor, min_pixels, max_pixels)
    assert result[0] % factor == result[1] % factor == 0
    assert min(result) >= factor


@given(height=st.integers(1, 3000), ratio=st.floats(1, 8))
def test_smart_resize_keeps_to_the_limits_unless_the_image_is_thin(height: int, ratio: float) -> None:
    new_height, new_width = smart_resize(height, round(height * ratio), 28, HUB.min_pixels, HUB.max_pixels)
    assert HUB.min_pixels <= new_height * new_width <= HUB.max_pixels


@given(height=st.integers(1, 5000), width=st.integers(1, 5000))
def test_visual_tokens_are_a_quarter_of_transformers_patches(height: int, width: int) -> None:
    if max(height, width) / min(height, width) > 200:
        return
    processor = Qwen2VLImageProcessorPil(min_pixels=HUB.min_pixels, max_pixels=HUB.max_pixels)
    assert math.prod(token_grid(height, width, HUB)) * 4 == processor.get_number_of_image_patches(height, width)


@pytest.mark.parametrize(
    ("height", "width", "tokens"), [(224, 224, 64), (504, 504, 324), (56, 56, 4), (1, 1, 4), (1024, 1024, 484)]
)
def test_visual_tokens_of_known_sizes(height: int, width: int, tokens: int) -> None:
    # 1024 x 1024 is above max_pixels: 512 tokens at most, sqrt(512) = 22.6, so 22 x 22.
    assert math.prod(token_grid(height, width, HUB)) == tokens


def test_a_side_200_times_the_other_is_read_and_one_pixel_more_is_not() -> None:
    assert smart_resize(10, 2000, 28, 3136, 401408) == transformers_smart_resize(10, 2000, 28, 3136, 401408)
    with pytest.raises(InputError) as error:
        smart_resize(10, 2001, 28, 3136, 401408)
    assert str(error.value) == "the image is 2001 x 10 pixels; crop it until no side is over 200 times the other"
    with pytest.raises(InputError):
        token_grid(2001, 10, HUB)
    with pytest.raises(InputError):
        preprocess(Image.new("RGB", (2001, 10)), HUB)


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0), (-1, 5)])
def test_an_image_without_pixels_is_refused(height: int, width: int) -> None:
    with pytest.raises(InputError, match=f"^the image has no pixels \\({width} x {height}\\)$"):
        smart_resize(height, width, 28, 3136, 401408)


def test_pixel_limits_replace_only_what_is_given() -> None:
    assert with_pixel_limits(HUB, None, None) == HUB
    assert with_pixel_limits(HUB, 784, None) == dataclasses.replace(HUB, min_pixels=784)
    assert with_pixel_limits(HUB, None, 3136) == dataclasses.replace(HUB, max_pixels=3136)
    assert with_pixel_limits(HUB, 784, 784) == dataclasses.replace(HUB, min_pixels=784, max_pixels=784)


@pytest.mark.parametrize(
    ("min_pixels", "max_pixels", "message"),
    [
        (0, None, "min_pixels is 0; give at least 1"),
        (-5, None, "min_pixels is -5; give at least 1"),
        (None, 0, "max_pixels is 0; give at least 784, one patch of 28 x 28"),
        (None, -5, "max_pixels is -5; give at least 784, one patch of 28 x 28"),
        (1, 783, "max_pixels is 783; give at least 784, one patch of 28 x 28"),
        (5000, 4000, "min_pixels (5000) is above max_pixels (4000); lower the one or raise the other"),
        (500000, None, "min_pixels (500000) is above max_pixels (401408); lower the one or raise the other"),
        (None, 1000, "min_pixels (3136) is above max_pixels (1000); lower the one or raise the other"),
    ],
)
def test_pixel_limits_that_cannot_hold_are_refused(
    min_pixels: int | None, max_pixels: int | None, message: str
) -> None:
    with pytest.raises(InputError) as error:
        with_pixel_limits(HUB, min_pixels, max_pixels)
    assert str(error.value) == message
