"""The float32 model run a layer at a time: what transformers' own layers see and give."""

import dataclasses
import functools
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medvlm.demo.random_checkpoint import TEXT, RandomCheckpoint
from medvlm.export.checkpoint import Checkpoint, open_checkpoint
from medvlm.export.decoder import build_head, build_layer
from medvlm.export.layers import ReadTensor
from medvlm.export.layerwise import LayerRunner, layer_of
from medvlm.export.passing import layer_feeds
from medvlm.export.samples import Asked, Sample, make_samples
from medvlm.runtime.bundle import open_bundle
from medvlm.runtime.processor import Processor, Request
from numpy.typing import NDArray
from transformers import Qwen2VLForConditionalGeneration

Array = NDArray[np.float32]
Seen = dict[str, list[Array]]
IMAGE = 261
ANSWER = (72, 105, 33, 10, 200, 7)
# The names of our products, by those of transformers' modules.
DECODER = {"qkv_proj": "self_attn.q_proj", "o_proj": "self_attn.o_proj"}
DECODER |= {name: f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")}
VISION = {"attn/q": "attn.qkv", "attn/v": "attn.qkv", "attn/proj": "attn.proj", "mlp/fc1": "mlp.fc1"}
VISION |= {"mlp/fc2": "mlp.fc2"}


@dataclass
class Reference:
    """transformers' model, and what its linear modules multiplied in the last call, by their names."""

    model: Any
    seen: Seen = field(default_factory=dict)

    def watch(self) -> None:
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(functools.partial(self._note, name))

    def _note(self, name: str, _module: object, inputs: tuple[torch.Tensor]) -> None:
        x = inputs[0].numpy()
        self.seen.setdefault(name, []).append(x.reshape(-1, x.shape[-1]))


@pytest.fixture(scope="module")
def asked(tiny_bundle: Path) -> Asked:
    """A question about two images, and an answer."""
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((84, 56), (56, 112))]
    return Asked(Processor(open_bundle(tiny_bundle)).prepare(images, "What is it?\nA) Brain\nB) Knee"), ANSWER)


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint, asked: Asked) -> Reference:
    """Run on the question and its answer."""
    model: Any = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint.directory, dtype=torch.float32)
    found = Reference(model)
    found.watch()
    run_reference(model, asked.request)
    return found


def run_reference(model: Any, request: Request) -> Any:
    ids = torch.from_numpy(np.concatenate([request.token_ids, ANSWER]))
    cut = [picture.patches() for picture in request.images]
    with torch.no_grad():
        return model(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            pixel_values=torch.from_numpy(np.concatenate([patches.pixel_values for patches in cut])),
            image_grid_thw=torch.tensor([[1, *patches.grid] for patches in cut]),
            mm_token_type_ids=(ids == IMAGE).int()[None],
            output_hidden_states=True,
        )


@pytest.fixture(scope="module")
def encoded(checkpoint: Checkpoint, asked: Asked) -> tuple[Sample, Seen]:
    """The sample, and what the products of the vision encoder multiplied, one entry an image."""
    seen: Seen = {}
    config = checkpoint.config
    (sample,) = make_samples(
        [asked],
        checkpoint.read,
        config.vision,
        config.text,
        threads=1,
        watch=lambda scope, x: seen.setdefault(scope, []).append(x.copy()),
    )
    return sample, seen


def close(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * float(np.abs(expected).max()))


def decode(
    checkpoint: Checkpoint, sample: Sample, watch: Callable[[int, str, Array], None] = lambda i, scope, x: None
) -> tuple[list[Array], Array]:
    """The stream before each layer and behind the last, and the logits."""
    dims = checkpoint.config.text
    streams = [sample.embeddings[None]]
    layer = LayerRunner(functools.partial(build_layer, dims=dims), "residual", 1)
    for i in range(dims.layers):
        layer.load(layer_of(checkpoint.read, "model.layers", i))
        streams.append(layer.run(layer_feeds(sample, streams[-1], dims), functools.partial(watch, i)))
    head = LayerRunner(functools.partial(build_head, dims=dims), "logits", 1)
    head.load(checkpoint.read)
    logits = head.run({"inputs_embeds": streams[-1]}, functools.partial(watch, dims.layers))
    return streams, logits


def test_the_stream_before_each_layer_and_the_logits_are_transformers(
    checkpoint: Checkpoint, asked: Asked, reference: Reference, encoded: tuple[Sample, Seen]
) -> None:
    streams, logits = decode(checkpoint, encoded[0])
    expected = run_reference(reference.model, asked.request)
    # Its last hidden state is normalized; the logits stand for that one.
    for stream, hidden in zip(streams, expected.hidden_states[:-1], strict=False):
        close(stream, hidden.numpy())
    close(logits, expected.logits.numpy())


def test_images_become_transformers_features_where_their_tokens_are(
    reference: Reference, asked: Asked, encoded: tuple[Sample, Seen]
) -> None:
    request = asked.request
    cut = [picture.patches() for picture in request.images]
    with torch.no_grad():
        expected = reference.model.model.visual(
            torch.from_numpy(np.concatenate([patches.pixel_values for patches in cut])),
            grid_thw=torch.tensor([[1, *patches.grid] for patches in cut]),
        ).pooler_output.numpy()
    assert len(expected) == sum(request.token_ids == IMAGE) == 6 + 8
    close(encoded[0].embeddings[: len(request.token_ids)][request.token_ids == IMAGE], expected)


def test_a_sample_starts_to_answer_at_the_prompts_last_token(asked: Asked, encoded: tuple[Sample, Seen]) -> None:
    sample = encoded[0]
    assert sample.start == len(asked.request.token_ids) - 1
    assert len(sample.embeddings) == len(sample.cos) == len(sample.sin) == sample.start + 1 + len(ANSWER)


def test_every_product_of_the_decoder_is_seen_with_what_transformers_gives_it(
    checkpoint: Checkpoint, reference: Reference, encoded: tuple[Sample, Seen]
) -> None:
    seen: dict[tuple[int, str], Array] = {}

    def watch(i: int, scope: str, x: Array) -> None:
        seen[i, scope.rpartition("/")[2]] = x.copy()

    decode(checkpoint, encoded[0], watch)
    layers = checkpoint.config.text.layers
    assert set(seen) == {(i, name) for i in range(layers) for name in DECODER} | {(layers, "lm_head")}
    for (i, name), x in seen.items():
        module = "lm_head" if name == "lm_head" else f"model.language_model.layers.{i}.{DECODER[name]}"
        close(x, reference.seen[module][0])


def test_every_product_of_the_vision_encoder_is_seen_with_what_transformers_gives_it(
    checkpoint: Checkpoint, reference: Reference, encoded: tuple[Sample, Seen]
) -> None:
    """transformers puts both images through together, one after the other."""
    seen = encoded[1]
    names = {
        f"blocks.{i}/{ours}": f"blocks.{i}.{m}"
        for i in range(checkpoint.config.vision.depth)
        for ours, m in VISION.items()
    }
    names |= {f"merger/mlp.{n}": f"merger.mlp.{n}" for n in (0, 2)}
    assert set(names) | {name.replace("/v", "/k") for name in names} == set(seen)
    for ours, module in names.items():
        close(np.concatenate(seen[ours]), reference.seen[f"model.visual.{module}"][0])


def test_a_weight_that_is_replaced_is_the_one_multiplied_by(
    checkpoint: Checkpoint, reference: Reference, asked: Asked, encoded: tuple[Sample, Seen]
) -> None:
    dims, sample = checkpoint.config.text, encoded[0]
    layer = LayerRunner(functools.partial(build_layer, dims=dims), "residual", 1)
    layer.load(checkpoint.read)
    weight = layer.weight("layers.0/mlp/down_proj")
    np.testing.assert_array_equal(weight, checkpoint.read("model.layers.0.mlp.down_proj.weight"))
    before = layer.run(layer_feeds(sample, sample.embeddings[None], dims))
    layer.replace("layers.0/mlp/down_proj", -weight)
    found = layer.run(layer_feeds(sample, sample.embeddings[None], dims))
    np.testing.assert_array_equal(layer.run(layer_feeds(sample, sample.embeddings[None], dims), exact=True), before)
    module = reference.model.model.language_model.layers[0].mlp.down_proj
    with torch.no_grad():
        module.weight.neg_()
        expected = run_reference(reference.model, asked.request).hidden_states[1].numpy()
        module.weight.neg_()
    close(found, expected)
    assert np.abs(found - before).max() > 0.1
    layer.restore("layers.0/mlp/down_proj")
    np.testing.assert_array_equal(layer.run(layer_feeds(sample, sample.embeddings[None], dims)), before)


def test_layers_narrower_than_a_cache_line_have_weights_of_their_own(tmp_path: Path) -> None:
    """Sizes are built into the graph that all layers share; a norm of 16 channels must not be."""
    text = dataclasses.replace(
        TEXT, hidden_size=16, num_heads=1, num_kv_heads=1, head_size=16, mrope_section=(2, 3, 3), intermediate_size=16
    )
    RandomCheckpoint(vision=dataclasses.replace(RandomCheckpoint().vision, out_dim=16), text=text).write(tmp_path / "c")
    checkpoint = open_checkpoint(tmp_path / "c")
    rng = np.random.default_rng(2)
    angles = rng.standard_normal((5, 8), np.float32)
    x = rng.standard_normal((1, 5, 16), np.float32)
    sample = Sample(x[0], np.cos(angles), np.sin(angles), 0)
    outputs = []
    for order in ((0, 1), (1,)):
        runner = LayerRunner(functools.partial(build_layer, dims=text), "residual", 1)
        for i in order:
            runner.load(layer_of(checkpoint.read, "model.layers", i))
        outputs.append(runner.run(layer_feeds(sample, x, text)))
    np.testing.assert_array_equal(*outputs)


def peak_of_loading(read: ReadTensor, layers: int) -> int:
    layer = LayerRunner(functools.partial(build_layer, dims=TEXT), "residual", 1)
    layer.load(layer_of(read, "model.layers", 0))
    tracemalloc.start()
    for i in range(1, layers):
        layer.load(layer_of(read, "model.layers", i))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_weights_of_one_layer_are_held_at_a_time(checkpoint: Checkpoint) -> None:
    def read(name: str) -> Array:
        return checkpoint.read(name.replace("layers.2.", "layers.0.").replace("layers.3.", "layers.1."))

    peaks = [peak_of_loading(read, layers) for layers in (2, 4)]
    assert peaks[1] < 1.2 * peaks[0]
