"""Graphs that reach beyond their data file, or do not have the manifest's dimensions: refused before onnxruntime."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from medvlm.runtime import BundleError, MedVLM
from medvlm.runtime import graphs as graphs_module
from medvlm.runtime.bundle import find_faults, open_bundle, read_manifest
from medvlm.runtime.graph_signature import Signature, Value, declared
from onnx import TensorProto

GRAPHS = ("vision_encoder.onnx", "decoder.onnx", "prefill.onnx")
Change = Callable[[onnx.ModelProto], None]


@pytest.fixture(autouse=True)
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test where onnxruntime gets a file."""
    monkeypatch.setattr(graphs_module, "open_sessions", lambda *_: pytest.fail("onnxruntime got a file"))


def accept(bundle: Path, name: str) -> None:
    """Make the manifest agree with the file as it is now, as whoever made a hostile bundle would."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    content = (bundle / name).read_bytes()
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def change(bundle: Path, graph: str, how: Change) -> None:
    model = onnx.load(bundle / graph, load_external_data=False)
    how(model)
    (bundle / graph).write_bytes(model.SerializeToString())
    accept(bundle, graph)


def refusal(bundle: Path) -> str:
    with pytest.raises(BundleError) as error:
        MedVLM.load(bundle, hash_files=True)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def first_entries(model: onnx.ModelProto) -> Any:
    return next(tensor.external_data for tensor in model.graph.initializer if tensor.external_data)


def set_entry(key: str, value: str) -> Change:
    """Change where the first weight stands."""

    def how(model: onnx.ModelProto) -> None:
        next(entry for entry in first_entries(model) if entry.key == key).value = value

    return how


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("offset", "999999999999", "beyond the end"),
        ("length", "999999999999", "beyond the end"),
        ("offset", "-4096", "no number"),
        ("offset", "0x10", "no number"),
        ("offset", " 0", "no number"),
        ("offset", "\u0664\u0660\u0669\u0666", "no number"),
        ("length", "18446744073709551616", "no number"),
        ("length", "", "no number"),
        ("length", "1", "dimensions do not give"),
    ],
)
def test_weight_that_is_not_within_the_data_file_is_refused(
    bundle: Path, graph: str, key: str, value: str, says: str
) -> None:
    change(bundle, graph, set_entry(key, value))
    assert f"{graph} " in (line := refusal(bundle))
    assert says in line
    assert f"{graph}.data" in line


def test_weight_that_ends_one_byte_behind_the_file_is_refused(bundle: Path) -> None:
    """And the one that ends with it is sound: that is every bundle's last weight."""
    with (bundle / "decoder.onnx.data").open("rb+") as file:
        file.truncate((bundle / "decoder.onnx.data").stat().st_size - 1)
    accept(bundle, "decoder.onnx.data")
    assert "beyond the end of decoder.onnx.data" in refusal(bundle)


def forget_length(model: onnx.ModelProto) -> None:
    del first_entries(model)[2]


def forget_all(model: onnx.ModelProto) -> None:
    del first_entries(model)[:]


def say_twice(model: onnx.ModelProto) -> None:
    first_entries(model).add(key="offset", value="0")


def say_more(model: onnx.ModelProto) -> None:
    first_entries(model).add(key="prepacked_0", value="0|16|0")


@pytest.mark.parametrize("how", [forget_length, forget_all, say_twice, say_more])
def test_place_that_is_said_in_another_way_is_refused(bundle: Path, how: Change) -> None:
    """onnxruntime takes the last of several, the rest of the file for a length, and has keys of its own."""
    change(bundle, "decoder.onnx", how)
    assert "does not say in the usual way where in decoder.onnx.data a weight stands" in refusal(bundle)


def test_weight_of_a_type_without_a_size_is_refused(bundle: Path) -> None:
    def how(model: onnx.ModelProto) -> None:
        next(t for t in model.graph.initializer if t.external_data).data_type = TensorProto.STRING

    change(bundle, "decoder.onnx", how)
    assert "which its dimensions do not give" in refusal(bundle)


def test_weights_that_the_graph_holds_itself_may_not_fill_the_memory(bundle: Path) -> None:
    def how(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(
            TensorProto(name="w", data_type=TensorProto.UINT8, dims=[1 << 24], raw_data=bytes(1 << 24))
        )

    change(bundle, "decoder.onnx", how)
    assert "decoder.onnx is too large for a graph" in refusal(bundle)


def test_data_file_that_is_a_link_is_refused(bundle: Path) -> None:
    outside = bundle.parent / "outside"
    shutil.move(bundle / "decoder.onnx.data", outside)
    (bundle / "decoder.onnx.data").symlink_to(outside)
    assert "decoder.onnx.data is a link and not a file" in refusal(bundle)


# Dimensions


def onnx_signature(path: Path) -> Signature:
    """As `declared` says it, read by the onnx package."""

    def values(infos: Any) -> dict[str, Value]:
        return {
            info.name: Value(
                info.type.tensor_type.elem_type,
                tuple(d.dim_value if d.HasField("dim_value") else None for d in info.type.tensor_type.shape.dim),
            )
            for info in infos
        }

    graph = onnx.load(path, load_external_data=False).graph
    return Signature(values(graph.input), values(graph.output))


@pytest.mark.parametrize("graph", GRAPHS)
def test_signature_is_what_the_onnx_package_reads(tiny_bundle: Path, graph: str) -> None:
    found = declared(memoryview((tiny_bundle / graph).read_bytes()))
    assert found == onnx_signature(tiny_bundle / graph)
    assert found.inputs


@pytest.mark.parametrize(
    ("part", "name", "value", "says"),
    [
        ("text", "layers", 1, "decoder.onnx has an input 'past_key_values.1.key'"),
        ("text", "layers", 9, "decoder.onnx has no input 'past_key_values."),
        ("text", "num_kv_heads", 8, "decoder.onnx has an input 'past_key_values.0.key' of"),
        ("text", "vocab_size", 100_000, "embeddings.bin has"),
        ("vision", "num_heads", 1, "vision_encoder.onnx has an input 'cos' of"),
        ("vision", "in_channels", 4, "vision_encoder.onnx has an input 'pixel_values' of"),
    ],
)
def test_manifest_with_other_dimensions_than_the_graphs_is_refused(
    bundle: Path, part: str, name: str, value: int, says: str
) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest[part][name] != value
    manifest[part][name] = value
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert any(says in fault for fault in find_faults(bundle, read_manifest(bundle), hash_files=False))
    assert refusal(bundle)


def resize(name: str, axis: int, size: int) -> Change:
    """Declare another length of one axis of an input or output."""

    def how(model: onnx.ModelProto) -> None:
        value = next(v for v in (*model.graph.input, *model.graph.output) if v.name == name)
        value.type.tensor_type.shape.dim[axis].dim_value = size

    return how


@pytest.mark.parametrize(
    ("graph", "name", "axis", "size"),
    [
        ("decoder.onnx", "inputs_embeds", 2, 32),
        ("decoder.onnx", "logits", 2, 1 << 40),
        ("decoder.onnx", "past_key_values.0.value", 3, 7),
        # An axis that varies in every bundle.
        ("decoder.onnx", "past_key_values.0.key", 2, 256),
        ("prefill.onnx", "cos_cache", 1, 1),
        ("vision_encoder.onnx", "image_features", 1, 5),
    ],
)
def test_graph_with_other_dimensions_than_the_manifest_is_refused(
    bundle: Path, graph: str, name: str, axis: int, size: int
) -> None:
    change(bundle, graph, resize(name, axis, size))
    assert f"{graph} has an " in (line := refusal(bundle))
    assert f"put {name!r} of element type 1 and shape [" in line
    assert str(size) in line


def test_input_of_another_type_is_refused(bundle: Path) -> None:
    def how(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16

    change(bundle, "decoder.onnx", how)
    assert "of element type 10 and shape" in refusal(bundle)


def test_swapped_graphs_are_refused(bundle: Path) -> None:
    shutil.copy(bundle / "vision_encoder.onnx", bundle / "decoder.onnx")
    accept(bundle, "decoder.onnx")
    assert "decoder.onnx takes weights from 'vision_encoder.onnx.data'" in refusal(bundle)


def test_tokenizer_with_tokens_beyond_the_vocabulary_is_refused(
    bundle: Path, image_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    tokenizer = json.loads((bundle / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {word: i + 10_000 * (word == "Q") for word, i in vocabulary.items()}
    (bundle / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    accept(bundle, "tokenizer.json")
    model = MedVLM.load(bundle, threads=1)
    with pytest.raises(BundleError, match="tokens that the manifest's vocabulary has not"):
        model.ask(image_path, "Q?\nA) x\nB) y")


def test_sound_bundle_is_opened(bundle: Path) -> None:
    """Or every refusal above would prove nothing."""
    for graph in GRAPHS:
        change(bundle, graph, lambda model: None)
    assert open_bundle(bundle, hash_files=True)


# What protobuf reads in its own way


def varint(number: int) -> bytes:
    """As the specification's section "Base 128 Varints" has it."""
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def append(bundle: Path, graph: str, content: bytes) -> None:
    """Behind the last field of the model: what stands there is merged with what stood before."""
    (bundle / graph).write_bytes((bundle / graph).read_bytes() + content)
    accept(bundle, graph)


def weight(nbytes: int, *extra: bytes) -> bytes:
    """A FLOAT of 4 elements, said to take so many bytes."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "decoder.onnx.data"), ("offset", "0"), ("length", str(nbytes))):
        tensor.external_data.add(key=key, value=value)
    return b"".join([tensor.SerializeToString(), *extra])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        # data_type again, as a field with a length: to protobuf an unknown one, and FLOAT counts.
        (field(7, field(5, weight(4, field(2, varint(TensorProto.UINT8))))), "should be a number"),
        # Attribute.t twice: one tensor of 4 x 4.
        (field(7, field(1, field(5, field(5, weight(16)) * 2))), "a tensor stands twice"),
        # As many dimensions as fit, of which Python would work out the product.
        (field(7, field(5, field(1, (b"\xff" * 9 + b"\x01") * 200_000) + weight(16))), "dimensions do not give"),
        (field(7, field(1, b"") * 1_100_000), "is too large for a graph"),
    ],
)
def test_what_protobuf_would_read_otherwise_is_refused(bundle: Path, content: bytes, says: str) -> None:
    append(bundle, "decoder.onnx", content)
    assert says in refusal(bundle)


def test_weight_alone_would_be_accepted(bundle: Path) -> None:
    """Or the refusals above would prove nothing."""
    append(bundle, "decoder.onnx", field(7, field(5, weight(16))) + field(7, field(1, field(5, field(5, weight(16))))))
    assert open_bundle(bundle)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        # TypeProto.sequence_type beside tensor_type: the last of the two counts.
        (field(2, field(4, b"")), "stands twice"),
        (field(2, field(1, b"")), "stands twice"),
    ],
)
def test_input_whose_type_is_said_twice_is_refused(bundle: Path, extra: bytes, says: str) -> None:
    def drop_first(model: onnx.ModelProto) -> None:
        del model.graph.input[0]

    def drop_last(model: onnx.ModelProto) -> None:
        del model.graph.input[-1]

    first = onnx.load(bundle / "decoder.onnx", load_external_data=False).graph.input[0].SerializeToString()
    change(bundle, "decoder.onnx", drop_first)
    append(bundle, "decoder.onnx", field(7, field(11, first)))
    assert open_bundle(bundle)
    change(bundle, "decoder.onnx", drop_last)
    append(bundle, "decoder.onnx", field(7, field(11, first + extra)))
    assert says in refusal(bundle)


def test_input_whose_dimension_is_said_twice_is_refused(bundle: Path) -> None:
    """TensorShapeProto.Dimension holds a dim_value or a dim_param, and the last counts."""
    shape = field(1, b"\x08\x40" + field(2, b"n"))
    info = field(1, b"x") + field(2, field(1, b"\x08\x01" + field(2, shape)))
    append(bundle, "decoder.onnx", field(7, field(11, info)))
    assert "a dimension is given twice" in refusal(bundle)
