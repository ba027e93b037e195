"""Scales folded into a checkpoint: to transformers it stays the same model, and the weights behind it are others."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medvlm.demo.random_checkpoint import TEXT, VISION, RandomCheckpoint
from medvlm.export.checkpoint import Checkpoint, open_checkpoint
from medvlm.export.folds import FoldedReader, FoldSite, layer_sites, text_sites, vision_sites
from medvlm.export.tensors import EMBEDDING, HEAD, expected_tensors
from numpy.typing import NDArray
from safetensors.numpy import save_file
from transformers import Qwen2VLForConditionalGeneration

Array = NDArray[np.float32]

# Two value heads, each read by three query heads.
GROUPED = dataclasses.replace(TEXT, hidden_size=96, num_heads=6, num_kv_heads=2, head_size=16, mrope_section=(2, 3, 3))
IMAGE, GRID = 261, (4, 6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = tmp_path_factory.mktemp("folds") / "checkpoint"
    RandomCheckpoint(text=dataclasses.replace(GROUPED, tied_embeddings=False), dtype="F32", seed=4).write(directory)
    return open_checkpoint(directory)


def all_sites(checkpoint: Checkpoint) -> list[FoldSite]:
    return [*vision_sites(checkpoint.config.vision), *text_sites(checkpoint.config.text)]


def random_scales(sites: Sequence[FoldSite]) -> dict[str, Array]:
    """Scales of both sides of 1, a few channels far from it."""
    rng = np.random.default_rng(6)
    return {site.name: np.exp(rng.standard_normal(site.channels)).astype(np.float32) for site in sites}


def fold(checkpoint: Checkpoint, sites: Sequence[FoldSite], out: Path) -> Path:
    """The checkpoint with random scales folded in at `sites`, as a checkpoint of its own."""
    shutil.copytree(checkpoint.directory, out)
    read = FoldedReader(checkpoint.read, sites, random_scales(sites))
    names = expected_tensors(checkpoint.config.vision, checkpoint.config.text)
    save_file({name: read(name) for name in names}, out / "model.safetensors", {"format": "pt"})
    return out


def outputs(directory: Path) -> tuple[Array, Array]:
    """What transformers makes of a question with an image: the image's features, and the logits at every token."""
    model: Any = Qwen2VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    rng = np.random.default_rng(7)
    pixels = torch.from_numpy(rng.standard_normal((GRID[0] * GRID[1], 1176), np.float32))
    ids = torch.from_numpy(rng.integers(0, 250, 40))
    ids[5 : 5 + pixels.shape[0] // 4] = IMAGE
    grid = torch.tensor([[1, *GRID]])
    with torch.no_grad():
        features = model.model.visual(pixels, grid_thw=grid).pooler_output
        logits = model(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            pixel_values=pixels,
            image_grid_thw=grid,
            mm_token_type_ids=(ids == IMAGE).int()[None],
        ).logits
    return features.numpy(), logits[0].numpy()


def close(found: Array, expected: Array) -> bool:
    return float(np.abs(found - expected).max()) < 2e-5 * float(np.abs(expected).max())


def test_scales_at_every_site_leave_features_and_logits_as_they_are(checkpoint: Checkpoint, tmp_path: Path) -> None:
    expected = outputs(checkpoint.directory)
    found = outputs(fold(checkpoint, all_sites(checkpoint), tmp_path / "folded"))
    assert [close(a, b) for a, b in zip(found, expected, strict=True)] == [True, True]


def test_a_site_that_reads_other_channels_than_are_made_changes_the_logits(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """So that the test above is one: value channels in the order of query heads are wrong for grouped heads."""
    site = next(site for site in text_sites(checkpoint.config.text) if site.name == "layers.0/attn/v_proj")
    wrong = dataclasses.replace(site, columns=np.arange(site.columns.size) % site.channels)
    found = outputs(fold(checkpoint, [wrong], tmp_path / "folded"))
    assert not close(found[1], outputs(checkpoint.directory)[1])


def test_every_site_changes_what_makes_and_what_reads_its_channels(checkpoint: Checkpoint) -> None:
    for site in all_sites(checkpoint):
        read = FoldedReader(checkpoint.read, [site], random_scales([site]))
        touched = {rows.tensor for rows in site.made} | set(site.read)
        for name in touched:
            assert (read(name) != checkpoint.read(name)).any(), (site.name, name)
        for name in set(expected_tensors(VISION, GROUPED)) - touched:
            np.testing.assert_array_equal(read(name), checkpoint.read(name))


def test_every_product_is_read_at_one_site_but_those_behind_what_is_not_linear(checkpoint: Checkpoint) -> None:
    tensors = expected_tensors(checkpoint.config.vision, checkpoint.config.text)
    read = [name for site in all_sites(checkpoint) for name in site.read]
    assert len(set(read)) == len(read)
    weights = {name for name, shape in tensors.items() if len(shape) > 1 and name != EMBEDDING}
    without = {"visual.patch_embed.proj.weight", "visual.merger.mlp.2.weight"}
    without |= {f"visual.blocks.{i}.mlp.fc2.weight" for i in range(VISION.depth)}
    assert set(read) == weights - without


def test_a_tied_head_is_folded_and_its_table_is_not(tmp_path: Path) -> None:
    RandomCheckpoint(text=dataclasses.replace(GROUPED, tied_embeddings=True)).write(tmp_path / "tied")
    tied = open_checkpoint(tmp_path / "tied")
    assert json.loads((tmp_path / "tied" / "config.json").read_text())["tie_word_embeddings"]
    sites = text_sites(tied.config.text)
    scales = random_scales(sites)
    read = FoldedReader(tied.read, sites, scales)
    np.testing.assert_array_equal(read(EMBEDDING), tied.read(EMBEDDING))
    np.testing.assert_allclose(read(HEAD), tied.read(EMBEDDING) * scales["norm"], rtol=1e-6)


# What the weights let be expected of the activations


def rms_normed(rng: np.random.Generator, width: int) -> Array:
    x = rng.standard_normal((20_000, width), np.float32)
    return x / np.sqrt(np.square(x).mean(axis=1, keepdims=True))


def layer_normed(rng: np.random.Generator, width: int) -> Array:
    x = rng.standard_normal((20_000, width), np.float32)
    return (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)


def within(found: Array, expected: Array, share: float) -> bool:
    return bool(np.all(np.abs(found / expected - 1) < share))


def test_moments_behind_norms_are_those_of_normalized_noise(checkpoint: Checkpoint) -> None:
    rng, read = np.random.default_rng(8), checkpoint.read
    norms = [site for site in all_sites(checkpoint) if all("norm" in r.tensor or "ln_q" in r.tensor for r in site.made)]
    assert len(norms) == 2 * VISION.depth + 1 + 2 * GROUPED.layers + 1
    for site in norms:
        weight, bias = (read(site.made[0].tensor), read(site.made[1].tensor) if len(site.made) > 1 else None)
        x = rms_normed(rng, len(weight)) if bias is None else layer_normed(rng, len(weight))
        y = x * weight + (0 if bias is None else bias)
        assert within(site.moments(read), np.square(y).mean(axis=0), 0.1), site.name


def test_moments_of_values_and_of_the_gated_mlp_follow_those_of_noise(checkpoint: Checkpoint) -> None:
    """Only their ratios matter. silu is taken for the half of its input, which the channels' order does not mind."""
    rng, read = np.random.default_rng(9), checkpoint.read
    layer, sites = "model.layers.1", layer_sites(checkpoint.config.text, 1)
    x = rms_normed(rng, GROUPED.hidden_size)
    first, second = (read(f"{layer}.{name}_layernorm.weight") for name in ("input", "post_attention"))
    values = (x * first) @ read(f"{layer}.self_attn.v_proj.weight").T + read(f"{layer}.self_attn.v_proj.bias")
    assert within(sites[1].moments(read), np.square(values).mean(axis=0), 0.1)
    gate, up = ((x * second) @ read(f"{layer}.mlp.{name}_proj.weight").T for name in ("gate", "up"))
    gated = torch.nn.functional.silu(torch.from_numpy(gate)).numpy() * up
    exact = np.square(gated).mean(axis=0)
    assert np.corrcoef(np.log(sites[3].moments(read)), np.log(exact))[0, 1] > 0.9
