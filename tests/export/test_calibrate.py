"""Calibration against torch: what it sees, what it makes of it, and what it keeps."""

import dataclasses
import re
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medvlm.export import calibrate, packing
from medvlm.export.calibrate import Calibrator
from medvlm.export.checkpoint import Checkpoint
from medvlm.export.recipe import Blockwise, Recipe, make_recipe
from medvlm.export.samples import Sample
from medvlm.export.workdir import Workdir
from medvlm.quant import dequantize, quantize
from numpy.typing import NDArray
from transformers import Qwen2VLForConditionalGeneration

Array = NDArray[np.float32]


def recipe_of(method: Any, **options: Any) -> Recipe:
    return make_recipe("int4", 32, method=method, vision="fp32", prefill="same", accuracy_level=0, **options)


def text_samples(checkpoint: Checkpoint) -> list[Sample]:
    """Two samples of text alone, whose positions count up on all axes."""
    rng, dims, samples = np.random.default_rng(3), checkpoint.config.text, []
    table = checkpoint.read("model.embed_tokens.weight")
    frequencies = dims.rope_theta ** (-np.arange(dims.head_size // 2) * 2 / dims.head_size)
    for tokens in (40, 60):
        angles = np.arange(tokens)[:, None] * frequencies
        samples.append(
            Sample(
                embeddings=table[rng.integers(0, dims.vocab_size, tokens)],
                cos=np.cos(angles).astype(np.float32),
                sin=np.sin(angles).astype(np.float32),
                start=tokens // 2,
            )
        )
    return samples


# What is collected, and what is made of it


class Torch:
    """transformers' decoder, and what its linear modules multiply."""

    def __init__(self, directory: Path) -> None:
        model: Any = Qwen2VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
        self.model = model.model.language_model
        self.head = model.lm_head
        self.inputs: dict[str, Array] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(self._keeping(name))

    def _keeping(self, name: str) -> Callable[[object, tuple[torch.Tensor]], None]:
        def keep(_module: object, inputs: tuple[torch.Tensor]) -> None:
            x = inputs[0][0].numpy()
            self.inputs[name] = np.concatenate([self.inputs[name], x]) if name in self.inputs else x

        return keep

    def run(self, samples: Sequence[Sample]) -> list[Array]:
        """The normalized last states of each sample; the inputs are those of this call."""
        self.inputs = {}
        with torch.no_grad():
            given = [torch.from_numpy(sample.embeddings[None]) for sample in samples]
            return [self.model(inputs_embeds=x, use_cache=False).last_hidden_state[0].numpy() for x in given]

    def quantize(self, workdir: Workdir, layer: int, scope: str) -> None:
        """Give a product of a layer the values of its blocks."""
        module = self.model.layers[layer]
        blocks = workdir.blocks(f"layers.{layer}/{scope}")
        assert blocks is not None
        weight = torch.from_numpy(dequantize(blocks).copy())
        if scope == "attn/qkv_proj":
            parts = [module.self_attn.q_proj, module.self_attn.k_proj, module.self_attn.v_proj]
            for part, piece in zip(parts, torch.split(weight, [part.out_features for part in parts]), strict=True):
                part.weight.data = piece
        else:
            attention = scope.startswith("attn/")
            getattr(module.self_attn if attention else module.mlp, scope.rpartition("/")[2]).weight.data = weight


# The products of a layer in the order in which they are quantized; of those that share inputs, transformers' first.
PRODUCTS = {
    "attn/qkv_proj": "self_attn.q_proj",
    "attn/o_proj": "self_attn.o_proj",
    "mlp/gate_proj": "mlp.gate_proj",
    "mlp/up_proj": "mlp.gate_proj",
    "mlp/down_proj": "mlp.down_proj",
}
# A token of an answer counts as so many of a prompt.
WEIGHT = 10


@dataclass(frozen=True)
class Packed:
    """What a product is quantized for: X^T X, and (X* - X)^T X for X* as float32 has them."""

    gram: Array
    drift: Array


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[Packed]:
    """What products are packed for, in their order, once something was calibrated."""
    seen: list[Packed] = []
    pack = packing.pack_calibrated

    def packing_seen(weight: Array, precision: Blockwise, gram: Array, drift: Array) -> Any:
        seen.append(Packed(gram.copy(), drift.copy()))
        return pack(weight, precision, gram, drift)

    monkeypatch.setattr(calibrate, "pack_calibrated", packing_seen)
    return seen


def by_layer(packed: list[Packed]) -> list[dict[str, Packed]]:
    """What the products of each layer were packed for; the head's is the last and left out."""
    of_layers, count = packed[:-1], len(PRODUCTS)
    return [dict(zip(PRODUCTS, of_layers[i : i + count], strict=True)) for i in range(0, len(of_layers), count)]


def close(found: Array, expected: Array, scale: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * float(np.abs(scale).max()))


def test_products_are_quantized_for_what_torch_multiplies_behind_those_before(
    checkpoint: Checkpoint, tmp_path: Path, packed: list[Packed]
) -> None:
    samples, workdir = text_samples(checkpoint), Workdir(tmp_path / "work")
    Calibrator(checkpoint.config.text, checkpoint.read, recipe_of("gptq", smooth=False), 1).run(samples, workdir)
    exact, quantized = Torch(checkpoint.directory), Torch(checkpoint.directory)
    exact_states = exact.run(samples)
    for i, layer in enumerate(by_layer(packed)):
        for scope, kind in PRODUCTS.items():
            if scope != "mlp/up_proj":
                # Gate and up multiply the same.
                states = quantized.run(samples)
            x, wanted = quantized.inputs[f"layers.{i}.{kind}"], exact.inputs[f"layers.{i}.{kind}"]
            gram = WEIGHT * x.T @ x
            close(layer[scope].gram, gram, gram)
            close(layer[scope].drift, WEIGHT * (wanted - x).T @ x, gram)
            quantized.quantize(workdir, i, scope)
    states = quantized.run(samples)
    x, wanted = (
        np.concatenate([state[sample.start : -1] for state, sample in zip(given, samples, strict=True)])
        for given in (states, exact_states)
    )
    gram = WEIGHT * x.T @ x
    close(packed[-1].gram, gram, gram)
    close(packed[-1].drift, WEIGHT * (wanted - x).T @ x, gram)


def output_error(checkpoint: Checkpoint, workdir: Workdir, samples: Sequence[Sample]) -> float:
    """How far the decoder's states are from float32's."""
    reference = Torch(checkpoint.directory)
    exact = np.concatenate(reference.run(samples))
    for i in range(checkpoint.config.text.layers):
        for scope in PRODUCTS:
            reference.quantize(workdir, i, scope)
    return float(np.linalg.norm(np.concatenate(reference.run(samples)) - exact) / np.linalg.norm(exact))


# transformers is renaming the argument, and takes the old name until 5.40.
@pytest.mark.filterwarnings("ignore:.*past_key_values.*:FutureWarning")
def test_answers_are_calibrated_on_exact_prompts_where_prompts_have_a_graph_of_their_own(
    checkpoint: Checkpoint, tmp_path: Path, packed: list[Packed]
) -> None:
    """torch fills its cache in float32, and only the answer goes through what is quantized by then."""
    samples, workdir = text_samples(checkpoint), Workdir(tmp_path / "work")
    recipe = make_recipe("int4", 32, method="gptq", smooth=False)
    Calibrator(checkpoint.config.text, checkpoint.read, recipe, 1).run(samples, workdir)
    prompts, exact, quantized = (Torch(checkpoint.directory) for _ in range(3))
    run_behind_prompts(samples, prompts, exact)
    for i, layer in enumerate(by_layer(packed)):
        for scope, kind in PRODUCTS.items():
            if scope != "mlp/up_proj":
                run_behind_prompts(samples, prompts, quantized)
            read, wanted, x = (model.inputs[f"layers.{i}.{kind}"] for model in (prompts, exact, quantized))
            gram = read.T @ read + WEIGHT * x.T @ x
            close(layer[scope].gram, gram, gram)
            close(layer[scope].drift, WEIGHT * (wanted - x).T @ x, gram)
            quantized.quantize(workdir, i, scope)


def run_behind_prompts(samples: Sequence[Sample], prompts: Torch, answers: Torch) -> None:
    """Read prompts with one model and answers, behind its cache, with the other."""
    prompts.inputs, answers.inputs = {}, {}
    for sample in samples:
        prompt, answer = (torch.from_numpy(x[None]) for x in np.split(sample.embeddings, [sample.start]))
        with torch.no_grad():
            cache = prompts.model(inputs_embeds=prompt, use_cache=True).past_key_values
            answers.model(inputs_embeds=answer, past_key_values=cache, use_cache=True)


def test_gptq_loses_less_than_rounding_on_what_it_saw(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """awq's rounding, without its scales, looks at the Gram matrix's diagonal alone."""
    samples, errors = text_samples(checkpoint), {}
    for name, act_order in (("gptq", False), ("act-order", True)):
        workdir = Workdir(tmp_path / name)
        recipe = recipe_of("gptq", act_order=act_order, smooth=False)
        Calibrator(checkpoint.config.text, checkpoint.read, recipe, 1).run(samples, workdir)
        errors[name] = output_error(checkpoint, workdir, samples)
    workdir = Workdir(tmp_path / "rounded")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(calibrate, "pack_calibrated", lambda w, p, gram, drift: quantize(w, 4, 32, symmetric=False))
        Calibrator(checkpoint.config.text, checkpoint.read, recipe_of("gptq"), 1).run(samples, workdir)
    rounded = output_error(checkpoint, workdir, samples)
    assert max(errors.values()) < 0.8 * rounded


def test_blocks_and_scales_come_back_from_the_folder_as_they_were(checkpoint: Checkpoint, tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "work")
    recipe = recipe_of("awq+gptq")
    samples = text_samples(checkpoint)
    Calibrator(checkpoint.config.text, checkpoint.read, recipe, 1).run(samples, workdir)
    sites = {
        f"layers.{i}/{name}"
        for i in range(2)
        for name in ("input_layernorm", "attn/v_proj", "post_attention_layernorm", "mlp/up_proj")
    }
    scales = Workdir(tmp_path / "work").scales()
    assert set(scales) == sites | {"norm"}
    assert all(value.dtype == np.float32 and (value > 0).all() for value in scales.values())
    assert Workdir(tmp_path / "work").blocks("layers.5/attn/qkv_proj") is None
    head = workdir.blocks("lm_head")
    assert head is not None
    assert dequantize(head).shape == (checkpoint.config.text.vocab_size, checkpoint.config.text.hidden_size)


def test_calibration_takes_no_more_memory_for_more_layers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Weights, Gram matrices and streams are those of one layer: all else is on disk."""

    def read(name: str) -> Array:
        return checkpoint.read(re.sub(r"layers\.[1-9]\.", "layers.1.", name))

    def peak(layers: int) -> int:
        dims = dataclasses.replace(checkpoint.config.text, layers=layers)
        tracemalloc.start()
        Calibrator(dims, read, recipe_of("gptq"), 1).run(samples, Workdir(tmp_path / f"{layers}"))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    samples = text_samples(checkpoint)
    one = sum(4 * checkpoint.info(name).nbytes for name in checkpoint.tensors if name.startswith("model.layers.0."))
    assert peak(8) - peak(2) < one / 4
