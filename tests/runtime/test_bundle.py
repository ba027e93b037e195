"""What `open_bundle`, `medvlm verify` and loading find wrong with a bundle, and how they say it."""

import copy
import hashlib
import json
import os
import re
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from medvlm.runtime import BundleError, MedVLM, MedVLMError
from medvlm.runtime import bundle as bundle_module
from medvlm.runtime.bundle import find_faults, open_bundle, read_manifest, sha256
from medvlm.runtime.cli import main
from medvlm.runtime.decoding import Decoding
from medvlm.runtime.external_data import external_tensors
from medvlm.runtime.manifest import Loss, Manifest
from medvlm.runtime.processor import Processor
from onnx import TensorProto, helper

Json = dict[str, Any]
FieldPath = tuple[str | int, ...]
DATA = "decoder.onnx.data"


def load_json(bundle: Path) -> Json:
    return json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))


def store_json(bundle: Path, manifest: Any) -> None:
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def accept(bundle: Path, name: str) -> None:
    """Make the manifest agree with the file as it is now, as whoever made a hostile bundle would."""
    manifest = load_json(bundle)
    digest = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    manifest["files"][name] = {"size": (bundle / name).stat().st_size, "sha256": digest}
    store_json(bundle, manifest)


def refusal(bundle: Path, **options: Any) -> str:
    """The one line with which loading refuses the bundle."""
    with pytest.raises(BundleError) as error:
        MedVLM.load(bundle, **options)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


def verify(bundle: Path) -> Result:
    """`medvlm verify`, whose faults are the lines on stderr after the progress bar's label."""
    return CliRunner().invoke(main, ["verify", str(bundle)])


def fault_lines(bundle: Path) -> list[str]:
    result = verify(bundle)
    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, result.stdout) == (1, "")
    return [line for line in result.stderr.splitlines() if line != "Hashing"]


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_sound_bundle_has_no_fault_and_verifies(tiny_bundle: Path) -> None:
    assert find_faults(tiny_bundle, read_manifest(tiny_bundle), hash_files=True) == []
    result = verify(tiny_bundle)
    assert result.exit_code == 0
    assert "8 files" in result.stdout


def test_opened_bundle_knows_its_files(tiny_bundle: Path) -> None:
    opened = open_bundle(tiny_bundle)
    assert opened.path("decoder.onnx") == tiny_bundle / "decoder.onnx"
    assert opened.manifest == read_manifest(tiny_bundle)


def delete(bundle: Path, name: str) -> None:
    (bundle / name).unlink()


def truncate(bundle: Path, name: str) -> None:
    path = bundle / name
    path.write_bytes(path.read_bytes()[:-1])


def grow(bundle: Path, name: str) -> None:
    with (bundle / name).open("ab") as file:
        file.write(b"\0")


def make_directory(bundle: Path, name: str) -> None:
    delete(bundle, name)
    (bundle / name).mkdir()


def make_pipe(bundle: Path, name: str) -> None:
    delete(bundle, name)
    os.mkfifo(bundle / name)


def link_outside(bundle: Path, name: str) -> None:
    outside = bundle.parent / "outside"
    (bundle / name).rename(outside)
    (bundle / name).symlink_to(outside)


def link_inside(bundle: Path, name: str) -> None:
    """To another file of the bundle, which is sound by itself."""
    size = (bundle / name).stat().st_size
    (bundle / name).unlink()
    target = next(path for path in bundle.iterdir() if path.name != name and path.stat().st_size != size)
    (bundle / name).symlink_to(target.name)


def dangle(bundle: Path, name: str) -> None:
    delete(bundle, name)
    (bundle / name).symlink_to(bundle / "nothing")


def loop(bundle: Path, name: str) -> None:
    delete(bundle, name)
    (bundle / name).symlink_to(bundle / name)


@pytest.mark.parametrize("name", bundle_module.REQUIRED)
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (delete, "is missing"),
        (truncate, r"has \d+ bytes and should have \d+"),
        (grow, r"has \d+ bytes and should have \d+"),
        (make_directory, "is not a file"),
        (make_pipe, "is not a file"),
        (link_outside, "is a link and not a file"),
        (link_inside, "is a link and not a file"),
        (dangle, "is a link and not a file"),
        (loop, "is a link and not a file"),
    ],
)
def test_every_damaged_file_is_named_and_stops_loading(
    bundle: Path, name: str, damage: Callable[[Path, str], None], says: str
) -> None:
    damage(bundle, name)
    (line,) = fault_lines(bundle)
    assert re.fullmatch(f"{re.escape(name)} {says}", line)
    assert line in refusal(bundle)


@pytest.mark.parametrize("name", bundle_module.REQUIRED)
def test_one_changed_byte_is_found_by_hashing(bundle: Path, name: str) -> None:
    flip_byte(bundle / name)
    assert fault_lines(bundle) == [f"{name} has changed (its sha256 differs)"]
    assert f"{name} has changed" in refusal(bundle, hash_files=True)


def test_one_changed_byte_of_the_weights_is_not_looked_for_unless_asked(bundle: Path) -> None:
    flip_byte(bundle / DATA)
    assert open_bundle(bundle)


def test_bundle_reached_through_a_link_is_sound(bundle: Path) -> None:
    link = bundle.parent / "link"
    link.symlink_to(bundle)
    assert verify(link).exit_code == 0


def test_unknown_files_are_named(bundle: Path) -> None:
    (bundle / "b.bin").touch()
    (bundle / ".hidden").touch()
    (bundle / "a").mkdir()
    assert fault_lines(bundle) == [f"{name} is not in the manifest" for name in (".hidden", "a", "b.bin")]
    assert ".hidden is not in the manifest" in refusal(bundle)


def test_every_fault_is_named_not_only_the_first(bundle: Path) -> None:
    delete(bundle, "tokenizer.json")
    flip_byte(bundle / "embeddings.bin")
    (bundle / "extra").touch()
    assert fault_lines(bundle) == [
        "embeddings.bin has changed (its sha256 differs)",
        "tokenizer.json is missing",
        "extra is not in the manifest",
    ]


@pytest.mark.parametrize(
    "name", ["../x", "/etc/hostname", "a/b", "..", ".", "", "a\\b", "C:\\x", "./decoder.onnx", "a/../b"]
)
def test_names_outside_the_folder_are_refused(bundle: Path, name: str) -> None:
    (bundle.parent / "x").write_bytes(b"")
    manifest = load_json(bundle)
    manifest["files"][name] = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    store_json(bundle, manifest)
    (line,) = fault_lines(bundle)
    assert line.endswith("names a file outside the folder")
    assert "outside the folder" in refusal(bundle)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "a\0b", "x" * 5000])
def test_odd_names_give_one_printable_line(bundle: Path, name: str) -> None:
    manifest = load_json(bundle)
    manifest["files"][name] = {"size": 0, "sha256": ""}
    store_json(bundle, manifest)
    (line,) = fault_lines(bundle)
    assert line.isprintable()
    with pytest.raises(BundleError):
        open_bundle(bundle)


def test_file_that_cannot_be_read_is_a_fault(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, progress: object = None) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(bundle_module, "sha256", refuse)
    faults = find_faults(bundle, read_manifest(bundle), hash_files=True)
    assert faults == [f"{name} cannot be read (Permission denied)" for name in load_json(bundle)["files"]]


def test_sha256_is_that_of_the_standard_library(tmp_path: Path) -> None:
    read: list[int] = []
    (tmp_path / "file").write_bytes(b"abc" * 3_000_000)
    assert sha256(tmp_path / "file", read.append) == hashlib.sha256(b"abc" * 3_000_000).hexdigest()
    assert sum(read) == 9_000_000


# Directories and manifests


@pytest.mark.parametrize("name", ["absent", "file", "empty", "x" * 5000])
@pytest.mark.parametrize("command", ["verify", "info"])
def test_what_is_no_bundle_is_refused_in_one_line(tmp_path: Path, name: str, command: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(main, [command, str(tmp_path / name)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert len(refusal(tmp_path / name)) < 6000


def test_manifest_that_is_a_link_is_refused(bundle: Path) -> None:
    link_outside(bundle, "manifest.json")
    assert "has no manifest.json" in refusal(bundle)


def test_newer_format_is_refused_with_advice(bundle: Path) -> None:
    store_json(bundle, {"format_version": 3})
    assert refusal(bundle) == "the bundle's format is 3 and this medvlm reads 2; upgrade medvlm"


def test_older_format_is_refused_with_advice(bundle: Path) -> None:
    store_json(bundle, {**load_json(bundle), "format_version": 1})
    assert refusal(bundle) == "the bundle's format is 1 and this medvlm reads 2; export the bundle again"


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", None, [1]])
def test_format_version_is_a_positive_integer(bundle: Path, version: Any) -> None:
    store_json(bundle, {**load_json(bundle), "format_version": version})
    assert "this is not a medvlm bundle" in refusal(bundle)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'"text"',
        b"\xff\xfe{}",
        bytes(range(256)),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format_version": ' + b"9" * 5000 + b"}",
        b" " * ((1 << 20) + 1),
        b"\xef\xbb\xbf{}",
    ],
    ids=lambda content: content[:8].hex() or "empty",
)
def test_what_is_no_manifest_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "manifest.json").write_bytes(content)
    assert len(refusal(bundle)) < 500


def test_manifest_of_a_gigabyte_is_refused_unread(bundle: Path) -> None:
    os.truncate(bundle / "manifest.json", 10**9)
    tracemalloc.start()
    try:
        assert "is too large for a manifest" in refusal(bundle)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_manifest_survives_its_own_writing(tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("name", bundle_module.REQUIRED)
def test_manifest_without_a_required_file_is_refused(bundle: Path, name: str) -> None:
    manifest = load_json(bundle)
    del manifest["files"][name]
    store_json(bundle, manifest)
    assert f"does not list {name}" in refusal(bundle)


def fields(value: Any, path: FieldPath = ()) -> Iterator[FieldPath]:
    """The path of every field, list item and scalar that a manifest must have."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        # Free-form: what the checkpoint and the converter said about themselves.
        if (*path, key) not in (("source", "config"), ("source", "sha256"), ("recipe",)):
            yield from fields(inner, (*path, key))


def at(manifest: Json, path: FieldPath) -> Any:
    for key in path:
        manifest = manifest[key]  # type: ignore[index]
    return manifest


def other_kinds(value: Any) -> list[Any]:
    """Values of every JSON type but that of `value`. An integer is a number too."""
    return [
        other
        for other in (None, True, 7, 0.5, "text", [], [[]], {}, {"a": 1})
        if type(other) is not type(value) and not (type(value) is float and type(other) is int)
    ]


def faulty(manifest: Json, path: FieldPath) -> Iterator[Json]:
    """`manifest` without the field at `path`, then with values of other types there."""
    replacements: list[Any] = [..., *other_kinds(at(manifest, path))]
    for value in replacements:
        mutant = copy.deepcopy(manifest)
        parent = at(mutant, path[:-1])
        if value is not ...:
            parent[path[-1]] = value
        elif isinstance(parent, dict) and path[:-1] != ("files",):
            del parent[path[-1]]
        else:
            continue
        yield mutant


def test_every_field_removed_or_of_another_type_is_refused_in_one_line(tiny_bundle: Path) -> None:
    manifest = load_json(tiny_bundle)
    paths = list(fields(manifest))
    assert ("text", "mrope_section", 2) in paths
    for path in paths:
        for mutant in faulty(manifest, path):
            with pytest.raises(BundleError) as error:
                Manifest.from_json(json.dumps(mutant))
            assert len(str(error.value).splitlines()) == 1
            assert "manifest.json" in str(error.value)


LOSS = {
    "dataset": "held out",
    "questions": 600,
    "tokens": 23456,
    "kl": 0.0123,
    "top1_agreement": 0.987,
    "flips": 12,
    "accuracy": 0.91,
    "reference_accuracy": 0.92,
}


def test_loss_may_be_absent_or_null_and_survives_its_own_writing(tiny_bundle: Path) -> None:
    manifest = load_json(tiny_bundle)
    assert "loss" not in manifest
    without = Manifest.from_json(json.dumps(manifest))
    assert without.loss is None
    assert Manifest.from_json(json.dumps({**manifest, "loss": None})) == without
    measured = Manifest.from_json(json.dumps({**manifest, "loss": LOSS}))
    assert measured.loss == Loss(**LOSS)
    assert Manifest.from_json(measured.to_json()) == measured
    assert (measured.format_version, json.loads(measured.to_json())["loss"]) == (2, LOSS)


def test_every_figure_of_a_loss_removed_or_of_another_type_is_refused_in_one_line(tiny_bundle: Path) -> None:
    manifest = {**load_json(tiny_bundle), "loss": LOSS}
    for name in LOSS:
        for mutant in faulty(manifest, ("loss", name)):
            with pytest.raises(BundleError, match=r"manifest\.json.*loss.*export the bundle again"):
                Manifest.from_json(json.dumps(mutant))


@pytest.mark.parametrize("loss", [{}, [], "text", 7, True])
def test_loss_that_is_no_object_of_figures_is_refused(bundle: Path, loss: Any) -> None:
    store_json(bundle, {**load_json(bundle), "loss": loss})
    assert "manifest.json.loss" in refusal(bundle)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kl", -0.1),
        ("kl", float("nan")),
        ("flips", -1),
        ("accuracy", 1.1),
        ("reference_accuracy", -0.1),
        ("tokens", -1),
    ],
)
def test_loss_that_cannot_be_is_refused(bundle: Path, name: str, value: float) -> None:
    store_json(bundle, {**load_json(bundle), "loss": {**LOSS, name: value}})
    assert "loss" in refusal(bundle)


def test_fault_of_a_field_names_it() -> None:
    with pytest.raises(BundleError, match=r"manifest\.json lacks created_by, source"):
        Manifest.from_json('{"format_version": 2}')


NUMBERS = ("vision", "text", "preprocessing", "image_token_id")
HOSTILE = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, 10**400]),
    st.floats(),
    st.text(st.characters(), max_size=5),
    st.sampled_from(["\ud800", "\0", "float64", "object"]),
)


@pytest.mark.parametrize(("part", "name"), [("vision", "embed_dim"), ("text", "num_kv_heads"), ("text", "head_size")])
def test_width_that_would_fill_the_memory_is_refused(bundle: Path, part: str, name: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    manifest[part][name] = 2**30
    store_json(bundle, manifest)
    with pytest.raises(BundleError, match="too large"):
        MedVLM.load(bundle)


# numpy warns where absurd numbers overflow.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_makes_loading_or_asking_fail_in_more_than_a_line(bundle: Path, data: st.DataObject) -> None:
    """Values of the right type that no export writes are refused, or answered, or fail in one line."""
    sound = Path(str(bundle) + ".json")
    if not sound.exists():
        shutil.copy(bundle / "manifest.json", sound)
    manifest = json.loads(sound.read_text(encoding="utf-8"))
    paths = [p for p in fields(manifest) if p[0] in (*NUMBERS, "prompt", "generation", "embedding_dtype")]
    path = data.draw(st.sampled_from([p for p in paths if not isinstance(at(manifest, p), dict | list)]))
    at(manifest, path[:-1])[path[-1]] = data.draw(HOSTILE)
    store_json(bundle, manifest)
    lines = 1
    try:
        model = MedVLM.load(bundle, threads=1, max_length=300)
        model.ask(bytes_of_image(), "A) x\nB) y", Decoding(2), raw=True, max_pixels=50_000)
    except MedVLMError as error:
        lines = len(str(error).splitlines())
    assert lines == 1


def bytes_of_image() -> bytes:
    """A white 1x1 BMP."""
    header = b"BM" + (58).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    info = (40).to_bytes(4, "little") + (1).to_bytes(4, "little") * 2 + (1).to_bytes(2, "little")
    return header + info + (24).to_bytes(2, "little") + bytes(24) + b"\xff\xff\xff\0"


@pytest.mark.parametrize("name", ["tokenizer.json", "decoder.onnx", "vision_encoder.onnx"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 64, b"\0" * 64])
def test_files_of_other_content_fail_in_one_line(bundle: Path, name: str, content: bytes) -> None:
    (bundle / name).write_bytes(content)
    accept(bundle, name)
    with pytest.raises(MedVLMError) as error:
        MedVLM.load(bundle, threads=1)
    assert len(str(error.value).splitlines()) == 1


def test_embeddings_of_another_size_than_the_dimensions_are_refused(bundle: Path) -> None:
    (bundle / "embeddings.bin").write_bytes(b"\0" * 10)
    accept(bundle, "embeddings.bin")
    assert "embeddings.bin has 10 bytes" in refusal(bundle, threads=1)


# Where the graphs keep their weights


def relocate(graph: Path, location: str) -> None:
    """Rewrite the place of every weight that `graph` keeps in another file."""
    model = onnx.load(graph, load_external_data=False)
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"]
    assert entries
    for entry in entries:
        entry.value = location
    graph.write_bytes(model.SerializeToString())


def locations(graph: Path) -> set[str]:
    """The files that a graph takes tensors from, as it names them."""
    tensors = list(external_tensors(memoryview(graph.read_bytes())))
    return {location for tensor in tensors for location in tensor.locations}


@pytest.mark.parametrize("graph", ["decoder.onnx", "vision_encoder.onnx"])
def test_graphs_name_their_own_data_file_alone(tiny_bundle: Path, graph: str) -> None:
    assert locations(tiny_bundle / graph) == {f"{graph}.data"}


@pytest.mark.parametrize("graph", ["decoder.onnx", "vision_encoder.onnx"])
@pytest.mark.parametrize(
    "place", ["{outside}", "../outside.data", "embeddings.bin", "./{own}", "x/../{own}", "*/_ORT_MEM_ADDR_/*", ""]
)
def test_graph_that_takes_weights_from_elsewhere_is_refused(bundle: Path, graph: str, place: str) -> None:
    """Even where the manifest agrees with the rewritten graph, and the weights lie there."""
    outside = bundle.parent / "outside.data"
    shutil.copy(bundle / f"{graph}.data", outside)
    location = place.format(outside=outside, own=f"{graph}.data")
    relocate(bundle / graph, location)
    accept(bundle, graph)
    expected = f"{graph} takes weights from {location!r} and not from {graph}.data"
    assert expected in refusal(bundle)
    assert fault_lines(bundle) == [expected]


def test_one_weight_elsewhere_is_enough(bundle: Path) -> None:
    model = onnx.load(bundle / "decoder.onnx", load_external_data=False)
    last = [tensor for tensor in model.graph.initializer if tensor.external_data][-1]
    last.external_data[0].value = "/etc/hostname"
    (bundle / "decoder.onnx").write_bytes(model.SerializeToString())
    accept(bundle, "decoder.onnx")
    assert "'/etc/hostname'" in refusal(bundle)


def outside_tensor() -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value="../outside")
    return tensor


def graph_with(*nodes: onnx.NodeProto, **options: Any) -> onnx.GraphProto:
    output = helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])
    return helper.make_graph(list(nodes), "graph", [], [output], **options)


def hiding_places() -> dict[str, onnx.ModelProto]:
    """Models that keep one tensor in another file, at each place of onnx.proto where a tensor can stand."""
    inner = graph_with(initializer=[outside_tensor()])
    sparse = onnx.SparseTensorProto(values=outside_tensor(), dims=[4])
    constant = helper.make_node("Constant", [], ["w"], value=outside_tensor())
    function = helper.make_function("local", "F", [], ["w"], [constant], [helper.make_opsetid("", 18)])
    branches = helper.make_node("If", ["c"], ["w"], then_branch=inner, else_branch=inner)
    model = {
        "initializer": helper.make_model(inner),
        "sparse initializer": helper.make_model(graph_with(sparse_initializer=[sparse])),
        "attribute": helper.make_model(graph_with(constant)),
        "attribute list": helper.make_model(graph_with(helper.make_node("X", [], ["w"], value=[outside_tensor()]))),
        "sparse attribute": helper.make_model(graph_with(helper.make_node("Constant", [], ["w"], sparse_value=sparse))),
        "subgraph": helper.make_model(graph_with(branches)),
        "subgraph list": helper.make_model(graph_with(helper.make_node("X", [], ["w"], graphs=[inner, inner]))),
        "function": helper.make_model(graph_with(), functions=[function]),
        "training": helper.make_model(graph_with()),
    }
    model["training"].training_info.add(algorithm=inner)
    return model


@pytest.mark.parametrize("place", hiding_places())
def test_weights_elsewhere_are_found_wherever_a_graph_can_hold_them(tmp_path: Path, place: str) -> None:
    (tmp_path / "graph.onnx").write_bytes(hiding_places()[place].SerializeToString())
    assert locations(tmp_path / "graph.onnx") == {"../outside"}


def nested_graph(depth: int) -> bytes:
    """A model whose graph holds a node with an attribute with a graph, `depth` times, and then weights elsewhere."""

    def field(number: int, content: bytes) -> bytes:
        size, encoded = len(content), b""
        while size > 127:
            size, encoded = size >> 7, encoded + bytes([size & 127 | 128])
        return bytes([number << 3 | 2]) + encoded + bytes([size]) + content

    graph = field(5, outside_tensor().SerializeToString())
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))
    return field(7, graph)


def test_nested_graph_is_read_as_deep_as_protobuf_reads(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(nested_graph(30))
    assert onnx.load(tmp_path / "graph.onnx", load_external_data=False)
    assert locations(tmp_path / "graph.onnx") == {"../outside"}


@pytest.mark.parametrize("depth", [40, 3000])
def test_graph_nested_deeper_than_protobuf_reads_is_refused(bundle: Path, depth: int) -> None:
    (bundle / "decoder.onnx").write_bytes(nested_graph(depth))
    with pytest.raises(Exception, match="parsing"):
        onnx.ModelProto.FromString(nested_graph(depth))
    accept(bundle, "decoder.onnx")
    assert "decoder.onnx is not an ONNX graph (nested deeper than 100 messages)" in refusal(bundle)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_reading_any_bytes_finds_the_places_or_raises_value_error(
    tiny_bundle: Path, tmp_path: Path, data: st.DataObject
) -> None:
    graph = bytearray((tiny_bundle / "decoder.onnx").read_bytes())
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(graph) - 1), st.integers(0, 255)), max_size=5)):
        graph[at] = byte
    cut = data.draw(st.one_of(st.just(len(graph)), st.integers(0, len(graph))))
    path = tmp_path / "graph.onnx"
    path.write_bytes(graph[:cut])
    try:
        found = locations(path)
    except ValueError:
        return
    try:
        model = onnx.ModelProto.FromString(bytes(graph[:cut]))
    except Exception:  # noqa: BLE001 - protobuf's DecodeError is private: what it cannot read, no one loads
        return
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
    assert found >= {entry.value for entry in entries if entry.key == "location"}


def change_tokenizer(bundle: Path, **fields: Any) -> None:
    """Give the tokenizer other fields, and make the manifest agree."""
    path = bundle / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["tokenizer.json"]["size"] = path.stat().st_size
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_tokenizer_that_is_too_large_is_refused(bundle: Path) -> None:
    change_tokenizer(bundle)
    os.truncate(bundle / "tokenizer.json", 1 << 30)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["tokenizer.json"]["size"] = 1 << 30
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"tokenizer\.json is too large for a tokenizer"):
        open_bundle(bundle)


def test_tokenizer_neither_cuts_nor_pads_a_prompt(bundle: Path) -> None:
    before = Processor(open_bundle(bundle)).prepare([], "How long is this?").token_ids
    padding = {"strategy": {"Fixed": 5000}, "direction": "Right", "pad_to_multiple_of": None}
    change_tokenizer(
        bundle,
        truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        padding={**padding, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"},
    )
    after = Processor(open_bundle(bundle)).prepare([], "How long is this?").token_ids
    assert after.tolist() == before.tolist()


def test_tokenizer_that_panics_is_one_error(bundle: Path) -> None:
    """Its regular expression backtracks until the engine gives up."""
    pattern = {"Regex": r"(a+)+$|(([a-z ]|.)*)*\1x"}
    change_tokenizer(
        bundle, pre_tokenizer={"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    )
    processor = Processor(open_bundle(bundle))
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot split the question"):
        processor.prepare([], "What is it?")
