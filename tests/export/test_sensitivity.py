"""What 4 bits in one product alone do, measured by transformers, and which products get 8."""

import itertools
import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from medvlm.export import sensitivity
from medvlm.export.calibration import Calibration, collect
from medvlm.export.checkpoint import Checkpoint
from medvlm.export.convert import write_bundle
from medvlm.export.recipe import Recipe, make_recipe
from medvlm.export.samples import Asked, make_samples
from medvlm.export.sensitivity import Sensitivity, choose_eight_bits, sensitivities
from medvlm.quant import dequantize, quantize
from medvlm.runtime.bundle import open_bundle
from medvlm.runtime.dataset import DatasetItem
from medvlm.runtime.processor import Processor
from numpy.typing import NDArray
from transformers import Qwen2VLForConditionalGeneration

IMAGE, ANSWER = 261, (72, 105, 33, 10, 200, 7)
SCOPES = ("attn/qkv_proj", "attn/o_proj", "mlp/gate_proj", "mlp/up_proj", "mlp/down_proj")


def recipe_of(**options: Any) -> Recipe:
    return make_recipe("int4", 32, **{"vision": "fp32", "prefill": "same", "smooth": False, **options})


@dataclass(frozen=True)
class Measured:
    """The sensitivities, and what they are by transformers."""

    found: Mapping[str, Sensitivity]
    expected: Mapping[str, float]


def modules_of(model: Any, scope: str) -> list[Any]:
    """transformers' modules that are one product here."""
    if scope == "lm_head":
        return [model.lm_head]
    layer = model.model.language_model.layers[int(scope.split("/")[0].removeprefix("layers."))]
    if scope.endswith("qkv_proj"):
        return [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]
    name = scope.rpartition("/")[2]
    return [layer.self_attn.o_proj if name == "o_proj" else getattr(layer.mlp, name)]


@pytest.fixture(scope="module")
def measured(checkpoint: Checkpoint, tiny_bundle: Path) -> Measured:
    config, rng = checkpoint.config, np.random.default_rng(4)
    processor = Processor(open_bundle(tiny_bundle))
    images = [rng.integers(0, 256, (56, 56 + 28 * i, 3), np.uint8) for i in range(2)]
    asked = [
        Asked(processor.prepare([image], f"What {i}?\nA) Yes\nB) No"), ANSWER[i:]) for i, image in enumerate(images)
    ]
    samples = make_samples(asked, checkpoint.read, config.vision, config.text, threads=1)
    found = sensitivities(config.text, checkpoint.read, recipe_of(method="rtn"), samples, 1)
    model: Any = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint.directory, dtype=torch.float32)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    exact = log_probabilities(model, asked)
    expected = {}
    for scope in found:
        modules = modules_of(model, scope)
        kept = [module.weight.data for module in modules]
        for module, weight in zip(modules, kept, strict=True):
            rounded = dequantize(quantize(weight.numpy(), 4, 32, symmetric=False))
            module.weight.data = torch.from_numpy(rounded.copy())
        tried = log_probabilities(model, asked)
        expected[scope] = float((exact.exp() * (exact - tried)).sum(dim=-1).mean())
        for module, weight in zip(modules, kept, strict=True):
            module.weight.data = weight
    return Measured(found, expected)


def log_probabilities(model: Any, asked: list[Asked]) -> torch.Tensor:
    """[tokens of all answers, vocab_size]"""
    rows = []
    for one in asked:
        request = one.request
        (patches,) = (picture.patches() for picture in request.images)
        ids = torch.from_numpy(np.concatenate([request.token_ids, one.answer]))
        with torch.no_grad():
            logits = model(
                input_ids=ids[None],
                attention_mask=torch.ones_like(ids)[None],
                pixel_values=torch.from_numpy(patches.pixel_values),
                image_grid_thw=torch.tensor([[1, *patches.grid]]),
                mm_token_type_ids=(ids == IMAGE).int()[None],
            ).logits[0]
        rows.append(logits[len(request.token_ids) - 1 : -1])
    return torch.log_softmax(torch.cat(rows).double(), dim=-1)


def test_every_product_is_measured(measured: Measured, checkpoint: Checkpoint) -> None:
    layers = range(checkpoint.config.text.layers)
    assert set(measured.found) == {f"layers.{i}/{name}" for i in layers for name in SCOPES} | {"lm_head"}


def test_sensitivity_is_the_divergence_with_this_weight_alone_replaced(measured: Measured) -> None:
    for scope, expected in measured.expected.items():
        assert measured.found[scope].kl == pytest.approx(expected, rel=1e-3), scope


@pytest.mark.parametrize(
    ("options", "head"), [({}, True), ({"head": "int8"}, False), ({"head": "fp32"}, False), ({"method": "gptq"}, True)]
)
def test_the_head_is_asked_about_where_it_has_four_bits(
    options: dict[str, Any], head: bool, checkpoint: Checkpoint, tiny_bundle: Path
) -> None:
    config = checkpoint.config
    request = Processor(open_bundle(tiny_bundle)).prepare([], "What?\nA) Yes\nB) No")
    samples = make_samples([Asked(request, ANSWER)], checkpoint.read, config.vision, config.text, threads=1)
    found = sensitivities(config.text, checkpoint.read, recipe_of(**options), samples, 1)
    assert ("lm_head" in found) == head
    assert choose_eight_bits(found, 1e9) == tuple(sorted(found))


def test_no_more_samples_are_looked_at_than_their_streams_have_room_for(
    checkpoint: Checkpoint, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, processor = checkpoint.config, Processor(open_bundle(tiny_bundle))
    asked = [Asked(processor.prepare([], f"What {i}?\nA) Yes\nB) No"), ANSWER) for i in range(3)]
    samples = make_samples(asked, checkpoint.read, config.vision, config.text, threads=1)
    recipe = recipe_of(method="rtn")
    two = sensitivities(config.text, checkpoint.read, recipe, samples[:2], 1)
    # A stream of float32 for each of ten products, and the exact one.
    one_sample = len(samples[0].embeddings) * config.text.hidden_size * 4 * 11
    for room, expected in ((2 * one_sample, two), (3 * one_sample - 1, two)):
        monkeypatch.setattr(sensitivity, "_STREAM_BYTES", room)
        assert sensitivities(config.text, checkpoint.read, recipe, samples, 1) == expected
    monkeypatch.setattr(sensitivity, "_STREAM_BYTES", 1)
    assert sensitivities(config.text, checkpoint.read, recipe, samples[:1], 1)


# What is chosen

FOUND = st.dictionaries(
    st.text("abc", min_size=1, max_size=4),
    st.builds(Sensitivity, st.floats(0, 10), st.integers(1, 30)),
    max_size=7,
)


def best_kl(found: Mapping[str, Sensitivity], budget: float) -> float:
    """The most that can be saved, by trying every subset."""
    subsets = itertools.chain.from_iterable(itertools.combinations(found.values(), n) for n in range(len(found) + 1))
    sums = ((sum(s.kl for s in some), sum(s.extra_bytes for s in some)) for some in subsets)
    return max(kl for kl, size in sums if size <= budget)


@given(FOUND, st.integers(0, 100))
def test_choice_fits_the_budget_and_saves_all_but_one_product_of_the_best_subset(
    found: dict[str, Sensitivity], budget: int
) -> None:
    chosen = choose_eight_bits(found, budget)
    assert sum(found[scope].extra_bytes for scope in chosen) <= budget
    saved, left_out = sum(found[scope].kl for scope in chosen), [found[scope].kl for scope in set(found) - set(chosen)]
    assert saved >= best_kl(found, budget) - max(left_out, default=0) - 1e-9


@given(FOUND, st.integers(0, 100))
def test_choice_is_the_best_subset_where_all_products_are_of_a_size(found: dict[str, Sensitivity], budget: int) -> None:
    same = {scope: Sensitivity(one.kl, 10) for scope, one in found.items()}
    saved = sum(same[scope].kl for scope in choose_eight_bits(same, budget))
    assert saved == pytest.approx(best_kl(same, budget))


# The bundle


def eight_bit_products(bundle: Path) -> tuple[set[str], int]:
    """The scopes whose operator has 8 bits, and the bytes of all codes, scales and zero points."""
    graph = onnx.load(bundle / "decoder.onnx", load_external_data=False).graph
    bits = {
        node.name.removesuffix("/MatMulNBits").strip("/"): {a.name: a.i for a in node.attribute}["bits"]
        for node in graph.node
        if node.op_type == "MatMulNBits"
    }
    sizes: dict[int, int] = {onnx.TensorProto.UINT8: 1, onnx.TensorProto.FLOAT: 4}
    total = sum(
        int(np.prod(tensor.dims)) * sizes[tensor.data_type] for tensor in graph.initializer if tensor.data_type in sizes
    )
    return {scope for scope, n in bits.items() if n == 8}, total


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("budget_mb", "numbers"), [(0, {0}), (0.02, range(1, 11)), (1000, {11})])
def test_the_bundle_grows_by_no_more_than_the_budget(
    budget_mb: float,
    numbers: Container[int],
    symmetric: bool,
    checkpoint: Checkpoint,
    tiny_items: list[DatasetItem],
    tmp_path: Path,
) -> None:
    recipe = recipe_of(method="rtn", symmetric=symmetric)
    collected = collect(checkpoint, tmp_path / "out", recipe, Calibration("own", tiny_items[:1], 1, budget_mb))
    manifest = write_bundle(checkpoint, tmp_path / "out", collected.recipe, calibrated=collected.workdir)
    write_bundle(checkpoint, tmp_path / "plain", recipe)
    (chosen, size), (none, plain) = eight_bit_products(tmp_path / "out"), eight_bit_products(tmp_path / "plain")
    assert none == set()
    assert chosen == set(collected.recipe.eight_bits)
    assert sorted(chosen) == json.loads((tmp_path / "out" / "manifest.json").read_text())["recipe"]["eight_bits"]
    assert len(chosen) in numbers
    assert size - plain <= budget_mb * 1e6
    assert manifest.recipe["eight_bits"] == sorted(chosen)


def test_products_at_eight_bits_are_close_to_the_checkpoint(
    checkpoint: Checkpoint, tiny_items: list[DatasetItem], tmp_path: Path
) -> None:
    """Each by whatever method the others have: its error is a sixteenth of theirs."""
    errors: dict[str, NDArray[np.float64]] = {}
    for name, budget in (("four", 0), ("eight", 1000)):
        recipe = recipe_of(method="gptq")
        collected = collect(checkpoint, tmp_path / name, recipe, Calibration("own", tiny_items[:1], 1, budget))
        seen: list[float] = []
        write_bundle(
            checkpoint,
            tmp_path / name,
            collected.recipe,
            calibrated=collected.workdir,
            observe=lambda _graph, _scope, weight, stored, seen=seen: seen.append(
                float(np.linalg.norm(stored.values - weight))
            ),
        )
        errors[name] = np.array([error for error in seen if error])
    assert (errors["eight"] < errors["four"] / 8).all()
