"""What the bundles hold: graphs that onnx accepts, in the precision that was asked for, and digests that are true."""

import hashlib
from pathlib import Path

import onnx
import pytest
from medvlm.demo.random_checkpoint import TEXT, VISION
from medvlm.export.convert import export
from medvlm.export.recipe import make_recipe
from medvlm.runtime.bundle import open_bundle

GRAPHS = ("vision_encoder.onnx", "decoder.onnx")


@pytest.fixture(scope="module", params=["int4", "int8", "fp32"])
def bundle(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("graphs") / request.param
    export(tiny_checkpoint, out, make_recipe(request.param, 64))
    return out


def load(bundle: Path, graph: str) -> onnx.GraphProto:
    return onnx.load(bundle / graph, load_external_data=False).graph


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def products(graph: onnx.GraphProto) -> dict[str, tuple[str, object]]:
    """Each matrix product by its scope: the operator, and its bits where it has some."""
    nodes = [node for node in graph.node if node.op_type in ("MatMul", "MatMulNBits")]
    return {node.name.rpartition("/")[0]: (node.op_type, attributes(node).get("bits")) for node in nodes}


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_onnx_checker_accepts_the_graph(bundle: Path, graph: str) -> None:
    path = str(bundle / graph)
    onnx.checker.check_model(path, full_check=False)
    names = [node.name for node in load(bundle, graph).node]
    assert len(set(names)) == len(names)


def test_vision_has_eight_bits_where_the_decoder_has_four(bundle: Path) -> None:
    wanted = {"int4": (8, 4), "int8": (8, 8), "fp32": (None, None)}[bundle.name]
    for graph, bits in zip(GRAPHS, wanted, strict=True):
        operator = "MatMulNBits" if bits else "MatMul"
        found = products(load(bundle, graph))
        assert found.pop("/patch_embed", None) in (None, ("MatMul", None)), "the patch embedding stays float32"
        assert set(found.values()) == {(operator, bits)}


def test_every_linear_layer_of_the_checkpoint_is_in_the_graphs(bundle: Path) -> None:
    # qkv, proj, fc1 and fc2 of each block, the patch embedding and two layers of the merger.
    assert len(products(load(bundle, GRAPHS[0]))) == 4 * VISION.depth + 3
    # packed qkv, o, gate, up and down of each layer, and the head.
    assert len(products(load(bundle, GRAPHS[1]))) == 5 * TEXT.layers + 1


@pytest.mark.parametrize("graph", GRAPHS)
def test_norms_biases_and_scales_are_float32(bundle: Path, graph: str) -> None:
    for tensor in load(bundle, graph).initializer:
        packed = tensor.name.endswith((".weight", ".zero_points")) and tensor.data_type == onnx.TensorProto.UINT8
        sizes = tensor.data_type == onnx.TensorProto.INT64
        assert packed or sizes or tensor.data_type == onnx.TensorProto.FLOAT, tensor.name
        if "norm" in tensor.name or tensor.name.endswith((".bias", ".scales")):
            assert tensor.data_type == onnx.TensorProto.FLOAT, tensor.name


def test_attention_takes_the_rotary_tables_and_the_cache_from_the_inputs(bundle: Path) -> None:
    graph = load(bundle, GRAPHS[1])
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    assert len(attention) == TEXT.layers
    inputs, outputs = ({value.name for value in values} for values in (graph.input, graph.output))
    for i, node in enumerate(attention):
        assert {f"past_key_values.{i}.key", f"past_key_values.{i}.value", "cos_cache", "sin_cache"} <= {*node.input}
        assert {*node.input[3:]} <= inputs
        assert {*node.output[1:]} <= outputs
        assert attributes(node)["do_rotary"] == 1


def test_the_manifest_tells_the_digest_of_every_file(bundle: Path, tiny_checkpoint: Path) -> None:
    manifest = open_bundle(bundle).manifest
    for directory, digests in (
        (bundle, {name: entry.sha256 for name, entry in manifest.files.items()}),
        (tiny_checkpoint, manifest.source.sha256),
    ):
        present = {path.name for path in directory.iterdir()} - {"manifest.json"}
        assert set(digests) == present
        for name, digest in digests.items():
            assert digest == hashlib.sha256((directory / name).read_bytes()).hexdigest(), name


def test_parts_add_up_to_the_files(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    tokenizer = manifest.files["tokenizer.json"].size
    assert sum(part.bytes for part in manifest.parts) + tokenizer == sum(f.size for f in manifest.files.values())
