"""`optimum-cli export medvlm`, run as its users run it: the exporter under another name."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner
from medvlm.export import cli
from medvlm.runtime.manifest import MANIFEST

pytest.importorskip("optimum.commands.optimum_cli", reason="optimum is not installed")

MAIN = "from optimum.commands.optimum_cli import main; main()"


def optimum_cli(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """What the script `optimum-cli` does, by this interpreter."""
    command = [sys.executable, "-c", MAIN, *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def contents(bundle: Path) -> dict[str, bytes]:
    """Every file of a bundle; the manifest without the times that its parts took."""
    files = {path.name: path.read_bytes() for path in bundle.iterdir()}
    manifest = json.loads(files[MANIFEST])
    for part in manifest["parts"]:
        del part["seconds"]
    return {**files, MANIFEST: json.dumps(manifest).encode()}


def medvlm_export(*arguments: object) -> None:
    assert CliRunner().invoke(cli.main, [str(argument) for argument in arguments]).exit_code == 0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["-m", "CHECKPOINT", "--int4"], []),
        (["--model=CHECKPOINT"], ["--int8", "--block-size", "32", "--quiet"]),
        (["--fp32", "-m", "CHECKPOINT", "--"], []),
        (["CHECKPOINT", "--vision", "w8"], []),
    ],
    ids=["-m", "--model=", "-m within", "no -m"],
)
def test_it_writes_what_medvlm_export_writes(
    before: list[str], after: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    named = [argument.replace("CHECKPOINT", str(tiny_checkpoint)) for argument in before]
    done = optimum_cli("export", "medvlm", *named, tmp_path / "ours", *after)
    assert (done.returncode, "Error" in done.stderr) == (0, False)
    options = [option for option in [*before, *after] if option not in ("-m", "--") and "CHECKPOINT" not in option]
    medvlm_export(tiny_checkpoint, tmp_path / "theirs", *options)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")


def test_a_checkpoint_that_is_absent_is_one_line(tmp_path: Path) -> None:
    done = optimum_cli("export", "medvlm", "-m", tmp_path / "absent", "--int4", tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"Error: {tmp_path / 'absent'} is not a directory; give the directory of a Hugging Face checkpoint\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Error: Missing argument 'CHECKPOINT'."),
        (["-m", "checkpoint"], "Error: Missing argument 'OUT'."),
        (["-m"], "-m/--model: expected one argument"),
        (["-m", "checkpoint", "out", "--int3"], "Error: No such option"),
    ],
)
def test_arguments_that_are_wrong_exit_with_2(arguments: list[str], message: str) -> None:
    done = optimum_cli("export", "medvlm", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_its_help_is_the_exporters_own(option: str) -> None:
    help_text = optimum_cli("export", "medvlm", option).stdout
    expected = CliRunner().invoke(cli.main, ["-h"], prog_name="optimum-cli export medvlm").stdout
    assert help_text.split() == expected.split()


def test_optimum_lists_it() -> None:
    assert "MedVLM-R1" in optimum_cli("export", "-h").stdout


def test_registering_it_imports_nothing_heavy() -> None:
    heavy = {"torch", "onnx", "onnxruntime", "transformers", "medvlm", "numpy"}
    names = "optimum.commands.optimum_cli, optimum.commands.register.register_medvlm"
    code = f"import sys, {names}; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_the_wheel_holds_no_init_file_in_optimums_namespace() -> None:
    # A build leaves metadata in the checkout too, which lists no installed files.
    installed = next(found for found in metadata.distributions(name="medvlm") if found.read_text("RECORD"))
    files = [str(path) for path in installed.files or () if path.parts[0] == "optimum"]
    assert [name for name in files if name.endswith(".py")] == ["optimum/commands/register/register_medvlm.py"]
