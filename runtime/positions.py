"""Where tokens stand: M-RoPE positions and the rotary tables of both graphs."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .manifest import TextDims, VisionDims

# Qwen2-VL's VisionRotaryEmbedding; no configuration of the hub names it.
_VISION_THETA = 10_000.0


def mrope_positions(
    token_ids: NDArray[np.int64], image_token_id: int, grids: Sequence[tuple[int, int]]
) -> NDArray[np.int64]:
    """The (t, h, w) position of every token, as transformers' `Qwen2VLModel.get_rope_index` gives them.

    token_ids: [tokens], each image a run of `image_token_id` as long as its grid of visual tokens says.
    grids: (height, width) of each image in visual tokens, in order.
    Returns [3, tokens]. Text counts up on all three axes; an image keeps t, and h and w count its rows and columns;
    what follows it starts at the largest position so far + 1.
    Raises ValueError where the runs and the grids disagree.
    """
    is_image = token_ids == image_token_id
    if int(is_image.sum()) != sum(h * w for h, w in grids):
        raise ValueError("the prompt's image tokens and the images' grids differ in number")
    positions = np.empty((3, token_ids.size), np.int64)
    slot = following = 0
    for height, width in grids:
        start = slot + int(np.argmax(is_image[slot:]))
        following = _count_text(positions, slot, start, following)
        slot = start + height * width
        if not is_image[start:slot].all():
            raise ValueError("an image's tokens are interrupted")
        rows, columns = np.divmod(np.arange(height * width), width)
        positions[:, start:slot] = following + np.stack([np.zeros_like(rows), rows, columns])
        following += max(height, width)
    _count_text(positions, slot, token_ids.size, following)
    return positions


def _count_text(positions: NDArray[np.int64], start: int, end: int, following: int) -> int:
    positions[:, start:end] = following + np.arange(end - start)
    return following + end - start


def followed(positions: NDArray[np.int64], tokens: int) -> NDArray[np.int64]:
    """`positions` [3, n], and those of text behind them, which counts up on all axes: [3, n + tokens]."""
    following = positions.max() + 1 + np.arange(tokens)
    return np.concatenate([positions, np.broadcast_to(following, (3, tokens))], axis=1)


def mrope_tables(positions: NDArray[np.int64], dims: TextDims) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The cosines and sines [tokens, head_size / 2] of `positions` [3, tokens].

    Frequency i is theta^(-2i / head_size); `mrope_section` says which axis each frequency reads: the first
    section t, the second h, the third w.
    """
    half = dims.head_size // 2
    frequencies = _inverse_frequencies(half, dims.rope_theta)
    axes = np.repeat(np.arange(3), dims.mrope_section)
    angles = positions[axes].T.astype(np.float32) * frequencies
    return np.cos(angles), np.sin(angles)


def turn_keys(keys: NDArray[np.float32], by: int, dims: TextDims) -> None:
    """Move keys [..., head_size] by so many positions on all three axes, in place.

    A key at position p was turned by p's angles; turning it on by those of `by` gives it at p + `by`.
    """
    (cos,), (sin,) = mrope_tables(np.full((3, 1), by), dims)
    first, second = np.split(keys, 2, axis=-1)
    turned = first * cos - second * sin
    second[:] = second * cos + first * sin
    first[:] = turned


def vision_tables(grid: tuple[int, int], dims: VisionDims) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The cosines and sines [patches, head_size / 2] of an image of `grid` (height, width) patches.

    The first half of the frequencies reads the patch's row and the second its column. Patches come in the order of the
    2x2 merge: the patches of one visual token are neighbours.
    """
    merge = dims.merge_size
    rows, columns = np.indices(grid)
    order = [
        axis.reshape(grid[0] // merge, merge, grid[1] // merge, merge).transpose(0, 2, 1, 3).ravel()
        for axis in (rows, columns)
    ]
    frequencies = _inverse_frequencies(dims.head_size // 4, _VISION_THETA)
    angles = np.concatenate([axis[:, None].astype(np.float32) * frequencies for axis in order], axis=1)
    return np.cos(angles), np.sin(angles)


def _inverse_frequencies(count: int, theta: float) -> NDArray[np.float32]:
    """theta^(-i / count) for i in 0..count - 1, in float32 throughout as transformers computes them."""
    exponents = np.arange(count, dtype=np.float32) / np.float32(count)
    return np.float32(1) / np.float32(theta) ** exponents
