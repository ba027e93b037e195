"""The graphs for CUDA, node by node: operators that CUDA has, half floats where they belong, and weights held once."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from medvlm.demo.random_checkpoint import TEXT, VISION, RandomCheckpoint
from medvlm.export import carry_options as carry_module
from medvlm.export.carry_options import Carrying
from medvlm.export.checkpoint import open_checkpoint
from medvlm.export.cli import main
from medvlm.export.convert import bundle_bytes, export, read_bytes, write_bundle
from medvlm.export.kit import KitPlan
from medvlm.export.recipe import DeviceChoice, make_recipe
from medvlm.export.safetensors import find_tensors
from medvlm.runtime.bundle import find_faults, open_bundle, read_manifest
from medvlm.runtime.errors import BundleError, CheckpointError, InputError
from onnx import TensorProto, defs, helper, numpy_helper

ENCODER, DECODER = "vision_encoder.cuda.onnx", "decoder.cuda.onnx"
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT

# The versions of ONNX's operators for which CUDA has kernels, in onnxruntime 1.23 to 1.32 alike: of its table
# docs/OperatorKernels.md, as far as an open end stands for the first version alone (kernel_registry.cc).
KERNELS = {
    "Add": {7, 13, 14},
    "ArgMax": {12, 13},
    "Cast": {6, 9, 13, 19},
    "Gather": {1, 11, 13},
    "Identity": {1, 13, 14, 16},
    "LayerNormalization": {17},
    "MatMul": {1, 9, 13},
    "Mul": {7, 13, 14},
    "ReduceMax": {1, 11, 12, 13, 18},
    "Reshape": {5, 13, 14, 19},
    "Sub": {7, 13, 14},
    "Unsqueeze": {1, 11, 13},
}
# onnxruntime's own, with the types that CUDA has them in; only attention has no float32.
OWN = {
    "Gelu": {FLOAT, HALF},
    "GroupQueryAttention": {HALF},
    "MatMulNBits": {FLOAT, HALF},
    "MultiHeadAttention": {FLOAT, HALF},
    "QuickGelu": {FLOAT, HALF},
    "RotaryEmbedding": {FLOAT, HALF},
    "SkipSimplifiedLayerNormalization": {FLOAT, HALF},
}
EXACT = ("blocks.1", "merger", "layers.0")


@pytest.fixture(scope="module", params=[(), EXACT], ids=["half", "exact layers"])
def bundle(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cuda") / "bundle"
    export(tiny_checkpoint, out, make_recipe("int4", 32, device="cuda", exact=request.param))
    return out


@pytest.fixture(scope="module")
def both(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("both") / "bundle"
    export(tiny_checkpoint, out, make_recipe("int4", 32, device="both"))
    return out


def load(bundle: Path, graph: str, *, data: bool = False) -> onnx.ModelProto:
    return onnx.load(bundle / graph, load_external_data=data)


def attribute(node: onnx.NodeProto, name: str) -> object:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}.get(name)


def opset(model: onnx.ModelProto) -> int:
    return next(entry.version for entry in model.opset_import if entry.domain == "")


def value_types(graph: onnx.GraphProto) -> dict[str, int]:
    """The element type of every value, carried from node to node; fails where two floats of a node differ."""
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        floats = {types[name] for name in node.input if types.get(name) in (HALF, FLOAT)}
        assert len(floats) == 1, f"{node.name} multiplies {floats}"
        made = floats.pop()
        if node.op_type == "Cast":
            made = attribute(node, "to")
        elif node.op_type == "ArgMax":
            made = TensorProto.INT64
        assert isinstance(made, int)
        types |= dict.fromkeys(filter(None, node.output), made)
    return types


def nodes(bundle: Path) -> Iterator[tuple[onnx.ModelProto, onnx.NodeProto]]:
    for graph in (ENCODER, DECODER):
        model = load(bundle, graph)
        for node in model.graph.node:
            yield model, node


def test_the_checker_and_strict_shape_inference_accept_every_graph(bundle: Path) -> None:
    for graph in (ENCODER, DECODER):
        onnx.checker.check_model(str(bundle / graph), full_check=False)
        onnx.shape_inference.infer_shapes(load(bundle, graph, data=True), strict_mode=True, data_prop=True)


def test_every_node_is_of_an_operator_version_and_type_that_cuda_has(bundle: Path) -> None:
    """One that it has not would go to the CPU, with copies, and forbid that the graph's launches are captured."""
    for graph in (ENCODER, DECODER):
        model = load(bundle, graph)
        types = value_types(model.graph)
        for node in model.graph.node:
            if node.domain:
                assert types[node.input[0]] in OWN[node.op_type], node.name
            else:
                version = defs.get_schema(node.op_type, opset(model)).since_version
                assert version in KERNELS[node.op_type], f"{node.op_type}-{version}"


def test_floats_of_a_node_are_of_one_type_and_outputs_of_the_declared(bundle: Path) -> None:
    for graph in (ENCODER, DECODER):
        model = load(bundle, graph)
        types = value_types(model.graph)
        for output in model.graph.output:
            assert types[output.name] == output.type.tensor_type.elem_type, output.name


def test_activations_are_half_floats_but_for_the_exact_layers_the_patches_and_the_head(bundle: Path) -> None:
    exact = read_manifest(bundle).recipe["exact"]
    for graph, always in ((ENCODER, {"patch_embed"}), (DECODER, {"lm_head"})):
        model = load(bundle, graph)
        types, scopes = value_types(model.graph), set[str]()
        for node in model.graph.node:
            if node.op_type in ("MatMul", "MatMulNBits", "QuickGelu", "MultiHeadAttention", "Gelu"):
                scope = node.name.removeprefix("/").partition("/")[0]
                wanted = FLOAT if scope in {*exact, *always} else HALF
                assert types[node.input[0]] == wanted, node.name
                scopes.add(scope)
        assert {"blocks.0", "blocks.1", "merger"} <= scopes or {"layers.0", "layers.1", "lm_head"} <= scopes


def test_cache_and_tables_come_and_go_as_half_floats_and_logits_as_float32(bundle: Path) -> None:
    model = load(bundle, DECODER)
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    cache = [f"past_key_values.{i}.{kind}" for i in range(TEXT.layers) for kind in ("key", "value")]
    assert {types[name] for name in (*cache, "inputs_embeds", "cos_cache", "sin_cache", "present.0.key")} == {HALF}
    assert (types["logits"], types["largest"], types["likeliest"]) == (FLOAT, FLOAT, TensorProto.INT64)
    encoder = load(bundle, ENCODER).graph
    assert {v.type.tensor_type.elem_type for v in (*encoder.input, *encoder.output)} == {FLOAT}


def test_blocks_have_four_bits_and_no_bias_input_which_not_every_cuda_kernel_takes(bundle: Path) -> None:
    found = [(model, node) for model, node in nodes(bundle) if node.op_type == "MatMulNBits"]
    assert len(found) == 5 * TEXT.layers + 1
    exact = read_manifest(bundle).recipe["exact"]
    for model, node in found:
        in_half = not node.name.startswith(tuple(f"/{scope}/" for scope in (*exact, "lm_head")))
        assert (attribute(node, "bits"), attribute(node, "block_size")) == (4, 32)
        assert len(node.input) == (4 if in_half or "qkv" not in node.name else 6)
        types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        assert types[node.input[1]] == types[node.input[3]] == TensorProto.UINT8


def test_quantized_weights_are_those_of_the_bundle_for_cpus(both: Path) -> None:
    """Codes and zero points are the same bytes; scales are them rounded to half floats."""
    ours, theirs = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in load(both, name, data=True).graph.initializer}
        for name in (DECODER, "decoder.onnx")
    )
    packed = [name for name in ours if name.endswith((".weight", ".zero_points")) and ours[name].dtype == np.uint8]
    assert len(packed) == 2 * (5 * TEXT.layers + 1)
    for name in packed:
        np.testing.assert_array_equal(ours[name], theirs[name])
    for name in (name for name in ours if name.endswith(".scales")):
        np.testing.assert_array_equal(ours[name], theirs[name].astype(ours[name].dtype))


def test_a_bundle_for_both_holds_four_bit_weights_once(both: Path) -> None:
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}["location"]
        for tensor in load(both, DECODER).graph.initializer
        if tensor.external_data
    }
    packed = [name for name in places if name.endswith(".weight") and "norm" not in name]
    assert {places[name] for name in packed} == {"decoder.onnx.data"}
    assert places["layers.0/mlp/gate_proj.scales"] == f"{DECODER}.data"
    assert (both / f"{DECODER}.data").stat().st_size < (both / "decoder.onnx.data").stat().st_size
    assert find_faults(both, read_manifest(both), hash_files=True) == []


def test_the_estimate_of_a_bundles_size_holds(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Of a model large enough that names and padding are little beside the weights."""
    text = dataclasses.replace(
        TEXT, hidden_size=768, intermediate_size=1536, num_heads=6, num_kv_heads=2, head_size=128
    )
    text = dataclasses.replace(text, mrope_section=(16, 24, 24))
    RandomCheckpoint(dataclasses.replace(VISION, embed_dim=256, mlp_dim=1024, out_dim=768), text).write(
        tmp_path / "checkpoint"
    )
    for device in ("cpu", "cuda", "both"):
        recipe = make_recipe("int4", 64, device=device)
        manifest = export(tmp_path / "checkpoint", tmp_path / device, recipe)
        written = sum(entry.size for entry in manifest.files.values())
        estimated = bundle_bytes(open_checkpoint(tmp_path / "checkpoint"), recipe)
        assert 0.95 < estimated / written < 1.1, device


@pytest.mark.parametrize(("device", "names"), [("cpu", ["cpu"]), ("cuda", ["cuda"]), ("both", ["cpu", "cuda"])])
def test_the_manifest_says_what_the_bundle_is_for(
    tiny_checkpoint: Path, tmp_path: Path, device: str, names: list[str]
) -> None:
    export(tiny_checkpoint, tmp_path / "out", make_recipe("int4", 32, device=device))  # type: ignore[arg-type]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest.get("devices", ["cpu"]) == manifest["recipe"]["devices"] == names
    graphs = {path.name for path in (tmp_path / "out").glob("*.onnx")}
    assert ("decoder.onnx" in graphs, DECODER in graphs) == ("cpu" in names, "cuda" in names)
    assert open_bundle(tmp_path / "out", hash_files=True).manifest.devices == tuple(names)


def test_a_manifest_for_a_device_that_nobody_knows_is_refused(both: Path, tmp_path: Path) -> None:
    manifest = json.loads((both / "manifest.json").read_text())
    for devices in ([], ["tpu"], ["cpu", "tpu"]):
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "devices": devices}))
        with pytest.raises(BundleError, match="for no device that this medvlm knows; export the bundle again"):
            read_manifest(tmp_path)


def test_weights_beyond_half_floats_are_refused_by_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    name = "model.layers.1.input_layernorm.weight"
    copied = tmp_path / "checkpoint"
    RandomCheckpoint(dtype="F32").write(copied)
    info = find_tensors(copied)[name]
    with info.file.open("r+b") as file:
        file.seek(info.offset)
        file.write(np.full(4, 70_000, "<f4").tobytes())
    with pytest.raises(CheckpointError, match=rf"{name} has values beyond fp16's range; .* --device cpu"):
        export(copied, tmp_path / "out", make_recipe("int4", 32, device="cuda", smooth=False))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"device": "cuda", "block_size": 256}, "--block-size 256 is beyond CUDA's fast kernel; give 128 or less"),
        ({"device": "cuda", "vision": "w8a8"}, "--vision and --prefill w8a8 are for CPUs"),
        ({"device": "cuda", "prefill": "w8a8"}, "--vision and --prefill w8a8 are for CPUs"),
        ({"exact": ("layers.0",)}, "--exact keeps layers of the graphs for CUDA in float32"),
    ],
)
def test_what_does_not_go_together_is_said(given: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_recipe("int4", **given)  # type: ignore[arg-type]


def test_a_layer_that_the_model_has_not_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = [str(tiny_checkpoint), str(tmp_path / "out"), "--device", "cuda", "--exact", "blocks.2"]
    result = CliRunner().invoke(main, arguments)
    says = "--exact blocks.2 is no layer of this model; give blocks.0 to blocks.1, merger, or layers.0 to layers.1"
    assert (result.exit_code, result.stderr) == (2, f"Error: {says}\n")


def test_the_command_writes_for_both_devices_and_shows_their_parts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = [str(tiny_checkpoint), str(tmp_path / "out"), "--device", "both", "--exact", "merger"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    for part in ("vision encoder", "decoder and head", "prefill", "vision on CUDA", "decoder on CUDA"):
        assert f"\n{part} " in result.stdout
    manifest = open_bundle(tmp_path / "out", hash_files=True).manifest
    assert manifest.recipe == make_recipe("int4", device="both", exact=("merger",)).to_json()


def test_a_report_which_is_measured_on_the_cpu_wants_graphs_for_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = [str(tiny_checkpoint), str(tmp_path / "out"), "--device", "cuda", "--report", str(tmp_path / "r.json")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--report measures on the CPU; give --device both, or leave --report out" in result.stderr


@pytest.mark.parametrize("device", ["cuda", "both"])
def test_the_bar_counts_all_that_is_read(tiny_checkpoint: Path, tmp_path: Path, device: DeviceChoice) -> None:
    checkpoint, recipe, read = open_checkpoint(tiny_checkpoint), make_recipe("int4", 32, device=device), list[int]()
    write_bundle(checkpoint, tmp_path / "out", recipe, lambda name, size: read.append(size))
    assert sum(read) == read_bytes(checkpoint, recipe)


@pytest.mark.parametrize(
    ("devices", "given", "extras"),
    [
        (("cpu",), (), ("cpu",)),
        (("cuda",), (), ("gpu",)),
        (("cpu", "cuda"), (), ("gpu",)),
        (("cuda",), ("cpu", "dicom"), ("cpu", "dicom")),
    ],
)
def test_a_kit_has_the_onnxruntime_that_the_bundle_is_for(
    tmp_path: Path,
    devices: tuple[str, ...],
    given: tuple[str, ...],
    extras: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plans: list[KitPlan] = []
    monkeypatch.setattr(carry_module, "check_kit", lambda plan, *_: plans.append(plan))
    carrying = Carrying(None, tmp_path / "kit", None, None, given)
    carrying.for_devices(devices).check(tmp_path / "out", 0)
    assert plans[0].extras == extras


def test_nf4_is_multiplied_in_half_floats_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    export(tiny_checkpoint, tmp_path / "out", make_recipe("nf4", device="cuda"))
    model = load(tmp_path / "out", DECODER)
    types = value_types(model.graph)
    products = [node for node in model.graph.node if node.op_type == "MatMulBnb4"]
    assert len(products) == 5 * TEXT.layers + 1
    assert {types[node.input[0]] for node in products if "lm_head" not in node.name} == {HALF}
    onnx.checker.check_model(str(tmp_path / "out" / DECODER), full_check=False)
