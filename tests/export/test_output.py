"""A bundle is written whole or not at all, where it may be, in the memory of one tensor."""

import dataclasses
import errno
import os
import shutil
import signal
import threading
import tracemalloc
from collections import Counter, namedtuple
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import pytest
from medvlm.demo.random_checkpoint import TEXT, VISION, RandomCheckpoint
from medvlm.export.checkpoint import open_checkpoint
from medvlm.export.convert import bundle_bytes, export, read_bytes, write_bundle
from medvlm.export.folds import text_sites, vision_sites
from medvlm.export.output import atomic_directory, check_output, check_space
from medvlm.export.recipe import Blockwise, PrefillName, Recipe, RecipeName, VisionName, make_recipe
from medvlm.export.safetensors import SINGLE, find_tensors
from medvlm.quant import chunks
from medvlm.runtime.bundle import open_bundle
from medvlm.runtime.errors import CheckpointError, InputError, MedVLMError
from medvlm.runtime.manifest import MANIFEST

INT4 = make_recipe("int4", 32)
EMBEDDING = "model.embed_tokens.weight"
MEBIBYTE = 1024**2


class UnforeseenError(Exception):
    """Something that nobody foresaw."""


@pytest.fixture(params=["no bundle", "a bundle"])
def out(request: pytest.FixtureRequest, folder: Path, tiny_bundle: Path) -> Path:
    """OUT, which is absent, or a bundle that may be replaced."""
    if request.param == "a bundle":
        shutil.copytree(tiny_bundle, folder / "out")
    return folder / "out"


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def middling(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 28 million weights in bf16, of which the largest tensor holds a fourteenth."""
    text = dataclasses.replace(
        TEXT,
        layers=12,
        hidden_size=512,
        intermediate_size=1024,
        num_heads=8,
        num_kv_heads=2,
        head_size=64,
        mrope_section=(8, 12, 12),
        vocab_size=4096,
        tied_embeddings=request.param,
    )
    directory = tmp_path_factory.mktemp("middling") / "checkpoint"
    RandomCheckpoint(dataclasses.replace(VISION, out_dim=512), text).write(directory)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    """Every file under a directory, hidden ones too."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def interrupting(error: BaseException, at: str = "model.norm.weight") -> Callable[[str, int], None]:
    """A progress callback that fails when the tensor `at`, well into the decoder, was read."""

    def progress(name: str, _size: int) -> None:
        if name == at:
            raise error

    return progress


@pytest.mark.parametrize("at", ["visual.patch_embed.proj.weight", "model.norm.weight", EMBEDDING])
@pytest.mark.parametrize("error", [UnforeseenError(), KeyboardInterrupt(), SystemExit(3), MemoryError()], ids=repr)
def test_what_breaks_off_an_export_leaves_all_as_it_was(
    error: BaseException, at: str, tiny_checkpoint: Path, out: Path
) -> None:
    before = contents(out.parent)
    with pytest.raises(type(error)):
        write_bundle(open_checkpoint(tiny_checkpoint), out, INT4, interrupting(error, at))
    assert contents(out.parent) == before
    assert names(out.parent) == ({"out"} if before else set())


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as at a terminal: a shell lets what it starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_in_the_middle_leaves_all_as_it_was(number: int, tiny_checkpoint: Path, out: Path) -> None:
    before, handlers = contents(out.parent), [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)]

    def progress(name: str, _size: int) -> None:
        if name == "model.norm.weight":
            assert signal.getsignal(number) is not signal.SIG_DFL, "it would end the tests"
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        write_bundle(open_checkpoint(tiny_checkpoint), out, INT4, progress)
    assert contents(out.parent) == before
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)] == handlers


def test_signals_that_are_ignored_or_handled_stay_so(tiny_checkpoint: Path, folder: Path) -> None:
    """nohup ignores SIGHUP; a server has its own handler."""
    received: list[int] = []
    previous = {
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, _frame: received.append(number)),
    }

    def progress(name: str, _size: int) -> None:
        if name == "model.norm.weight":
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        write_bundle(open_checkpoint(tiny_checkpoint), folder / "out", INT4, progress)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    assert received == [signal.SIGTERM]
    open_bundle(folder / "out", hash_files=True)


def test_an_export_works_outside_the_main_thread(tiny_checkpoint: Path, folder: Path) -> None:
    thread = threading.Thread(target=export, args=(tiny_checkpoint, folder / "out", INT4))
    thread.start()
    thread.join()
    open_bundle(folder / "out", hash_files=True)


@pytest.mark.parametrize("full", ["vision_encoder.onnx.data", "decoder.onnx.data"])
def test_a_full_disk_leaves_all_as_it_was(
    full: str, tiny_checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device /dev/full answers every write with ENOSPC."""
    if not Path("/dev/full").exists():
        pytest.skip("needs the device /dev/full, which is absent")
    real_open = Path.open

    def open_on_full_disk(path: Path, *args: Any, **kwargs: Any) -> IO[Any]:
        return real_open(Path("/dev/full") if path.name == full else path, *args, **kwargs)

    before = contents(out.parent)
    monkeypatch.setattr(Path, "open", open_on_full_disk)
    with pytest.raises(MedVLMError) as caught:
        write_bundle(open_checkpoint(tiny_checkpoint), out, INT4)
    monkeypatch.undo()
    assert str(caught.value) == f"could not write {out}: {os.strerror(errno.ENOSPC)}; nothing was left behind"
    assert caught.value.exit_code == 1
    assert contents(out.parent) == before
    assert names(out.parent) == ({"out"} if before else set())


def test_a_disk_that_is_found_full_by_the_last_flush_leaves_all_as_it_was(
    tiny_checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = contents(out.parent)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(MedVLMError, match="No space left on device"):
        write_bundle(open_checkpoint(tiny_checkpoint), out, INT4)
    assert contents(out.parent) == before
    assert names(out.parent) == ({"out"} if before else set())


def test_a_directory_that_cannot_be_made_is_one_error(tiny_checkpoint: Path, folder: Path) -> None:
    with pytest.raises(MedVLMError, match=r"could not write .*: File name too long"):
        write_bundle(open_checkpoint(tiny_checkpoint), folder / ("x" * 300), INT4)


def fail_renames(monkeypatch: pytest.MonkeyPatch, *suffixes: str) -> None:
    """Let every rename of a path that ends in one of `suffixes` fail."""
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.suffix in suffixes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)


def test_the_old_bundle_is_put_back_where_the_new_one_cannot_take_its_place(
    tiny_checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(out.parent)
    fail_renames(monkeypatch, ".partial")
    with pytest.raises(MedVLMError, match="Input/output error"):
        write_bundle(open_checkpoint(tiny_checkpoint), out, make_recipe("int8"))
    assert contents(out.parent) == before
    assert names(out.parent) == ({"out"} if before else set())


def test_an_old_bundle_that_cannot_be_put_back_is_kept(
    tiny_checkpoint: Path, tiny_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_bundle, folder / "out")
    fail_renames(monkeypatch, ".partial", ".replaced")
    with pytest.raises(MedVLMError) as caught:
        write_bundle(open_checkpoint(tiny_checkpoint), folder / "out", make_recipe("int8"))
    (kept,) = folder.iterdir()
    assert str(caught.value).endswith(f"Input/output error; the old one is now {kept}")
    assert contents(kept) == contents(tiny_bundle)


def test_a_new_bundle_takes_the_place_of_the_old_at_the_end(
    tiny_checkpoint: Path, tiny_bundle: Path, folder: Path
) -> None:
    out = folder / "out"
    shutil.copytree(tiny_bundle, out)
    seen: list[bool] = []

    def progress(_name: str, _size: int) -> None:
        seen.append(contents(out) == contents(tiny_bundle))
        (partial,) = names(folder) - {"out"}
        assert partial.startswith(".out.")
        assert partial.endswith(".partial")

    manifest = write_bundle(open_checkpoint(tiny_checkpoint), out, make_recipe("int8"), progress)
    assert seen
    assert all(seen)
    assert names(folder) == {"out"}
    assert open_bundle(out, hash_files=True).manifest == manifest
    assert manifest.recipe["name"] == "int8"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0o002, 0o775)])
def test_the_bundle_has_the_modes_that_the_umask_gives(umask: int, mode: int, folder: Path) -> None:
    previous = os.umask(umask)
    try:
        with atomic_directory(folder / "out") as partial:
            (partial / "file").write_text("x")
    finally:
        os.umask(previous)
    assert (folder / "out").stat().st_mode & 0o777 == mode
    assert (folder / "out" / "file").stat().st_mode & 0o777 == mode & 0o666


def refused(out: Path, checkpoint: Path, *, force: bool = False) -> str:
    """The message of the `InputError` for writing to `out`."""
    with pytest.raises(InputError) as caught:
        check_output(out, checkpoint, force=force)
    return str(caught.value)


def test_an_absent_out_is_fine(tiny_checkpoint: Path, folder: Path) -> None:
    check_output(folder / "out", tiny_checkpoint, force=False)
    check_output(folder / "out", tiny_checkpoint, force=True)


def test_a_parent_that_is_absent_or_a_file_is_refused(tiny_checkpoint: Path, folder: Path) -> None:
    (folder / "file").touch()
    for parent in ("absent", "file"):
        assert f"{folder / parent} is not a directory" in refused(folder / parent / "out", tiny_checkpoint)


def test_what_exists_is_refused_without_force(tiny_checkpoint: Path, tiny_bundle: Path, folder: Path) -> None:
    shutil.copytree(tiny_bundle, folder / "bundle")
    (folder / "empty").mkdir()
    (folder / "file").touch()
    for name in ("bundle", "empty", "file"):
        assert f"{folder / name} exists; choose another OUT, or give --force" in refused(folder / name, tiny_checkpoint)


def test_force_takes_a_bundle_or_an_empty_directory(tiny_checkpoint: Path, tiny_bundle: Path, folder: Path) -> None:
    shutil.copytree(tiny_bundle, folder / "bundle")
    (folder / "bundle" / "decoder.onnx.data").unlink()
    (folder / "empty").mkdir()
    check_output(folder / "bundle", tiny_checkpoint, force=True)
    check_output(folder / "empty", tiny_checkpoint, force=True)


@pytest.mark.parametrize("manifest", [None, "", "{", "[]", '{"name": "a web page"}', '{"format_version": 1}'])
def test_force_refuses_a_directory_that_is_no_bundle(manifest: str | None, tiny_checkpoint: Path, folder: Path) -> None:
    """Others call a file manifest.json too."""
    out = folder / "out"
    out.mkdir()
    (out / "thesis.txt").touch()
    if manifest is not None:
        (out / MANIFEST).write_text(manifest)
    assert f"{out} exists and is not a bundle" in refused(out, tiny_checkpoint, force=True)


def test_force_refuses_a_file(tiny_checkpoint: Path, folder: Path) -> None:
    (folder / "out").touch()
    assert "is not a bundle" in refused(folder / "out", tiny_checkpoint, force=True)


def test_force_refuses_a_bundle_with_a_file_of_the_users(
    tiny_checkpoint: Path, tiny_bundle: Path, folder: Path
) -> None:
    shutil.copytree(tiny_bundle, folder / "out")
    (folder / "out" / "notes.txt").touch()
    assert "holds notes.txt, which is no part of a bundle" in refused(folder / "out", tiny_checkpoint, force=True)


@pytest.mark.parametrize("target", ["bundle", "nowhere", "out"])
@pytest.mark.parametrize("force", [False, True])
def test_a_link_is_refused(force: bool, target: str, tiny_checkpoint: Path, tiny_bundle: Path, folder: Path) -> None:
    shutil.copytree(tiny_bundle, folder / "bundle")
    (folder / "out").symlink_to(target)
    assert f"{folder / 'out'} exists and is a link" in refused(folder / "out", tiny_checkpoint, force=force)


@pytest.mark.parametrize("force", [False, True])
def test_out_and_checkpoint_in_each_other_are_refused(
    force: bool, tiny_checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = folder / "a" / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    (folder / "link").symlink_to("a")
    monkeypatch.chdir(checkpoint)
    for out in (
        checkpoint,
        checkpoint / "out",
        folder / "a",
        folder,
        folder / "link" / "checkpoint" / "out",
        folder / "link" / "checkpoint",
        checkpoint / ".." / "checkpoint",
        Path("out"),
        Path(),
        Path(".."),
    ):
        assert "lie in each other" in refused(out, checkpoint, force=force)


def test_the_working_directory_may_be_the_empty_out(
    tiny_checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "out").mkdir()
    monkeypatch.chdir(folder / "out")
    export(tiny_checkpoint, Path(), INT4, force=True)
    monkeypatch.undo()
    assert names(folder) == {"out"}
    open_bundle(folder / "out", hash_files=True)


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free", "enough"), [(100 * MEBIBYTE, True), (100 * MEBIBYTE - 1, False), (0, False)])
def test_the_disk_must_hold_the_bundle_and_64_mebibytes(
    free: int, enough: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free if path == folder else 1 << 60))
    if enough:
        check_space(folder / "out", 36 * MEBIBYTE)
        return
    with pytest.raises(InputError, match=r"GB free and the bundle needs 0\.10 GB"):
        check_space(folder / "out", 36 * MEBIBYTE)


NAMES: tuple[RecipeName, ...] = ("int4", "int8", "fp32")
VISIONS: tuple[VisionName, ...] = ("w8a8", "w8", "fp32")
PREFILLS: tuple[PrefillName, ...] = ("w8a8", "same")


def every_combination(block_size: int) -> list[Recipe]:
    return [
        make_recipe(name, block_size, symmetric=symmetric, vision=vision, prefill=prefill)
        for name, symmetric, vision, prefill in product(NAMES, (True, False), VISIONS, PREFILLS)
    ]


def recipe_id(recipe: Recipe) -> str:
    symmetric = isinstance(recipe.decoder, Blockwise) and recipe.decoder.symmetric
    prefill = recipe.prefill.label if recipe.prefill else "none"
    return f"{recipe.decoder.label}{' symmetric' * symmetric}, vision {recipe.vision.label}, prefill {prefill}"


@pytest.mark.parametrize(
    "recipe",
    [
        *(make_recipe("int4", size, symmetric=symmetric) for size in (32, 256) for symmetric in (True, False)),
        make_recipe("int4", vision="fp32", prefill="same"),
        make_recipe("int8", 32, vision="w8", prefill="same"),
        make_recipe("int8", 256, vision="w8", prefill="w8a8"),
        make_recipe("fp32"),
        make_recipe("fp32", vision="w8a8", prefill="w8a8"),
    ],
    ids=recipe_id,
)
def test_the_estimate_is_within_5_percent_of_the_bundle(recipe: Recipe, middling: Path, folder: Path) -> None:
    manifest = export(middling, folder / "out", recipe)
    size = sum(path.stat().st_size for path in (folder / "out").iterdir())
    assert bundle_bytes(open_checkpoint(middling), recipe) == pytest.approx(size, rel=0.05)
    assert size == sum(entry.size for entry in manifest.files.values()) + (folder / "out" / MANIFEST).stat().st_size


@pytest.mark.parametrize("block_size", [32, 64, 128, 256])
def test_the_estimate_of_a_tiny_bundle_lacks_only_graphs_and_padding(
    block_size: int, tiny_checkpoint: Path, folder: Path
) -> None:
    """Whatever is combined: the graphs, the manifest, and at most a page before each tensor."""
    checkpoint = open_checkpoint(tiny_checkpoint)
    for recipe in [*every_combination(block_size), make_recipe("nf4", block_size)]:
        export(tiny_checkpoint, folder / "out", recipe, force=True)
        sizes = {path.name: path.stat().st_size for path in (folder / "out").iterdir()}
        graphs = [folder / "out" / name for name in sizes if name.endswith(".onnx")]
        pages = sum(len(onnx.load(graph, load_external_data=False).graph.initializer) for graph in graphs)
        unforeseen = sizes[MANIFEST] + sum(sizes[graph.name] for graph in graphs) + 4096 * pages
        assert 0 <= sum(sizes.values()) - bundle_bytes(checkpoint, recipe) <= unforeseen, recipe_id(recipe)


@pytest.mark.parametrize("precision", ["int4", "int8", "fp32"])
def test_an_export_takes_at_most_two_tensors_of_memory(
    precision: Any, middling: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest in float32, and its transposed or quantized copy; the whole model would be 14 times that.

    Each core that quantizes works on a piece of 256 k weights, which is much of a tensor here; so there is one core.
    """
    monkeypatch.setattr(chunks, "_cores", lambda: 1)
    checkpoint = open_checkpoint(middling)
    sizes = [4 * int(np.prod(info.shape)) for info in checkpoint.tensors.values()]
    assert sum(sizes) > 13 * max(sizes)
    tracemalloc.start()
    try:
        write_bundle(checkpoint, folder / "out", make_recipe(precision))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.3 * max(sizes)


@pytest.mark.parametrize("prefill", PREFILLS)
def test_progress_tells_every_tensor_and_byte_that_is_read(prefill: PrefillName, middling: Path, folder: Path) -> None:
    read: Counter[str] = Counter()
    chosen: list[str] = []
    sizes = 0

    def progress(name: str, size: int) -> None:
        nonlocal sizes
        if size:
            read[name] += 1
            sizes += size
        else:
            chosen.append(name)

    checkpoint = open_checkpoint(middling)
    recipe = make_recipe("int4", prefill=prefill)
    write_bundle(checkpoint, folder / "out", recipe, progress)
    # A tied embedding is the table and the head.
    twice = {EMBEDDING} if checkpoint.config.text.tied_embeddings else set()
    if prefill == "w8a8":
        # The layers are read again, but for what follows attention in the last one.
        last = f"model.layers.{checkpoint.config.text.layers - 1}."
        unread = tuple(last + name for name in ("self_attn.o_proj", "post_attention_layernorm", "mlp"))
        twice |= {n for n in checkpoint.tensors if n.startswith("model.layers.") and not n.startswith(unread)}
    assert read == dict.fromkeys(checkpoint.tensors, 1) | dict.fromkeys(twice, 2)
    assert sizes == read_bytes(checkpoint, recipe)
    # The scales to fold in come first, from weights that are read for them and not counted.
    config = checkpoint.config
    sites = [*vision_sites(config.vision), *text_sites(config.text)]
    assert chosen == [f"scales of {site.name}" for site in sites]


def poke(checkpoint: Path, name: str, value: int) -> None:
    """Overwrite a bf16 tensor's last element."""
    info = find_tensors(checkpoint)[name]
    with (checkpoint / SINGLE).open("rb+") as file:
        file.seek(info.offset + info.nbytes - 2)
        file.write(value.to_bytes(2, "little"))


NAN, INFINITY, MINUS_INFINITY, BEYOND_FP16, MINUS_BEYOND_FP16, LARGEST_IN_FP16 = (
    *(0x7FC0, 0x7F80, 0xFF80),
    # In bf16: 65536, -65536, 65280.
    *(0x4780, 0xC780, 0x477F),
)


@pytest.mark.parametrize("value", [NAN, INFINITY, MINUS_INFINITY])
@pytest.mark.parametrize(
    "name",
    [
        "visual.patch_embed.proj.weight",
        "visual.blocks.1.norm2.bias",
        "visual.merger.mlp.2.weight",
        "model.layers.1.self_attn.k_proj.bias",
        "model.layers.0.mlp.down_proj.weight",
        EMBEDDING,
    ],
)
def test_a_weight_that_is_not_finite_is_refused_by_its_tensor(
    name: str, value: int, tiny_checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    poke(checkpoint, name, value)
    with pytest.raises(CheckpointError) as caught:
        export(checkpoint, folder / "out", INT4)
    assert str(caught.value).startswith(f"{name} holds values that are not finite")
    assert not any(folder.iterdir())


@pytest.mark.parametrize("value", [BEYOND_FP16, MINUS_BEYOND_FP16])
@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_beyond_fp16_is_refused_with_advice(tied: bool, value: int, folder: Path, tmp_path: Path) -> None:
    RandomCheckpoint(text=dataclasses.replace(TEXT, tied_embeddings=tied)).write(tmp_path / "checkpoint")
    poke(tmp_path / "checkpoint", EMBEDDING, value)
    with pytest.raises(CheckpointError) as caught:
        export(tmp_path / "checkpoint", folder / "out", INT4)
    assert str(caught.value) == f"{EMBEDDING} has values beyond fp16's range; export it with --fp32"
    assert not any(folder.iterdir())
    export(tmp_path / "checkpoint", folder / "out", make_recipe("fp32"))


def test_an_embedding_just_within_fp16_is_kept(tiny_checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    poke(checkpoint, EMBEDDING, LARGEST_IN_FP16)
    export(checkpoint, folder / "out", INT4)
    assert np.fromfile(folder / "out" / "embeddings.bin", "<f2")[-1] == 65280
