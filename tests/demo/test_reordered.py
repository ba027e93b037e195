"""Checkpoints with their channels in another order: the same function, other blocks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from medvlm.demo.evaluate import CHECKPOINT
from medvlm.demo.quantization.orders import main, table
from medvlm.demo.reordered import write_reordered
from medvlm.export.checkpoint import open_checkpoint
from medvlm.quant import dequantize, quantize
from transformers import Qwen2VLForConditionalGeneration

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def reordered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reordered") / "checkpoint"
    write_reordered(CHECKPOINT, out, seed=3)
    return out


def logits(checkpoint: Path) -> torch.Tensor:
    model = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    # One image of 8 x 8 patches: 16 visual tokens, between words.
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randn(64, 1176, generator=rng)
    ids = torch.tensor([[40, 41, *[model.config.image_token_id] * 16, *range(50, 70)]])
    kinds = (ids == model.config.image_token_id).int()
    with torch.no_grad():
        out = model(
            input_ids=ids, pixel_values=pixels, image_grid_thw=torch.tensor([[1, 8, 8]]), mm_token_type_ids=kinds
        )
    return out.logits


def test_another_order_is_the_same_function(reordered: Path) -> None:
    torch.testing.assert_close(logits(reordered), logits(CHECKPOINT), rtol=1e-3, atol=1e-3)


def test_weights_are_the_same_ones_in_other_places(reordered: Path) -> None:
    before, after = open_checkpoint(CHECKPOINT).read(DOWN), open_checkpoint(reordered).read(DOWN)
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(np.sort(before, axis=None), np.sort(after, axis=None))


def test_other_weights_share_a_block(reordered: Path) -> None:
    errors = [
        np.linalg.norm(weight - dequantize(quantize(weight, 4, 128)))
        for weight in (open_checkpoint(path).read(DOWN) for path in (CHECKPOINT, reordered))
    ]
    assert errors[0] != errors[1]
    assert errors[0] == pytest.approx(errors[1], rel=0.1)


def test_table_has_mean_standard_error_and_extremes() -> None:
    # Standard deviation 1, of four: an error of 1 / 2.
    values = [2.0, 4.0, 3.0, 3.0]
    expected = f"| rtn | 4 | 3.00e+00 | {np.std(values, ddof=1) / 2:.1e} | 2.00e+00 | 4.00e+00 |"
    assert table({"rtn": values}).splitlines()[2] == expected


def test_command_measures_every_method_in_every_order() -> None:
    arguments = ["--orders", "2", "--questions", "3", "--threads", "1", "--method", "rtn", "--method", "rtn-search"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert [line.split(" | ")[:2] for line in result.stdout.splitlines()[2:]] == [["| rtn", "2"], ["| rtn-search", "2"]]


def test_no_orders_are_refused() -> None:
    result = CliRunner().invoke(main, ["--orders", "0"])
    assert result.exit_code == 2
    assert "1 or more" in result.output
