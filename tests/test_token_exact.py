"""Bundles against transformers: the same tokens, and the same image features."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from medvlm.demo.random_checkpoint import TEXT, VISION, RandomCheckpoint
from medvlm.export.calibration import Calibration, collect
from medvlm.export.checkpoint import open_checkpoint
from medvlm.export.convert import export, write_bundle
from medvlm.export.recipe import NF4, W8A8, Blockwise, Float32, Precision, Recipe, make_recipe
from medvlm.quant import dequantize, dequantize_nf4, quantize, quantize_nf4
from medvlm.runtime import MedVLM
from medvlm.runtime import decoder as decoder_module
from medvlm.runtime.dataset import DatasetItem
from medvlm.runtime.decoder import Decoder
from medvlm.runtime.decoding import Decoding
from medvlm.runtime.manifest import Generation
from medvlm.runtime.processor import Request
from medvlm.runtime.stream import Clock, Progress
from numpy.typing import NDArray
from transformers import Qwen2VLForConditionalGeneration

NEW_TOKENS = 64
PLAIN = Decoding(max_new_tokens=NEW_TOKENS, constrained=False, max_draft=0)
QUESTION = "What is seen in this image?\nA) Brain\nB) Knee"

# Head sizes 32, 16, 64 and 128; 2 to 5 layers; grouped 3, 2, 2 and 6 to 1; vocabularies of 304, 311, 512 and 401.
SHAPES = {
    "tied": RandomCheckpoint(dtype="F32"),
    "untied": RandomCheckpoint(
        vision=dataclasses.replace(VISION, depth=1, embed_dim=48, num_heads=3, mlp_dim=192, out_dim=64),
        text=dataclasses.replace(
            TEXT,
            layers=3,
            hidden_size=64,
            intermediate_size=96,
            num_heads=4,
            num_kv_heads=2,
            head_size=16,
            vocab_size=311,
            rms_norm_eps=1e-5,
            mrope_section=(2, 3, 3),
            tied_embeddings=False,
        ),
        dtype="F32",
        seed=1,
    ),
    "deep": RandomCheckpoint(
        vision=dataclasses.replace(VISION, depth=4, embed_dim=80, num_heads=1, mlp_dim=320, out_dim=256),
        text=dataclasses.replace(
            TEXT,
            layers=5,
            hidden_size=256,
            intermediate_size=100,
            num_heads=4,
            num_kv_heads=2,
            head_size=64,
            vocab_size=512,
            rope_theta=10_000.0,
            mrope_section=(8, 12, 12),
        ),
        dtype="BF16",
        shards=3,
        seed=2,
    ),
    "real heads": RandomCheckpoint(
        vision=dataclasses.replace(VISION, embed_dim=160, num_heads=2, mlp_dim=320, out_dim=768),
        text=dataclasses.replace(
            TEXT,
            hidden_size=768,
            intermediate_size=300,
            num_heads=6,
            num_kv_heads=1,
            head_size=128,
            vocab_size=401,
            mrope_section=(16, 24, 24),
            tied_embeddings=False,
        ),
        dtype="F16",
        seed=3,
    ),
}


@dataclass(frozen=True)
class Pair:
    """Our model of a bundle, and transformers' of its checkpoint (its own annotations do not hold for tensors)."""

    ours: MedVLM
    reference: Any


def load_pair(shape: str, recipe: Recipe, directory: Path) -> Pair:
    SHAPES[shape].write(directory / "checkpoint")
    export(directory / "checkpoint", directory / "bundle", recipe)
    reference: Any = Qwen2VLForConditionalGeneration.from_pretrained(directory / "checkpoint", dtype=torch.float32)
    reference.eval()
    _round_weights(reference, recipe)
    # Nothing is kept from one question to the next, so that each test runs what it says.
    ours = MedVLM.load(directory / "bundle", threads=1, prefix_mb=0)
    # Neither side stops at an end token, so that all 64 are compared.
    reference.generation_config.eos_token_id = None
    ours.manifest = dataclasses.replace(ours.manifest, generation=Generation(eos_token_ids=()))
    return Pair(ours, reference)


def _round_weights(reference: Any, recipe: Recipe) -> None:
    """Give torch the weights that the bundle holds; the head apart from the table, as the bundle has them."""
    table = reference.get_input_embeddings().weight
    head = _rounded(reference.get_output_embeddings().weight, recipe.head)
    for name, module in reference.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            precision = recipe.vision if name.startswith("visual.") else recipe.decoder
            module.weight = _rounded(module.weight, precision)
    reference.lm_head.weight = head
    if recipe.embedding == "float16":
        table.data = table.data.half().float()


def _rounded(weight: torch.Tensor, precision: Precision) -> torch.nn.Parameter:
    values = weight.detach().clone()
    assert not isinstance(precision, W8A8), "its activations are rounded too"
    if isinstance(precision, Blockwise):
        packed = quantize(values.numpy(), precision.bits, precision.block_size, symmetric=precision.symmetric)
        values = torch.from_numpy(dequantize(packed).copy())
    if isinstance(precision, NF4):
        values = torch.from_numpy(dequantize_nf4(quantize_nf4(values.numpy(), precision.block_size)))
    return torch.nn.Parameter(values, requires_grad=False)


@pytest.fixture(scope="module", params=[(shape, split) for shape in SHAPES for split in (False, True)], ids=str)
def exact_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """In float32, prompts through the decoder or through a prefill graph of their own."""
    shape, split = request.param
    recipe = dataclasses.replace(make_recipe("fp32"), prefill=Float32() if split else None)
    return load_pair(shape, recipe, tmp_path_factory.mktemp("fp32"))


def make_request(model: MedVLM, images: int) -> Request:
    rng = np.random.default_rng(images)
    sizes = [(224, 224), (60, 300), (130, 100)]
    pixels = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    return model.processor.prepare(pixels[:images], QUESTION)


def image_inputs(request: Request) -> dict[str, torch.Tensor]:
    cut = [picture.patches() for picture in request.images]
    if not cut:
        return {}
    return {
        "pixel_values": torch.from_numpy(np.concatenate([patches.pixel_values for patches in cut])),
        "image_grid_thw": torch.tensor([[1, *patches.grid] for patches in cut]),
        "mm_token_type_ids": torch.from_numpy((request.token_ids == 261).astype(np.int32))[None],
    }


def reference_tokens(pair: Pair, request: Request) -> list[int]:
    ids = torch.from_numpy(request.token_ids)[None]
    out = pair.reference.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        top_k=None,
        max_new_tokens=NEW_TOKENS,
        **image_inputs(request),
    )
    return out[0, ids.shape[1] :].tolist()


def our_tokens(model: MedVLM, request: Request) -> list[int]:
    return list(model.run(request, PLAIN).finish().token_ids)


def assert_same_tokens(pair: Pair, images: int) -> None:
    request = make_request(pair.ours, images)
    expected = reference_tokens(pair, request)
    assert len(expected) == NEW_TOKENS
    assert len(set(expected)) >= 8, "a loop of a few tokens proves little"
    assert our_tokens(pair.ours, request) == expected


@pytest.mark.parametrize("images", [0, 1, 3])
def test_fp32_bundle_says_the_same_64_tokens_as_transformers(exact_pair: Pair, images: int) -> None:
    assert_same_tokens(exact_pair, images)


@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize(
    ("shape", "name", "block_size", "symmetric"),
    [
        ("tied", "int4", 32, False),
        ("untied", "int4", 128, True),
        ("deep", "int4", 64, False),
        ("real heads", "int4", 256, False),
        ("tied", "int8", 128, True),
        ("deep", "int8", 32, False),
    ],
)
def test_quantized_bundle_says_what_transformers_says_with_the_dequantized_weights(
    shape: str, name: str, block_size: int, symmetric: bool, images: int, tmp_path: Path
) -> None:
    assert name in ("int4", "int8")
    recipe = make_recipe(
        name,
        block_size,
        symmetric=symmetric,
        accuracy_level=0,
        vision="w8",
        prefill="same",
        # The checkpoint's own weights, rounded to the nearest, are what torch is given.
        method="rtn",
        smooth=False,
    )
    assert_same_tokens(load_pair(shape, recipe, tmp_path), images)


@pytest.mark.parametrize(("shape", "block_size", "images"), [("tied", None, 1), ("untied", 32, 0), ("deep", 256, 1)])
def test_nf4_bundle_says_what_transformers_says_with_the_dequantized_weights(
    shape: str, block_size: int | None, images: int, tmp_path: Path
) -> None:
    recipe = make_recipe("nf4", block_size, vision="fp32", prefill="same", smooth=False)
    assert_same_tokens(load_pair(shape, recipe, tmp_path), images)


# The levels of NF4, from appendix E of QLoRA's paper.
NF4_LEVELS = np.array(
    [
        *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
    ],
    np.float32,
)


def stored_weight(node: onnx.NodeProto, arrays: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The weight [out, in] that a product of a graph multiplies by, as the operator's documentation has it."""
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "MatMul":
        return arrays[node.input[1]].T
    rows, columns, size = sizes["N"], sizes["K"], sizes["block_size"]
    codes, scales = arrays[node.input[1]], arrays[node.input[2]].reshape(-1)
    if node.op_type == "MatMulBnb4":
        flat = NF4_LEVELS[np.stack(np.divmod(codes, 16), axis=1).reshape(-1)][: rows * columns]
        return (flat * np.repeat(scales, size)[: flat.size]).reshape(rows, columns)
    bits, blocks = sizes["bits"], -(-columns // size)

    def unpacked(packed: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
        """Rows of codes, the first in a byte's lowest bits."""
        parts = [packed.reshape(rows, -1) >> shift & ((1 << bits) - 1) for shift in range(0, 8, bits)]
        found = np.stack(parts, axis=-1).reshape(rows, -1)
        return found[:, :count].astype(np.float32)

    zeros = np.full((rows, blocks), 1 << (bits - 1), np.float32)
    if len(node.input) > 3 and node.input[3]:
        zeros = unpacked(arrays[node.input[3]], blocks)
    values = unpacked(codes, blocks * size).reshape(rows, blocks, size) - zeros[..., None]
    return (values * scales.reshape(rows, blocks, 1)).reshape(rows, -1)[:, :columns]


def stored_tensors(bundle: Path) -> dict[str, NDArray[Any]]:
    """Every tensor of the two graphs, the weights dequantized, under transformers' names."""
    found: dict[str, NDArray[Any]] = {}
    for name in ("vision_encoder.onnx", "decoder.onnx"):
        graph = onnx.load(bundle / name).graph
        arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type in ("MatMul", "MatMulNBits", "MatMulBnb4"):
                scope = node.name.strip("/").rpartition("/")[0]
                tensors = {"weight": stored_weight(node, arrays), "bias": arrays.get(f"{scope}.bias")}
                found |= {f"{scope}.{kind}": tensor for kind, tensor in tensors.items() if tensor is not None}
        # Norms have the checkpoint's names already.
        found |= {key: array for key, array in arrays.items() if key.startswith(("model.", "visual."))}
    return _with_hub_names(found)


def _with_hub_names(tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for name, array in tensors.items():
        scope, _, kind = name.rpartition(".")
        if scope.startswith("layers."):
            module = scope.replace("/attn/", "/self_attn/").replace("/", ".")
            found |= {f"model.{module}.{kind}": array}
        elif scope.startswith(("blocks.", "merger/")) or scope == "patch_embed":
            found[f"visual.{scope.replace('/', '.').replace('patch_embed', 'patch_embed.proj')}.{kind}"] = array
        else:
            found[name] = array
    return found


def give_stored_weights(reference: Any, bundle: Path) -> None:
    """Let transformers' model multiply by what a bundle holds; every weight of it is replaced."""
    tensors = stored_tensors(bundle)
    state = dict(reference.named_parameters())
    given: set[str] = set()

    def put(name: str, array: NDArray[Any]) -> None:
        hub = name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name
        hub = f"model.{hub}" if hub.startswith("visual.") else hub
        state[hub].data = torch.from_numpy(np.array(array, np.float32)).reshape(state[hub].shape)
        given.add(hub)

    for name, array in tensors.items():
        stem, _, kind = name.rpartition(".")
        if stem.endswith("qkv_proj"):
            parts = [f"{stem.removesuffix('qkv_proj')}{part}_proj.{kind}" for part in "qkv"]
            rows = [state[part.replace("model.", "model.language_model.", 1)].shape[0] for part in parts]
            for part, piece in zip(parts, np.split(array, np.cumsum(rows)[:-1]), strict=True):
                put(part, piece)
        elif stem.startswith("visual.") and stem.endswith("attn.q"):
            both = (tensors[f"{stem[:-1]}{part}.{kind}"] for part in "qkv")
            put(f"{stem[:-1]}qkv.{kind}", np.concatenate(list(both)))
        elif not (stem.startswith("visual.") and stem.endswith(("attn.k", "attn.v"))):
            put(name, array)
    assert set(state) - given == {"model.language_model.embed_tokens.weight"}


def load_stored_pair(
    shape: str, recipe: Recipe, directory: Path, items: list[DatasetItem], mixed_mb: float | None = None
) -> Pair:
    """The bundle of a recipe, calibrated where it wants that, and transformers' model with the bundle's weights."""
    SHAPES[shape].write(directory / "checkpoint")
    checkpoint, out, workdir = open_checkpoint(directory / "checkpoint"), directory / "bundle", None
    if recipe.calibrated or mixed_mb is not None:
        collected = collect(checkpoint, out, recipe, Calibration("own", items, 1, mixed_mb))
        recipe, workdir = collected.recipe, collected.workdir
    write_bundle(checkpoint, out, recipe, calibrated=workdir)
    reference: Any = Qwen2VLForConditionalGeneration.from_pretrained(directory / "checkpoint", dtype=torch.float32)
    reference.eval()
    reference.lm_head.weight = torch.nn.Parameter(reference.lm_head.weight.detach().clone(), requires_grad=False)
    give_stored_weights(reference, out)
    table = reference.get_input_embeddings().weight
    table.data = table.data.half().float()
    ours = MedVLM.load(out, threads=1, prefix_mb=0)
    reference.generation_config.eos_token_id = None
    ours.manifest = dataclasses.replace(ours.manifest, generation=Generation(eos_token_ids=()))
    return Pair(ours, reference)


# Every method, with scales folded in and without: as torch knows nothing of them, they must be in the bundle's norms.
@pytest.mark.parametrize(
    ("shape", "options", "mixed_mb"),
    [
        ("tied", {"method": "rtn"}, None),
        ("untied", {"method": "rtn", "symmetric": True, "smooth": False}, None),
        ("tied", {"method": "rtn-search"}, None),
        ("tied", {"method": "hqq", "smooth": False}, None),
        ("untied", {"method": "hqq", "symmetric": True}, None),
        ("untied", {"method": "awq"}, None),
        ("tied", {"method": "awq", "symmetric": True, "smooth": False}, None),
        ("untied", {"method": "gptq", "smooth": False}, None),
        ("tied", {"method": "gptq", "act_order": True}, None),
        ("deep", {"method": "awq+gptq", "act_order": True}, None),
        ("tied", {"method": "awq+gptq", "smooth": False, "head": "int8"}, None),
        ("untied", {"method": "hqq"}, 0.01),
        ("tied", {"method": "gptq"}, 0.02),
        ("untied", {"vision": "w8"}, None),
        ("tied", {"vision": "w4", "method": "rtn"}, None),
        ("untied", {"name": "nf4", "smooth": False}, None),
        ("tied", {"name": "nf4", "smooth": True, "head": "int4", "vision": "w8"}, None),
        ("tied", {"name": "int8", "smooth": False}, None),
        ("untied", {"name": "int8", "method": "awq", "smooth": True}, None),
    ],
    ids=str,
)
def test_every_method_says_what_transformers_says_with_the_stored_weights(
    shape: str, options: dict[str, Any], mixed_mb: float | None, tiny_items: list[DatasetItem], tmp_path: Path
) -> None:
    chosen = {"name": "int4", "vision": "fp32", "prefill": "same", "block_size": 32, "accuracy_level": 0, **options}
    pair = load_stored_pair(shape, make_recipe(**chosen), tmp_path, tiny_items[:2], mixed_mb)
    if mixed_mb is not None:
        assert 0 < len(pair.ours.manifest.recipe["eight_bits"]) < 5 * SHAPES[shape].text.layers
    assert_same_tokens(pair, 1)


def test_vision_features_equal_transformers_within_1e_4(exact_pair: Pair) -> None:
    request = make_request(exact_pair.ours, 3)
    inputs = image_inputs(request)
    with torch.no_grad():
        expected = exact_pair.reference.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    features = np.concatenate([exact_pair.ours._vision.encode(picture.patches()) for picture in request.images])
    np.testing.assert_allclose(features, expected.pooler_output.numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("images", [0, 1, 3])
def test_positions_equal_get_rope_index(exact_pair: Pair, images: int) -> None:
    request = make_request(exact_pair.ours, images)
    ids = torch.from_numpy(request.token_ids)[None]
    inputs = image_inputs(request)
    expected, _ = exact_pair.reference.model.get_rope_index(
        ids,
        mm_token_type_ids=inputs.get("mm_token_type_ids", torch.zeros_like(ids, dtype=torch.int32)),
        image_grid_thw=inputs.get("image_grid_thw"),
    )
    np.testing.assert_array_equal(request.positions, expected[:, 0].numpy())


@pytest.mark.parametrize(("images", "tokens"), [(0, 1), (2, 40)])
def test_scores_of_a_given_answer_are_transformers_logits(exact_pair: Pair, images: int, tokens: int) -> None:
    """Whatever the answer says: these tokens are random, and fed in pieces of 16."""
    model, rng = exact_pair.ours, np.random.default_rng(tokens)
    request = make_request(model, images)
    answer = [int(token) for token in rng.integers(0, 256, tokens)]
    ids = torch.from_numpy(np.concatenate([request.token_ids, answer]))[None]
    inputs = image_inputs(request)
    if images:
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, tokens))
    with torch.no_grad():
        logits = exact_pair.reference(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits[0]
    expected = logits[len(request.token_ids) - 1 : -1].numpy()
    scores = model.score(request, answer)
    assert scores.shape == expected.shape
    np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=1e-4)


def prefill_in_parts(model: MedVLM, request: Request, split: int) -> tuple[Decoder, NDArray[np.float32]]:
    """The sequence after a prompt that was prefilled in two calls, and the logits."""
    decoder = model.prefill.prefixes.sequence(request.contents, len(request.token_ids) + NEW_TOKENS)
    assert isinstance(decoder, Decoder)
    assert decoder.length == 0
    embeddings = model.prefill.embed(request, 0, Progress(Clock()))
    model.prefill.write_rotary(request, decoder, NEW_TOKENS)
    decoder.prefill(embeddings[:split])
    return decoder, decoder.prefill(embeddings[split:]).copy()


def splits(request: Request, every: int) -> list[int]:
    """After how many tokens to split: each `every`-th number, the first and last, and all around an image's ends."""
    last = len(request.token_ids) - 1
    near = {slot + i for span in request.contents.images for slot in (span.start, span.end) for i in (-1, 0, 1)}
    return sorted({*range(1, last, every), last - 1, last} | near)


def test_a_prefill_split_anywhere_gives_the_same_tokens(exact_pair: Pair) -> None:
    model = exact_pair.ours
    request = make_request(model, 1)
    expected = our_tokens(model, request)
    _, whole = prefill_in_parts(model, request, len(request.token_ids) // 2)
    for split in splits(request, every=1 if model.manifest.text.hidden_size < 100 else 6):
        decoder, logits = prefill_in_parts(model, request, split)
        np.testing.assert_allclose(logits, whole, atol=1e-4, rtol=1e-4)
        tokens = [int(np.argmax(logits))]
        while len(tokens) < (NEW_TOKENS if split % 42 == 1 else 4):
            tokens.append(int(np.argmax(decoder.extend(tokens[-1:])[0])))
        assert tokens == expected[: len(tokens)], f"split after {split} tokens"


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_the_size_of_prefill_chunks_changes_no_token(
    exact_pair: Pair, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request(exact_pair.ours, 3)
    expected = our_tokens(exact_pair.ours, request)
    monkeypatch.setattr(decoder_module, "PREFILL_CHUNK", chunk)
    assert our_tokens(exact_pair.ours, request) == expected


def test_going_back_to_a_prefix_leaves_nothing_of_what_followed(exact_pair: Pair) -> None:
    long, short = make_request(exact_pair.ours, 3), make_request(exact_pair.ours, 0)
    expected = our_tokens(exact_pair.ours, short)
    our_tokens(exact_pair.ours, long)
    assert our_tokens(exact_pair.ours, short) == expected


@pytest.mark.parametrize(("name", "bound"), [("int4", 0.995), ("int8", 0.995)])
@pytest.mark.parametrize("shape", SHAPES)
def test_accuracy_level_4_keeps_the_direction_of_the_logits(
    shape: str, name: str, bound: float, tmp_path: Path
) -> None:
    """Rounding activations to int8 per block may turn the logits by this much, cosine, from float32 products."""
    assert name in ("int4", "int8")
    SHAPES[shape].write(tmp_path / "checkpoint")
    logits = []
    for level in (0, 4):
        out = tmp_path / f"level{level}"
        export(tmp_path / "checkpoint", out, make_recipe(name, 32, accuracy_level=level, vision="w8", prefill="same"))
        model = MedVLM.load(out, threads=1, prefix_mb=0)
        request = make_request(model, 1)
        logits.append(prefill_in_parts(model, request, 1)[1].astype(np.float64))
    cosine = logits[0] @ logits[1] / np.linalg.norm(logits[0]) / np.linalg.norm(logits[1])
    print(f"cosine of the logits at accuracy_level 4, {shape} {name}: {cosine:.5f}")  # noqa: T201
    assert cosine > bound
