"""The stress version of the demo model: the same function, and hard to round."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from medvlm.demo.dataset import Item
from medvlm.demo.evaluate import CHECKPOINT, answer_all
from medvlm.demo.random_checkpoint import RandomCheckpoint
from medvlm.demo.stress import main, write_stress
from medvlm.export.checkpoint import open_checkpoint
from medvlm.export.convert import export
from medvlm.export.recipe import make_recipe
from medvlm.quant import dequantize, quantize
from medvlm.runtime import InputError, MedVLM
from transformers import Qwen2VLForConditionalGeneration

QUESTIONS = 2


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stress") / "checkpoint"
    write_stress(CHECKPOINT, out)
    return out


def load(directory: Path) -> Any:
    """transformers' model; its own annotations do not hold for tensors."""
    return Qwen2VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def plain_model() -> Any:
    return load(CHECKPOINT)


@pytest.fixture(scope="module")
def stress_model(stress: Path) -> Any:
    return load(stress)


@pytest.fixture(scope="module")
def feeds(tmp_path_factory: pytest.TempPathFactory, demo_items: list[Item]) -> list[dict[str, torch.Tensor]]:
    """What transformers takes, of the first questions."""
    out = tmp_path_factory.mktemp("exact") / "bundle"
    export(CHECKPOINT, out, make_recipe("fp32"))
    processor, feeds = MedVLM.load(out, threads=1).processor, []
    for item in demo_items[:QUESTIONS]:
        request = processor.prepare([item.image], item.question.problem)
        (picture,) = request.images
        patches, ids = picture.patches(), torch.from_numpy(request.token_ids)[None]
        feeds.append(
            {
                "input_ids": ids,
                "mm_token_type_ids": (ids == open_checkpoint(CHECKPOINT).config.image_token_id).int(),
                "pixel_values": torch.from_numpy(patches.pixel_values),
                "image_grid_thw": torch.tensor([[1, *patches.grid]]),
            }
        )
    return feeds


def logits(model: Any, feed: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**feed, use_cache=False).logits[0]


def test_transformers_gives_the_same_logits(
    plain_model: Any, stress_model: Any, feeds: list[dict[str, torch.Tensor]]
) -> None:
    for feed in feeds:
        expected = logits(plain_model, feed)
        assert torch.allclose(logits(stress_model, feed), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_float32_bundles_say_the_same_tokens(stress: Path, demo_items: list[Item], tmp_path: Path) -> None:
    said = []
    for directory in (CHECKPOINT, stress):
        export(directory, tmp_path / directory.name, make_recipe("fp32"), force=True)
        model = MedVLM.load(tmp_path / directory.name, threads=1)
        said.append([one.answer.token_ids for one in answer_all(model, demo_items[:20])])
    assert said[0] == said[1]


PRODUCTS = (
    "model.language_model.layers.1.self_attn.q_proj",
    "model.language_model.layers.2.self_attn.o_proj",
    "model.language_model.layers.0.mlp.gate_proj",
    "model.language_model.layers.3.mlp.down_proj",
    "model.visual.blocks.1.attn.qkv",
    "model.visual.blocks.2.attn.proj",
    "model.visual.blocks.0.mlp.fc1",
    "model.visual.merger.mlp.0",
    "lm_head",
)
Array = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module")
def seen(plain_model: Any, stress_model: Any, feeds: list[dict[str, torch.Tensor]]) -> list[dict[str, Array]]:
    """What products multiply [rows, in], in the plain model and in the other."""
    return [_watched(model, feeds[0]) for model in (plain_model, stress_model)]


def _watched(model: Any, feed: dict[str, torch.Tensor]) -> dict[str, Array]:
    seen: dict[str, Array] = {}

    def watch(name: str) -> Callable[[Any, tuple[torch.Tensor]], None]:
        return lambda _, args: seen.update({name: args[0].detach().flatten(0, -2).numpy()})

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in PRODUCTS]
    logits(model, feed)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("product", PRODUCTS)
def test_rounding_loses_more_than_in_the_plain_model(
    plain_model: Any, stress_model: Any, seen: list[dict[str, Array]], product: str
) -> None:
    inputs = [one[product] for one in seen]
    weights = [model.get_submodule(product).weight.detach().numpy() for model in (plain_model, stress_model)]
    peaks = [float(np.abs(x).max() / np.median(np.abs(x))) for x in inputs]
    assert peaks[1] > 5 * peaks[0]
    # A row of 8-bit activations has one scale, a block of weights its own.
    for rounded, at_least in ((_four_bit_weights, 1.02), (_eight_bit_activations, 4)):
        plain, stressed = (_lost(rounded, x, w) for x, w in zip(inputs, weights, strict=True))
        assert stressed > at_least * plain


def _four_bit_weights(x: Array, weight: Array) -> Array:
    return x @ dequantize(quantize(weight, 4, 128)).T


def _eight_bit_activations(x: Array, weight: Array) -> Array:
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    return np.round(x / step) * step @ weight.T


def _lost(rounded: Callable[[Array, Array], Array], x: Array, weight: Array) -> float:
    exact = x @ weight.T
    return float(np.linalg.norm(rounded(x, weight) - exact) / np.linalg.norm(exact))


def test_a_handful_of_channels_is_larger_and_the_rest_stays(stress: Path) -> None:
    plain, stressed = (open_checkpoint(path).read for path in (CHECKPOINT, stress))
    for name, channels in {
        "model.layers.0.input_layernorm.weight": 6,
        "model.norm.weight": 6,
        "visual.blocks.0.norm2.bias": 6,
        "visual.merger.ln_q.weight": 6,
        "model.layers.3.self_attn.v_proj.bias": 2,
    }.items():
        ratio = stressed(name) / plain(name)
        assert np.allclose(np.sort(ratio)[-channels - 1 :], [1, *[50] * channels])
    untouched = ("model.embed_tokens.weight", "visual.patch_embed.proj.weight", "model.layers.1.self_attn.q_proj.bias")
    assert all(np.array_equal(stressed(name), plain(name)) for name in untouched)
    assert not np.array_equal(stressed("lm_head.weight"), plain("lm_head.weight"))


def test_seed_says_which_channels(tmp_path: Path) -> None:
    norms = []
    for name, options in {"a": {}, "b": {}, "other": {"seed": 1}, "fewer": {"channels": 1, "factor": 8.0}}.items():
        write_stress(CHECKPOINT, tmp_path / name, **options)
        norms.append(open_checkpoint(tmp_path / name).read("model.norm.weight"))
    assert np.array_equal(norms[0], norms[1])
    assert not np.array_equal(norms[0], norms[2])
    assert sorted(norms[3] / open_checkpoint(CHECKPOINT).read("model.norm.weight"))[-2:] == [1, 8]


def test_files_of_a_checkpoint_that_transformers_saved_come_along(tmp_path: Path) -> None:
    """Its config.json says in two places whether embeddings are tied."""
    RandomCheckpoint().write(tmp_path / "hub")
    load(tmp_path / "hub").save_pretrained(tmp_path / "saved")
    for name in ("tokenizer.json", "preprocessor_config.json", "chat_template.json"):
        shutil.copyfile(tmp_path / "hub" / name, tmp_path / "saved" / name)
    write_stress(tmp_path / "saved", tmp_path / "stress")
    kept = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {path.name for path in (tmp_path / "stress").iterdir()} == kept
    assert not open_checkpoint(tmp_path / "stress").config.text.tied_embeddings
    config = json.loads((tmp_path / "stress" / "config.json").read_text(encoding="utf-8"))
    assert config["text_config"]["tie_word_embeddings"] is config["tie_word_embeddings"] is False
    loaded: Any = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / "stress", output_loading_info=True)
    assert not loaded[1]["missing_keys"]


def test_command_writes_what_the_function_does(stress: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [str(tmp_path / "out")])
    assert (result.exit_code, result.output) == (0, "")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (stress / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("taken",), "exists; choose another OUT"),
        (("absent/out",), "create it first"),
        (("out", "--factor", "0"), "factor is 0"),
        (("out", "--factor", "nan"), "factor is nan"),
        (("out", "--channels", "0"), "channels is 0"),
        (("out", "--checkpoint", "taken"), "has no config.json"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, result.stdout) == (InputError.exit_code, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert says in line
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
