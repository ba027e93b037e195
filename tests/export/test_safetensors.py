"""Tensors as they are read from safetensors files, against the safetensors library and torch, and what is refused."""

import dataclasses
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from medvlm.demo.hub_layout import Dtype
from medvlm.demo.random_checkpoint import TEXT, VISION, RandomCheckpoint
from medvlm.export.convert import export
from medvlm.export.recipe import make_recipe
from medvlm.export.safetensors import INDEX, SINGLE, TensorInfo, check_tensors, find_tensors
from medvlm.export.tensors import expected_tensors
from medvlm.runtime.errors import CheckpointError
from medvlm.runtime.manifest import MANIFEST
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLForConditionalGeneration

Json = dict[str, Any]
DTYPES: tuple[Dtype, ...] = ("F32", "F16", "BF16")


def refused(directory: Path) -> str:
    """The message of the `CheckpointError` that looking for the tensors raises."""
    with pytest.raises(CheckpointError) as caught:
        find_tensors(directory)
    return str(caught.value)


def split(file: Path) -> tuple[Json, bytes]:
    """The header and the data of a safetensors file."""
    blob = file.read_bytes()
    length = struct.unpack("<Q", blob[:8])[0]
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def write(file: Path, header: Json | bytes, data: bytes = b"") -> None:
    """A safetensors file with any header."""
    blob = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(blob)) + blob + data)


def entry(shape: object, begin: object, end: object, dtype: object = "F32") -> Json:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def bits(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """float32 values as their bits, so that -0.0 and 0.0 differ."""
    return tensor.contiguous().numpy().view(np.uint32)


def bundle_data(checkpoint: Path, out: Path) -> dict[str, bytes]:
    """Every file of the checkpoint's bundle but the manifest, which holds dates and digests of the source."""
    export(checkpoint, out, make_recipe("int4", 32))
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != MANIFEST}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A checkpoint of three shards with an index."""
    directory = tmp_path / "sharded"
    RandomCheckpoint(shards=3).write(directory)
    return directory


@pytest.fixture
def copied(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint, to be changed."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copied"))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tensor_is_what_the_safetensors_library_reads(
    dtype: Dtype, tied: bool, shards: int, tmp_path: Path
) -> None:
    text = dataclasses.replace(TEXT, tied_embeddings=tied)
    RandomCheckpoint(text=text, dtype=dtype, shards=shards).write(tmp_path)
    reference = {name: t for file in tmp_path.glob("*.safetensors") for name, t in load_file(file).items()}
    found = find_tensors(tmp_path)
    assert found.keys() == reference.keys()
    assert ("lm_head.weight" in found) is not tied
    for name, info in found.items():
        values = info.read()
        assert values.dtype == np.float32
        assert values.shape == info.shape == tuple(reference[name].shape)
        np.testing.assert_array_equal(values.view(np.uint32), bits(reference[name].float()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_all_values_of_16_bits_are_read_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    """Subnormals, infinities, signed zeros; of NaNs only that they are, since a conversion may change their payload."""
    every = torch.from_numpy(np.arange(1 << 16, dtype=np.uint16).view(np.int16)).view(dtype)
    save_file({"x": every}, tmp_path / SINGLE)
    found, reference = find_tensors(tmp_path)["x"].read(), every.float()
    nan = torch.isnan(reference).numpy()
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found.view(np.uint32)[~nan], bits(reference)[~nan])


def test_float32_values_are_read_bit_by_bit(tmp_path: Path) -> None:
    values = torch.tensor([0.0, -0.0, 1e-45, 3.4028234e38, float("inf"), float("-inf"), float("nan")])
    save_file({"x": values, "scalar": torch.tensor(2.5), "empty": torch.zeros(3, 0)}, tmp_path / SINGLE)
    found = find_tensors(tmp_path)
    np.testing.assert_array_equal(found["x"].read().view(np.uint32), bits(values))
    assert found["scalar"].read() == np.float32(2.5)
    assert found["empty"].read().shape == (3, 0)


@pytest.mark.parametrize("tied", [True, False])
def test_shards_give_the_same_bundle_as_one_file(tied: bool, tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint(text=dataclasses.replace(TEXT, tied_embeddings=tied))
    checkpoint.write(tmp_path / "one")
    dataclasses.replace(checkpoint, shards=4).write(tmp_path / "four")
    assert bundle_data(tmp_path / "one", tmp_path / "a") == bundle_data(tmp_path / "four", tmp_path / "b")


def test_shards_that_transformers_writes_are_read(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = Qwen2VLForConditionalGeneration.from_pretrained(tiny_checkpoint)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    found, whole = find_tensors(tmp_path), find_tensors(tiny_checkpoint)
    assert found.keys() == whole.keys()
    for name, info in found.items():
        np.testing.assert_array_equal(info.read(), whole[name].read())


def test_one_file_is_read_before_an_index_as_in_transformers(tiny_checkpoint: Path, sharded: Path) -> None:
    shutil.copy(tiny_checkpoint / SINGLE, sharded)
    header, data = split(sharded / SINGLE)
    begin, end = header["model.norm.weight"]["data_offsets"]
    write(sharded / SINGLE, header, data[:begin] + b"\0" * (end - begin) + data[end:])
    model = Qwen2VLForConditionalGeneration.from_pretrained(sharded)
    assert not model.model.language_model.norm.weight.any()
    assert not find_tensors(sharded)["model.norm.weight"].read().any()


def test_the_links_of_the_hub_cache_are_followed(sharded: Path, tmp_path: Path) -> None:
    """The cache keeps blobs in one folder and, in snapshots/REVISION, links to them."""
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(sharded.iterdir())):
        shutil.copy(path, blobs / str(i))
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / str(i))
    assert bundle_data(snapshot, tmp_path / "a") == bundle_data(sharded, tmp_path / "b")


@pytest.mark.parametrize("shards", [1, 2])
def test_a_file_cut_off_anywhere_is_refused(shards: int, tmp_path: Path) -> None:
    RandomCheckpoint(shards=shards).write(tmp_path)
    file = sorted(tmp_path.glob("*.safetensors"))[-1]
    whole = file.read_bytes()
    data_start = 8 + struct.unpack("<Q", whole[:8])[0]
    cuts = {0, 1, 4, 7, 8, 9, data_start - 1, data_start, data_start + 1, len(whole) - 2, len(whole) - 1}
    cuts |= set(range(8, data_start, 97)) | set(range(data_start, len(whole), len(whole) // 50))
    for cut in sorted(cuts):
        file.write_bytes(whole[:cut])
        message = refused(tmp_path)
        assert f"{file} is truncated" in message
        assert "download it again" in message
    file.write_bytes(whole)
    find_tensors(tmp_path)


def test_the_first_tensor_that_a_cut_off_file_lacks_is_named(copied: Path) -> None:
    whole = (copied / SINGLE).read_bytes()
    (copied / SINGLE).write_bytes(whole[:-1])
    last = list(split_names(whole))[-1]
    assert f"{last} ends at byte {len(whole)} and the file has {len(whole) - 1}" in refused(copied)


def split_names(blob: bytes) -> list[str]:
    length = struct.unpack("<Q", blob[:8])[0]
    return [name for name in json.loads(blob[8 : 8 + length]) if name != "__metadata__"]


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry([1], -4, 0)},
        {"a": entry([-1], 0, 4)},
        {"a": entry([-1, -1], 0, 4)},
        {"a": entry([1], 4, 0)},
        {"a": entry([1], 0.0, 4.0)},
        {"a": entry([1.0], 0, 4)},
        {"a": entry([True], 0, 4)},
        {"a": entry([1], False, 4)},
        {"a": entry("1", 0, 4)},
        {"a": entry(1, 0, 4)},
        {"a": entry(None, 0, 4)},
        {"a": entry([[1]], 0, 4)},
        {"a": entry([1], "0", "4")},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": None}},
        {"a": {"dtype": "F32", "shape": [1]}},
        {"a": {"shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "data_offsets": [0, 4]}},
        {"a": None},
        {"a": "F32"},
        {"a": [0, 4]},
        {"a": entry([2], 0, 4)},
        {"a": entry([1, 2], 0, 4, "BF16"), "b": entry([1], 2, 4, "F16")},
        {"a": entry([1], 0, 4, ["F32"]), "b": entry([1], 0, 4)},
    ],
    ids=lambda header: json.dumps(header)[:60],
)
def test_a_malformed_entry_is_refused_as_the_library_refuses_it(header: Json, tmp_path: Path) -> None:
    write(tmp_path / SINGLE, header, b"\0" * 4)
    with pytest.raises(SafetensorError), safe_open(tmp_path / SINGLE, "numpy"):
        pass
    message = refused(tmp_path)
    assert str(tmp_path / SINGLE) in message
    assert "download it again" in message


@pytest.mark.parametrize(
    ("header", "size", "fault"),
    [
        ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, 4, "overlaps another tensor or leaves a gap"),
        ({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, 8, "overlaps another tensor or leaves a gap"),
        ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, 12, "overlaps another tensor or leaves a gap"),
        ({"a": entry([1], 4, 8)}, 8, "overlaps another tensor or leaves a gap"),
        ({"a": entry([1], 0, 4)}, 9, "has 5 bytes after its last tensor"),
        ({"a": entry([10**30], 0, 4 * 10**30)}, 4, "is truncated"),
    ],
)
def test_tensors_must_fill_the_file_as_the_library_wants(header: Json, size: int, fault: str, tmp_path: Path) -> None:
    write(tmp_path / SINGLE, header, b"\0" * size)
    with pytest.raises(SafetensorError), safe_open(tmp_path / SINGLE, "numpy"):
        pass
    assert fault in refused(tmp_path)


@pytest.mark.parametrize("header", [b"[]", b"null", b"{", b"\xff" * 8, b"[" * 50_000, b'{"a": }'])
def test_a_header_that_is_not_a_json_object_is_refused(header: bytes, tmp_path: Path) -> None:
    write(tmp_path / SINGLE, header)
    assert f"{tmp_path / SINGLE} is not a safetensors file" in refused(tmp_path)


@pytest.mark.parametrize("length", [0, 9, 100_000_001, 1 << 40, (1 << 64) - 1])
def test_a_header_length_that_cannot_be_is_refused(length: int, tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_bytes(struct.pack("<Q", length) + b'{"a": 1}')
    assert "is truncated (it has 16 bytes)" in refused(tmp_path)


def test_the_pointer_that_git_lfs_leaves_is_refused(tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4417000000\n"
    )
    assert "is truncated" in refused(tmp_path)


@pytest.mark.parametrize("dtype", ["I8", "F8_E4M3", "F64", "I64", "BOOL"])
def test_another_dtype_is_refused_by_its_name(dtype: str, copied: Path) -> None:
    """A quantized checkpoint. Tensors that are not used may be of any type."""
    header, data = split(copied / SINGLE)
    name = "model.norm.weight"
    header[name]["dtype"] = dtype
    write(copied / SINGLE, header, data)
    tensors = find_tensors(copied)
    with pytest.raises(CheckpointError, match=rf"{name} is stored as {dtype}; F32, F16, BF16 are read"):
        check_tensors(tensors, expected_tensors(VISION, TEXT))
    check_tensors(tensors, {"visual.merger.ln_q.weight": (VISION.embed_dim,)})


def test_a_missing_tensor_is_named_with_its_shape(tiny_checkpoint: Path) -> None:
    tensors = find_tensors(tiny_checkpoint)
    expected = expected_tensors(VISION, TEXT)
    for name, shape in expected.items():
        rest = {other: info for other, info in tensors.items() if other != name}
        with pytest.raises(CheckpointError) as caught:
            check_tensors(rest, expected)
        assert f"the checkpoint lacks the tensor {name} {list(shape)}" in str(caught.value)


def test_a_wrong_shape_is_named_with_what_was_found_and_wanted(tiny_checkpoint: Path) -> None:
    tensors = find_tensors(tiny_checkpoint)
    name = "model.layers.1.mlp.up_proj.weight"
    for found in ((96, 160), (160, 95), (160,), (160, 96, 1)):
        changed = tensors | {name: dataclasses.replace(tensors[name], shape=found)}
        with pytest.raises(CheckpointError) as caught:
            check_tensors(changed, expected_tensors(VISION, TEXT))
        assert f"{name} has the shape {list(found)} and config.json wants [160, 96]" in str(caught.value)


def test_more_tensors_than_needed_are_no_fault(copied: Path) -> None:
    """A tied checkpoint may hold the head too, and rotary frequencies or other buffers."""
    header, data = split(copied / SINGLE)
    header |= {"rotary.inv_freq": entry([2], len(data), len(data) + 16, "F64")}
    write(copied / SINGLE, header, data + b"\0" * 16)
    check_tensors(find_tensors(copied), expected_tensors(VISION, TEXT))


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = sharded / "model-00002-of-00003.safetensors"
    shard.unlink()
    assert f"{shard} is missing" in refused(sharded)
    shard.mkdir()
    assert f"{shard} is missing" in refused(sharded)
    shard.rmdir()
    shard.symlink_to("nowhere")
    assert f"{shard} is missing" in refused(sharded)


def test_a_tensor_that_its_shard_lacks_is_named(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00003.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    assert f"{sharded / 'model-00001-of-00003.safetensors'} lacks model.norm.weight" in refused(sharded)


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "./x", "x/", "/", "sub/../x"]
)
def test_an_index_that_names_a_file_outside_the_directory_is_refused(sharded: Path, shard: str) -> None:
    """Even where the file is there and sound."""
    for place in (sharded.parent, sharded / "sub", sharded):
        place.mkdir(exist_ok=True)
        shutil.copy(sharded / "model-00001-of-00003.safetensors", place / "x.safetensors")
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = shard
    (sharded / INDEX).write_text(json.dumps(index))
    assert f"names {shard!r}, a file outside the directory" in refused(sharded)


@pytest.mark.parametrize("weight_map", [None, [], "x", {"a": 1}, {"a": None}, {"a": ["x"]}])
def test_an_index_without_a_weight_map_is_refused(sharded: Path, weight_map: object) -> None:
    (sharded / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert "has no weight_map" in refused(sharded)


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_an_index_that_is_not_a_json_object_is_refused(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content)
    assert INDEX in refused(sharded)


def test_bin_weights_alone_are_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    assert "has only .bin weights; convert them to safetensors" in refused(tmp_path)


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    assert f"has neither {SINGLE} nor {INDEX}" in refused(tmp_path)


@pytest.mark.parametrize("cut", [0, 10])
def test_a_file_that_shrinks_or_goes_while_it_is_read_is_an_error(cut: int, copied: Path) -> None:
    info = find_tensors(copied)["model.norm.weight"]
    with (copied / SINGLE).open("rb+") as file:
        file.truncate(info.offset + cut)
    with pytest.raises(CheckpointError, match="became shorter"):
        info.read()
    (copied / SINGLE).unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*: No such file"):
        info.read()


def tensors_or_refused(directory: Path) -> dict[str, TensorInfo]:
    try:
        tensors = find_tensors(directory)
        check_tensors(tensors, expected_tensors(VISION, TEXT))
    except CheckpointError:
        return {}
    return tensors


def damaged(data: st.DataObject, content: bytes, upto: int) -> bytes:
    """`content` with a few of its first `upto` bytes changed, and perhaps cut off."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(0, 3))):
        changed[data.draw(st.integers(0, upto - 1))] = data.draw(
            st.integers(0, 255) | st.sampled_from(b'0123456789,[]{}"-.')
        )
    return bytes(changed[: data.draw(st.just(len(changed)) | st.integers(0, len(changed)))])


@given(data=st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_header_gives_what_the_library_reads_or_an_error(
    data: st.DataObject, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.getbasetemp() / "damaged header"
    directory.mkdir(exist_ok=True)
    whole = (tiny_checkpoint / SINGLE).read_bytes()
    data_start = 8 + struct.unpack("<Q", whole[:8])[0]
    (directory / SINGLE).write_bytes(damaged(data, whole, data_start))
    tensors = tensors_or_refused(directory)
    if tensors:
        reference = load_file(directory / SINGLE)
        for name in expected_tensors(VISION, TEXT):
            np.testing.assert_array_equal(tensors[name].read(), reference[name].float().numpy())


@given(data=st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_index_gives_tensors_or_an_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.getbasetemp() / "damaged index"
    if not directory.exists():
        RandomCheckpoint(shards=2).write(directory)
        shutil.copy(directory / INDEX, directory / "whole")
    whole = (directory / "whole").read_bytes()
    (directory / INDEX).write_bytes(damaged(data, whole, len(whole)))
    for info in tensors_or_refused(directory).values():
        assert info.file.parent == directory
