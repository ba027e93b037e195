"""What the bundles hold: graphs that onnx accepts, in the precision that was asked for, and digests that are true."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from medvlm.demo.random_checkpoint import TEXT, VISION
from medvlm.export.convert import export
from medvlm.export.recipe import Recipe, make_recipe
from medvlm.export.safetensors import find_tensors
from medvlm.export.tensors import EMBEDDING
from medvlm.runtime.bundle import open_bundle
from numpy.typing import NDArray
from onnx import numpy_helper

ENCODER, DECODER, PREFILL = "vision_encoder.onnx", "decoder.onnx", "prefill.onnx"
PRODUCTS = {"MatMul", "MatMulNBits", "MatMulIntegerToFloat"}
Operator = tuple[str, int | None]
FLOATS, INT4, INT8, ROWS = ("MatMul", None), ("MatMulNBits", 4), ("MatMulNBits", 8), ("MatMulIntegerToFloat", None)

# Each recipe with the operator, and its bits, of the vision encoder, of the decoder, and of prefill if there is one.
RECIPES: dict[str, tuple[Recipe, Operator, Operator, Operator | None]] = {
    "int4": (make_recipe("int4", 64), ROWS, INT4, ROWS),
    "int8": (make_recipe("int8", 64), ROWS, INT8, ROWS),
    "fp32": (make_recipe("fp32"), FLOATS, FLOATS, None),
    "int4, blocks alone": (make_recipe("int4", 64, vision="w8", prefill="same"), INT8, INT4, None),
    "int4, exact vision": (make_recipe("int4", 64, vision="fp32", prefill="w8a8"), FLOATS, INT4, ROWS),
    "fp32, rows": (make_recipe("fp32", vision="w8a8", prefill="w8a8"), ROWS, FLOATS, ROWS),
}


@dataclass(frozen=True)
class Exported:
    """A bundle, and the operators that its graphs are to be made of."""

    directory: Path
    operators: dict[str, Operator]


@pytest.fixture(scope="module", params=RECIPES)
def bundle(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    out = tmp_path_factory.mktemp("graphs") / "bundle"
    recipe, *operators = RECIPES[request.param]
    export(tiny_checkpoint, out, recipe)
    return Exported(out, {n: o for n, o in zip((ENCODER, DECODER, PREFILL), operators, strict=True) if o is not None})


@pytest.fixture(scope="module")
def rows_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose vision encoder and prefill multiply int8 by int8."""
    out = tmp_path_factory.mktemp("graphs") / "bundle"
    # With scales folded in, the weights would not be the checkpoint's.
    export(tiny_checkpoint, out, dataclasses.replace(RECIPES["int4"][0], smooth=False))
    return out


def load(bundle: Path, graph: str, *, data: bool = False) -> onnx.GraphProto:
    return onnx.load(bundle / graph, load_external_data=data).graph


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def scope_of(node: onnx.NodeProto) -> str:
    return node.name.rpartition("/")[0]


def products(graph: onnx.GraphProto) -> dict[str, tuple[str, object]]:
    """Each matrix product by its scope: the operator, and its bits where it has some."""
    nodes = [node for node in graph.node if node.op_type in PRODUCTS]
    return {scope_of(node): (node.op_type, attributes(node).get("bits")) for node in nodes}


def weights_in(graph: onnx.GraphProto) -> int:
    """How many weights all products of a graph multiply by."""
    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            rows, columns = (attributes(node)[name] for name in "NK")
            assert isinstance(rows, int)
            assert isinstance(columns, int)
            total += rows * columns
        elif node.op_type in PRODUCTS:
            total += int(np.prod(shapes[node.input[1]]))
    return total


def test_there_are_as_many_graphs_as_the_recipe_says(bundle: Exported) -> None:
    graphs = {path.name for path in bundle.directory.glob("*.onnx")}
    assert graphs == set(bundle.operators)
    assert {path.name for path in bundle.directory.glob("*.onnx.data")} == {f"{name}.data" for name in graphs}


def test_the_onnx_checker_accepts_every_graph(bundle: Exported) -> None:
    for graph in bundle.operators:
        onnx.checker.check_model(str(bundle.directory / graph), full_check=False)
        names = [node.name for node in load(bundle.directory, graph).node]
        assert len(set(names)) == len(names)


def test_every_product_is_in_the_precision_of_its_graph(bundle: Exported) -> None:
    for graph, operator in bundle.operators.items():
        found = products(load(bundle.directory, graph))
        assert found.pop("/patch_embed", FLOATS) == FLOATS, "the patch embedding stays float32"
        assert set(found.values()) == {operator}


def test_every_linear_layer_of_the_checkpoint_is_in_the_graphs(bundle: Exported, tiny_checkpoint: Path) -> None:
    """A layer may be several products, over pieces of it, that are added up."""
    sizes = {n: int(np.prod(i.shape)) for n, i in find_tensors(tiny_checkpoint).items() if len(i.shape) > 1}
    last = f"model.layers.{TEXT.layers - 1}."
    not_in_prefill = (f"{last}self_attn.o_proj", f"{last}mlp", EMBEDDING)
    wanted = {
        ENCODER: [name for name in sizes if name.startswith("visual.")],
        # The embedding is the head too, since it is tied.
        DECODER: [name for name in sizes if name.startswith("model.")],
        PREFILL: [name for name in sizes if name.startswith("model.") and not name.startswith(not_in_prefill)],
    }
    for graph in bundle.operators:
        assert weights_in(load(bundle.directory, graph)) == sum(sizes[name] for name in wanted[graph]), graph


def test_products_are_as_many_as_layers_and_pieces(bundle: Exported) -> None:
    # A hidden layer of 128 over an output of 64 is two pieces of fc1 and of fc2; in blocks and floats it is one.
    pieces = 2 if bundle.operators[ENCODER] == ROWS else 1
    # q, k, v, proj, fc1 and fc2 of each block, the patch embedding and two layers of the merger.
    wanted = {
        ENCODER: (4 + 2 * pieces) * VISION.depth + 3,
        # packed qkv, o, gate, up and down of each layer, and the head.
        DECODER: 5 * TEXT.layers + 1,
        # of the last layer qkv alone.
        PREFILL: 5 * (TEXT.layers - 1) + 1,
    }
    for graph in bundle.operators:
        assert len(products(load(bundle.directory, graph))) == wanted[graph]


def test_norms_biases_and_scales_are_float32(bundle: Exported) -> None:
    for graph in bundle.operators:
        for tensor in load(bundle.directory, graph).initializer:
            packed = tensor.name.endswith((".weight", ".zero_points")) and tensor.data_type == onnx.TensorProto.UINT8
            codes = tensor.name.endswith(".weight") and tensor.data_type == onnx.TensorProto.INT8
            small = tensor.data_type == onnx.TensorProto.INT64 or tensor.name.endswith("zero_point")
            assert packed or codes or small or tensor.data_type == onnx.TensorProto.FLOAT, tensor.name
            if "norm" in tensor.name or tensor.name.endswith((".bias", ".scales")):
                assert tensor.data_type == onnx.TensorProto.FLOAT, tensor.name


def test_attention_takes_the_rotary_tables_and_the_cache_from_the_inputs(bundle: Exported) -> None:
    for name in {DECODER, PREFILL} & set(bundle.operators):
        graph = load(bundle.directory, name)
        attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
        assert len(attention) == TEXT.layers
        inputs, outputs = ({value.name for value in values} for values in (graph.input, graph.output))
        for i, node in enumerate(attention):
            assert {f"past_key_values.{i}.key", f"past_key_values.{i}.value", "cos_cache", "sin_cache"} <= {*node.input}
            assert {*node.input[3:]} <= inputs
            assert {*node.output[1:]} <= outputs
            assert attributes(node)["do_rotary"] == 1


# Prefill, and products of int8 by int8


def test_prefill_fills_the_decoders_own_cache_and_says_nothing(rows_bundle: Path) -> None:
    decoder, prefill = (load(rows_bundle, graph) for graph in (DECODER, PREFILL))
    inputs = {value.name: value for value in decoder.input}
    assert inputs.pop("logit_rows")
    assert {value.name: value for value in prefill.input} == inputs
    outputs = {value.name: value for value in decoder.output}
    assert outputs.pop("logits")
    assert {value.name: value for value in prefill.output} == outputs


def test_prefill_lacks_what_only_logits_need(rows_bundle: Path) -> None:
    last = f"/layers.{TEXT.layers - 1}/"
    nodes = load(rows_bundle, PREFILL).node
    assert {node.op_type for node in nodes if node.name.startswith(f"{last}mlp")} == set()
    assert [scope for scope in products(load(rows_bundle, PREFILL)) if scope.startswith(last)] == [
        f"{last}attn/qkv_proj"
    ]
    assert not any("lm_head" in node.name or "model.norm.weight" in node.input for node in nodes)


def checkpoint_weights(checkpoint: Path, name: str) -> NDArray[np.float32]:
    return find_tensors(checkpoint)[name].read()


@pytest.mark.parametrize("graph", [ENCODER, PREFILL])
def test_rows_of_int8_are_multiplied_with_a_scale_for_each_output_channel(rows_bundle: Path, graph: str) -> None:
    loaded = load(rows_bundle, graph, data=True)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in loaded.initializer}
    nodes = [node for node in loaded.node if node.op_type == "MatMulIntegerToFloat"]
    assert nodes
    for node in nodes:
        codes, step, scales, zero_point, weight_zero_point = (arrays[name] for name in node.input[1:])
        assert codes.dtype == np.int8
        assert scales.shape == codes.shape[1:]
        assert scales.dtype == np.float32
        assert codes.min() >= -127
        np.testing.assert_array_equal(np.abs(codes.astype(np.int32)).max(axis=0), 127)
        assert step.item() == np.float32(1 / 127)
        assert (zero_point.dtype, zero_point.item()) == (np.uint8, 128)
        assert (weight_zero_point.dtype, weight_zero_point.item()) == (np.int8, 0)
    # onnxruntime changes a weight and its zero point together, on CPUs without VNNI.
    assert len({node.input[5] for node in nodes}) == len(nodes)


def test_codes_times_scales_are_the_checkpoints_weights_to_half_a_step(
    rows_bundle: Path, tiny_checkpoint: Path
) -> None:
    graph = load(rows_bundle, PREFILL, data=True)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    packed = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]
    weight = np.concatenate([checkpoint_weights(tiny_checkpoint, name) for name in packed])
    scales = arrays["layers.0/attn/qkv_proj.scales"]
    stored = arrays["layers.0/attn/qkv_proj.weight"].astype(np.float32) * scales
    assert np.all(np.abs(stored.T - weight) <= scales[:, None] * 0.5001)


def test_the_patch_embedding_is_the_checkpoints_own(rows_bundle: Path, tiny_checkpoint: Path) -> None:
    graph = load(rows_bundle, ENCODER, data=True)
    (stored,) = (numpy_helper.to_array(t) for t in graph.initializer if t.name == "patch_embed.weight")
    weight = checkpoint_weights(tiny_checkpoint, "visual.patch_embed.proj.weight")
    np.testing.assert_array_equal(stored, weight.reshape(len(weight), -1).T)


def test_each_input_is_quantized_once_for_all_its_products(rows_bundle: Path) -> None:
    """q, k and v of a block read the same rows, and so do gate and up."""
    for graph in (ENCODER, PREFILL):
        nodes = load(rows_bundle, graph).node
        quantized = [node.input[0] for node in nodes if node.op_type == "QuantizeLinear"]
        assert len(set(quantized)) == len(quantized)
        read = [node.input[0] for node in nodes if node.op_type == "MatMulIntegerToFloat"]
        assert len(set(read)) == len(quantized) < len(read)


# The manifest


def test_the_manifest_tells_the_digest_of_every_file(bundle: Exported, tiny_checkpoint: Path) -> None:
    manifest = open_bundle(bundle.directory).manifest
    for directory, digests in (
        (bundle.directory, {name: entry.sha256 for name, entry in manifest.files.items()}),
        (tiny_checkpoint, manifest.source.sha256),
    ):
        present = {path.name for path in directory.iterdir()} - {"manifest.json"}
        assert set(digests) == present
        for name, digest in digests.items():
            assert digest == hashlib.sha256((directory / name).read_bytes()).hexdigest(), name


def test_parts_add_up_to_the_files(bundle: Exported) -> None:
    manifest = open_bundle(bundle.directory).manifest
    tokenizer = manifest.files["tokenizer.json"].size
    assert sum(part.bytes for part in manifest.parts) + tokenizer == sum(f.size for f in manifest.files.values())
    assert ("prefill" in [part.name for part in manifest.parts]) == (PREFILL in bundle.operators)
