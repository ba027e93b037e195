"""Positions and rotary tables, worked out by hand; tests/test_token_exact.py holds them against transformers."""

import math

import numpy as np
import pytest
from medvlm.demo.random_checkpoint import TEXT, VISION
from medvlm.runtime.positions import mrope_positions, mrope_tables, vision_tables

IMAGE = 9


def test_text_counts_up_on_all_axes() -> None:
    assert mrope_positions(np.array([5, 6, 7]), IMAGE, []).tolist() == [[0, 1, 2]] * 3


def test_an_image_counts_rows_and_columns_and_what_follows_starts_after_the_largest() -> None:
    tokens = np.array([1, *[IMAGE] * 6, 2, 3])
    assert mrope_positions(tokens, IMAGE, [(2, 3)]).tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4, 5],
        [0, 1, 1, 1, 2, 2, 2, 4, 5],
        [0, 1, 2, 3, 1, 2, 3, 4, 5],
    ]


def test_images_without_text_between_them_follow_each_other() -> None:
    tokens = np.array([IMAGE, IMAGE, IMAGE, 1])
    assert mrope_positions(tokens, IMAGE, [(1, 2), (1, 1)]).tolist() == [[0, 0, 2, 3], [0, 0, 2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("tokens", "grids"),
    [([1, IMAGE], [(1, 2)]), ([1, IMAGE], []), ([IMAGE, 1, IMAGE], [(1, 2)])],
)
def test_tokens_and_grids_that_disagree_are_refused(tokens: list[int], grids: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="image"):
        mrope_positions(np.array(tokens), IMAGE, grids)


def test_each_frequency_reads_the_axis_of_its_section() -> None:
    cos, sin = mrope_tables(np.array([[2], [3], [5]]), TEXT)
    axis = [2] * 4 + [3] * 6 + [5] * 6
    angles = [position * TEXT.rope_theta ** (-2 * i / TEXT.head_size) for i, position in enumerate(axis)]
    np.testing.assert_allclose(cos[0], [math.cos(a) for a in angles], atol=1e-6)
    np.testing.assert_allclose(sin[0], [math.sin(a) for a in angles], atol=1e-6)


def test_vision_angles_come_in_the_order_of_the_merge() -> None:
    cos, _ = vision_tables((2, 4), VISION)
    quarter = VISION.head_size // 4
    # Frequency 0 is 1, so that its cosine tells the row and the column.
    rows, columns = np.arccos(cos[:, 0]).round(4), np.arccos(cos[:, quarter]).round(4)
    assert rows.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert columns.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
