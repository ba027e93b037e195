"""The `medvlm-export` command: one line for what is wrong, before any work; a table and a bundle for what is right."""

import ctypes
import dataclasses
import json
import os
import pty
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from medvlm.demo.random_checkpoint import TEXT, VISION, RandomCheckpoint
from medvlm.export import cli
from medvlm.export.convert import export
from medvlm.export.recipe import make_recipe
from medvlm.export.safetensors import INDEX, SINGLE
from medvlm.export.tensors import expected_tensors
from medvlm.runtime.bundle import open_bundle, read_manifest

SCRIPT = shutil.which("medvlm-export", path=str(Path(sys.executable).parent)) or "medvlm-export"
Change = Callable[[Path], object]


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint, to be changed."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def run_script(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """The installed console script in a process of its own."""
    command = [SCRIPT, *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file under a directory, hidden ones too."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def the_line(stderr: str) -> str:
    """The one line of an error."""
    assert stderr.startswith("Error: ")
    assert stderr.endswith("\n")
    assert stderr.count("\n") == 1
    return stderr[:-1]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs the command, which must fail before any work, and gives its line."""

    def refused(checkpoint: Path, out: Path, *options: object) -> str:
        before = names(out.parent) if out.parent.is_dir() else None
        with monkeypatch.context() as patched:
            patched.setattr(cli, "write_bundle", lambda *_, **__: pytest.fail("the work was begun"))
            result = run(checkpoint, out, *options)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert (names(out.parent) if out.parent.is_dir() else None) == before
        return the_line(result.stderr)

    return refused


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_header(path: Path, name: str, **changes: object) -> None:
    """Change entries of a tensor in the header of a safetensors file; None for changes takes the tensor out."""
    blob = path.read_bytes()
    length = struct.unpack("<Q", blob[:8])[0]
    header = json.loads(blob[8 : 8 + length])
    header[name].update(changes)
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + blob[8 + length :])


def rename_tensor(directory: Path, name: str) -> None:
    """Give a tensor another name of the same length, so that the header keeps its size."""
    path = directory / SINGLE
    path.write_bytes(path.read_bytes().replace(f'"{name}"'.encode(), f'"{"x" * len(name)}"'.encode()))


def to_bin_weights(directory: Path) -> None:
    (directory / SINGLE).rename(directory / "pytorch_model.bin")


def to_shards(directory: Path) -> None:
    (directory / SINGLE).unlink()
    RandomCheckpoint(shards=2).write(directory)


def lose_shard(directory: Path) -> None:
    to_shards(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()


def point_outside(directory: Path) -> None:
    to_shards(directory)
    edit(directory / INDEX, weight_map={"model.norm.weight": "../secret.safetensors"})


def cut(directory: Path, size: int) -> None:
    with (directory / SINGLE).open("rb+") as file:
        file.truncate(size)


NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
FAULTS: dict[str, tuple[Change, str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "has no config.json; give the directory"),
    "config not JSON": (lambda d: (d / "config.json").write_text("{"), "config.json is not JSON"),
    "config not an object": (lambda d: (d / "config.json").write_text("[]"), "config.json does not hold a JSON object"),
    "another architecture": (
        lambda d: edit(d / "config.json", architectures=["LlavaForConditionalGeneration"], model_type="llava"),
        "the architecture is LlavaForConditionalGeneration",
    ),
    "no heads": (
        lambda d: edit(d / "config.json", num_attention_heads=0),
        "num_attention_heads must be a whole number",
    ),
    "NaN": (lambda d: edit(d / "config.json", rope_theta=float("nan")), "rope_theta must be a number above 0"),
    "odd width": (lambda d: edit(d / "config.json", hidden_size=97), "hidden_size is not a multiple"),
    "no preprocessor": (lambda d: (d / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
    "bad preprocessor": (lambda d: edit(d / "preprocessor_config.json", patch_size=16), "patch_size differs"),
    "bad end tokens": (
        lambda d: (d / "generation_config.json").write_text('{"eos_token_id": "x"}'),
        "eos_token_id must be",
    ),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "not a tokenizer": (lambda d: (d / "tokenizer.json").write_text("{}"), "tokenizer.json is not a tokenizer"),
    "no image in the template": (
        lambda d: edit(d / "chat_template.json", chat_template="{{ messages[0].content[-1].text }}"),
        "the chat template writes nothing for an image",
    ),
    "unused image token": (lambda d: edit(d / "config.json", image_token_id=300), "0 times the image_token_id 300"),
    "no weights": (lambda d: (d / SINGLE).unlink(), f"has neither {SINGLE} nor {INDEX}"),
    "only .bin weights": (to_bin_weights, "has only .bin weights; convert them to safetensors"),
    "missing shard": (lose_shard, "model-00002-of-00002.safetensors is missing"),
    "index outside": (point_outside, "names '../secret.safetensors', a file outside the directory"),
    "empty weights": (lambda d: cut(d, 0), f"{SINGLE} is truncated"),
    "cut header": (lambda d: cut(d, 500), f"{SINGLE} is truncated"),
    "cut data": (lambda d: cut(d, 100_000), f"{SINGLE} is truncated"),
    "missing tensor": (lambda d: rename_tensor(d, NORM), f"the checkpoint lacks the tensor {NORM} [96]"),
    "wrong shape": (
        lambda d: edit_header(d / SINGLE, UP, shape=[96, 160]),
        f"{UP} has the shape [96, 160] and config.json wants [160, 96]",
    ),
    "quantized": (lambda d: edit_header(d / SINGLE, NORM, dtype="I8"), f"{NORM} is stored as I8"),
    "malformed entry": (
        lambda d: edit_header(d / SINGLE, NORM, data_offsets=[-1, 1]),
        f"the entry of {NORM} is malformed",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_cannot_be_converted_is_one_line(
    fault: str, checkpoint: Path, folder: Path, refused: Callable[..., str]
) -> None:
    change, message = FAULTS[fault]
    change(checkpoint)
    line = refused(checkpoint, folder / "out")
    assert message in line
    assert refused(checkpoint, folder / "out", "--quiet") == line


@pytest.mark.parametrize("fault", ["another architecture", "cut data", "not a tokenizer"])
def test_the_script_says_the_same_line(fault: str, checkpoint: Path, folder: Path, refused: Callable[..., str]) -> None:
    FAULTS[fault][0](checkpoint)
    done = run_script(checkpoint, folder / "out")
    assert done.returncode == 2
    assert done.stdout == ""
    assert the_line(done.stderr) == refused(checkpoint, folder / "out")
    assert not any(folder.iterdir())


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(
    tmp_path: Path, folder: Path, refused: Callable[..., str]
) -> None:
    """The last one is the image token here, so it would be outside the vocabulary first."""
    RandomCheckpoint(text=dataclasses.replace(TEXT, vocab_size=262)).write(tmp_path / "checkpoint")
    tokenizer = tmp_path / "checkpoint" / "tokenizer.json"
    extra = {**json.loads(tokenizer.read_text())["added_tokens"][-1], "id": 262, "content": "<|extra|>"}
    edit(tokenizer, added_tokens=[*json.loads(tokenizer.read_text())["added_tokens"], extra])
    line = refused(tmp_path / "checkpoint", folder / "out")
    assert "tokenizer.json has 263 tokens and config.json's vocab_size is 262" in line


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path, folder: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "absent", "two\nlines"):
        assert "is not a directory; give the directory" in refused(tmp_path / name, folder / "out")


def test_a_place_that_cannot_take_the_bundle_is_refused(
    tiny_checkpoint: Path, checkpoint: Path, tiny_bundle: Path, folder: Path, refused: Callable[..., str]
) -> None:
    shutil.copytree(tiny_bundle, folder / "bundle")
    (folder / "documents").mkdir()
    (folder / "documents" / "thesis.txt").touch()
    assert "bundle exists; choose another OUT, or give --force" in refused(tiny_checkpoint, folder / "bundle")
    assert "documents exists; choose another OUT" in refused(tiny_checkpoint, folder / "documents")
    assert "is not a bundle" in refused(tiny_checkpoint, folder / "documents", "--force")
    assert "absent is not a directory; create it first" in refused(tiny_checkpoint, folder / "absent" / "out")
    for out in (checkpoint, checkpoint / "out", checkpoint.parent):
        assert "lie in each other" in refused(checkpoint, out)
        assert "lie in each other" in refused(checkpoint, out, "--force")
    assert names(folder / "documents") == {"thesis.txt"}


def test_too_little_space_is_refused(
    tiny_checkpoint: Path, folder: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 10**9, 10**7))
    assert "has 0.01 GB free and the bundle needs 0.07 GB" in refused(tiny_checkpoint, folder / "out")


def drop_override() -> None:
    """Take from root what lets it write everywhere: CAP_DAC_OVERRIDE (1), by PR_CAPBSET_DROP (24)."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


def test_a_parent_that_is_not_writable_is_refused(tiny_checkpoint: Path, folder: Path) -> None:
    folder.chmod(0o555)
    probe = [sys.executable, "-c", f"import os, sys; sys.exit(os.access({str(folder)!r}, os.W_OK))"]
    if subprocess.run(probe, check=False, preexec_fn=drop_override).returncode:
        pytest.skip("needs a directory that is not writable, and here every one is")
    done = run_script(tiny_checkpoint, folder / "out", preexec_fn=drop_override)
    assert done.returncode == 2
    assert f"{folder} is not writable; choose another OUT" in the_line(done.stderr)


@pytest.mark.parametrize(
    "options",
    [
        ["--block-size", "16"],
        ["--block-size", "x"],
        ["--int3"],
        ["--accuracy-level", "2"],
        ["--vision", "w3"],
        ["--method", "awq-gptq"],
        ["--scale", "mean"],
        ["--vision", "same"],
        ["--prefill", "fp32"],
    ],
)
def test_an_option_that_is_unknown_is_refused(options: list[str], tiny_checkpoint: Path, folder: Path) -> None:
    result = run(tiny_checkpoint, folder / "out", *options)
    assert result.exit_code == 2
    assert not any(folder.iterdir())


def test_weights_that_are_not_finite_are_one_line(checkpoint: Path, folder: Path) -> None:
    with (checkpoint / SINGLE).open("rb+") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\xc0\x7f")
    result = run(checkpoint, folder / "out", "--quiet")
    assert result.exit_code == 2
    last = list(expected_tensors(VISION, TEXT))[-1]
    assert f"Error: {last} holds values that are not finite" in the_line(result.stderr)
    assert not any(folder.iterdir())


def test_the_default_is_int4_in_blocks_of_128(tiny_checkpoint: Path, folder: Path) -> None:
    assert run(tiny_checkpoint, folder / "out").exit_code == 0
    assert read_manifest(folder / "out").recipe == make_recipe("int4", 128).to_json()


@pytest.mark.parametrize(
    ("options", "recipe"),
    [
        (["--int4", "--block-size", "32"], make_recipe("int4", 32)),
        (["--int8", "--symmetric"], make_recipe("int8", 128, symmetric=True)),
        (["--int4", "--accuracy-level", "0"], make_recipe("int4", 128, accuracy_level=0)),
        (["--nf4"], make_recipe("nf4", 64)),
        (["--nf4", "--block-size", "128"], make_recipe("nf4", 128)),
        (["--fp32"], make_recipe("fp32")),
    ],
)
def test_options_choose_the_recipe(options: list[str], recipe: Any, tiny_checkpoint: Path, folder: Path) -> None:
    assert run(tiny_checkpoint, folder / "out", *options).exit_code == 0
    assert open_bundle(folder / "out", hash_files=True).manifest.recipe == recipe.to_json()


@pytest.mark.parametrize("package", ["bitsandbytes", "torch"])
def test_nf4_without_its_packages_says_what_to_install(
    package: str,
    refused: Callable[..., str],
    tiny_checkpoint: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.functional", raising=False)
    line = refused(tiny_checkpoint, folder / "out", "--nf4")
    assert line == f"Error: --nf4 needs {package}, which is not installed; pip install 'medvlm[calibrate]'"


ROWS, FLOATS = {"kind": "w8a8"}, {"kind": "fp32"}
BLOCKS = {"kind": "blockwise", "bits": 8, "block_size": 128, "symmetric": False, "accuracy_level": 4}
BLOCKS |= {"method": "rtn", "act_order": False}


@pytest.mark.parametrize(
    ("options", "vision", "prefill"),
    [
        ([], ROWS, ROWS),
        (["--int8"], ROWS, ROWS),
        (["--fp32"], FLOATS, None),
        (["--vision", "w8a8"], ROWS, ROWS),
        (["--vision", "w8"], BLOCKS, ROWS),
        (["--vision", "w4"], {**BLOCKS, "bits": 4, "method": "rtn-search"}, ROWS),
        (["--vision", "fp32"], FLOATS, ROWS),
        (["--prefill", "w8a8"], ROWS, ROWS),
        (["--prefill", "same"], ROWS, None),
        (["--vision", "w8", "--prefill", "same"], BLOCKS, None),
        (["--fp32", "--vision", "w8a8"], ROWS, None),
        (["--fp32", "--prefill", "w8a8"], FLOATS, ROWS),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_vision_and_prefill_are_chosen_by_themselves(
    options: list[str], vision: object, prefill: object, tiny_checkpoint: Path, folder: Path
) -> None:
    assert run(tiny_checkpoint, folder / "out", "--quiet", *options).exit_code == 0
    recipe = open_bundle(folder / "out", hash_files=True).manifest.recipe
    assert (recipe["vision"], recipe["prefill"]) == (vision, prefill)
    decoder = {"--int8": 8, "--fp32": None}.get(options[0] if options else "", 4)
    assert recipe["decoder"].get("bits") == decoder
    graphs = {"vision_encoder.onnx", "decoder.onnx"} | ({"prefill.onnx"} if prefill else set())
    assert {name for name in names(folder / "out") if name.endswith(".onnx")} == graphs


def test_the_table_has_part_precision_size_and_time(tiny_checkpoint: Path, folder: Path) -> None:
    result = run(tiny_checkpoint, folder / "out")
    header, *rows = [re.split(r" {2,}", line.strip()) for line in result.stdout.splitlines()]
    assert header == ["part", "precision", "size", "time"]
    files = {path.name: path.stat().st_size for path in (folder / "out").iterdir()}
    vision, decoder, prefill = (
        files[f"{name}.onnx"] + files[f"{name}.onnx.data"] for name in ("vision_encoder", "decoder", "prefill")
    )
    del files["manifest.json"]
    assert [row[:-1] for row in rows] == [
        ["vision encoder", "w8a8", f"{vision / 1e6:.1f} MB"],
        ["decoder and head", "int4 block 128 rtn-search", f"{decoder / 1e6:.1f} MB"],
        ["prefill", "w8a8", f"{prefill / 1e6:.1f} MB"],
        ["embedding table", "float16", f"{files['embeddings.bin'] / 1e6:.1f} MB"],
        ["all files", f"{sum(files.values()) / 1e6:.1f} MB"],
    ]
    assert all(re.fullmatch(r"\d+\.\d s", row[-1]) for row in rows)


def test_quiet_prints_nothing(tiny_checkpoint: Path, folder: Path) -> None:
    result = run(tiny_checkpoint, folder / "out", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    done = run_script(tiny_checkpoint, folder / "again", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    first, second = ({k: v for k, v in contents(folder / n).items() if k != "manifest.json"} for n in ("out", "again"))
    assert first == second


def test_a_checkpoint_without_a_template_gets_a_note(checkpoint: Path, folder: Path) -> None:
    (checkpoint / "chat_template.json").unlink()
    result = run(checkpoint, folder / "out")
    assert result.exit_code == 0
    assert result.stderr.startswith("Note: the checkpoint has no chat template")
    assert run(checkpoint, folder / "quiet", "--quiet").output == ""


def test_force_replaces_a_bundle(tiny_checkpoint: Path, tiny_bundle: Path, folder: Path) -> None:
    out = folder / "out"
    shutil.copytree(tiny_bundle, out)
    assert run(tiny_checkpoint, out, "--int8", "--force").exit_code == 0
    assert open_bundle(out, hash_files=True).manifest.recipe["name"] == "int8"
    assert names(folder) == {"out"}


@pytest.mark.parametrize("limit", [10_000, 150_000, 640_000])
def test_a_write_beyond_the_limit_leaves_the_old_bundle(
    limit: int, tiny_checkpoint: Path, tiny_bundle: Path, folder: Path
) -> None:
    """A real failure of the system's write: no file may grow beyond `limit`, in fp32 not even the smallest of them."""
    shutil.copytree(tiny_bundle, folder / "out")
    before = contents(folder)
    done = run_script(
        *(tiny_checkpoint, folder / "out", "--force", "--fp32", "--quiet"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert f"could not write {folder / 'out'}: File too large; nothing was left behind" in the_line(done.stderr)
    assert contents(folder) == before
    assert names(folder) == {"out"}


# Stands still in the decoder, well after the first file was written, until a signal comes.
SLOW_EXPORT = """
import signal, sys, time
from medvlm.export import cli
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
def wait(name, size):
    if name == "model.norm.weight":
        print("ready", flush=True)
        time.sleep(60)
write_bundle = cli.write_bundle
cli.write_bundle = lambda checkpoint, out, recipe, **others: write_bundle(checkpoint, out, recipe, wait, **others)
cli.main()
"""


@pytest.mark.parametrize("present", ["no bundle", "a bundle"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_process_that_is_told_to_stop_leaves_nothing_behind(
    number: signal.Signals, present: str, tiny_checkpoint: Path, tiny_bundle: Path, folder: Path
) -> None:
    out = folder / "out"
    if present == "a bundle":
        shutil.copytree(tiny_bundle, out)
    before = contents(folder)
    command = [sys.executable, "-c", SLOW_EXPORT, tiny_checkpoint, out, "--quiet", "--force"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(contents(folder)) > len(before)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert stderr.split() == ["Aborted!"]
    assert contents(folder) == before
    assert names(folder) == ({"out"} if before else set())


# Click works the time left out once a second, so that one must pass.
SLOW_BAR = """
import time
from medvlm.export import cli
def slow(checkpoint, out, recipe, progress, *others):
    def wait(name, size):
        progress(name, size)
        if name == "model.layers.0.mlp.up_proj.weight":
            time.sleep(1.1)
    return write_bundle(checkpoint, out, recipe, wait, *others)
write_bundle, cli.write_bundle = cli.write_bundle, slow
cli.main()
"""


def test_the_bar_names_tensors_bytes_and_the_time_left(tiny_checkpoint: Path, folder: Path) -> None:
    """On a terminal, which a pseudo-terminal of 200 columns is."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", SLOW_BAR, tiny_checkpoint, folder / "out"]
    environment = {**os.environ, "COLUMNS": "200", "TERM": "xterm"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as process:
        os.close(theirs)
        frames = b"".join(terminal_output(ours)).decode().split("\r")
    os.close(ours)
    assert process.returncode == 0
    shown = [name for name in expected_tensors(VISION, TEXT) if any(f"  {name}, 0." in frame for frame in frames)]
    assert shown == list(expected_tensors(VISION, TEXT))
    assert any(re.search(r"Exporting .*\d\d:\d\d:\d\d  0\.00/0\.00 GB  model\.norm\.weight", f) for f in frames)


def terminal_output(descriptor: int) -> Iterator[bytes]:
    """What is written to a pseudo-terminal until its other end is closed."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            piece = os.read(descriptor, 4096)
        except OSError:  # Linux says EIO at the end
            return
        if not piece:
            return
        yield piece


@pytest.mark.parametrize("package", ["onnx", "jinja2"])
def test_without_the_extra_the_command_says_what_to_install(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from medvlm.export.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "a", "b"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert the_line(done.stderr) == f"Error: {package} is not installed; pip install 'medvlm[export]'"


def test_neither_torch_nor_transformers_is_imported(tiny_checkpoint: Path, folder: Path) -> None:
    code = (
        "import sys; from medvlm.export.cli import main; main(standalone_mode=False); "
        "print(*sorted({'torch', 'transformers', 'onnxruntime', 'safetensors'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, tiny_checkpoint, folder / "out", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_the_python_function_checks_as_the_command_does(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    before = contents(tiny_bundle)
    with pytest.raises(Exception, match="exists; choose another OUT"):
        export(tiny_checkpoint, tiny_bundle, make_recipe("int4"))
    assert contents(tiny_bundle) == before
