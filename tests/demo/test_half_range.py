"""Which layers leave the range of half floats: none of the stress model's, and those that are told to."""

from pathlib import Path

import numpy as np
import pytest
from medvlm.demo.dataset import Item, make_item
from medvlm.demo.evaluate import CHECKPOINT
from medvlm.demo.half_range import LIMIT, beyond, largest_values
from medvlm.demo.stress import write_stress


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return [make_item("test", index) for index in range(3)]


def test_no_layer_of_the_stress_model_comes_near_the_end_of_the_range(tmp_path: Path, items: list[Item]) -> None:
    """So that none need stay in float32 by default; the figures are in docs/gpu.md."""
    write_stress(CHECKPOINT, tmp_path / "stress")
    found = largest_values(tmp_path / "stress", items)
    assert {"blocks.0", "blocks.3", "merger", "layers.0", "layers.3", "lm_head"} <= found.keys()
    assert max(found.values()) < 0.1 * LIMIT
    assert beyond(found) == []


def test_layers_beyond_the_range_are_named_as_the_exporter_takes_them(tmp_path: Path, items: list[Item]) -> None:
    """A thousand times larger channels of the gated MLPs: the same function, which half floats do not hold."""
    write_stress(CHECKPOINT, tmp_path / "stress", factor=5000.0)
    flagged = beyond(largest_values(tmp_path / "stress", items))
    assert "layers.3" in flagged
    assert "lm_head" not in flagged


def test_what_is_no_number_is_beyond() -> None:
    assert beyond({"layers.0": float("nan"), "layers.1": np.inf, "layers.2": 0.4 * LIMIT}) == ["layers.0", "layers.1"]
