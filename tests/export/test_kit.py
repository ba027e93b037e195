"""A kit for a machine without internet: that it is whole, says what it is, and installs where there is no network."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from medvlm.export import wheelhouse as wheelhouse_module
from medvlm.export.cli import main
from medvlm.export.install_text import install_text
from medvlm.export.own_wheel import write_own_wheel
from medvlm.export.sbom import make_sbom
from medvlm.export.target import Target, this_machine
from medvlm.export.wheelhouse import Wheel, Wheelhouse, fill_wheelhouse
from medvlm.runtime import InputError, MedVLMError, bundle
from medvlm.runtime.bundle import read_manifest

LINUX = Target("manylinux_2_28_x86_64", "3.12")
WINDOWS = Target("win_amd64", "3.11")


# The target


def test_wheels_of_an_older_glibc_fit() -> None:
    """The order and the old names are those of PEP 600."""
    assert Target("manylinux_2_18_x86_64", "3.12").tags[:5] == [
        "manylinux_2_18_x86_64",
        "manylinux_2_17_x86_64",
        "manylinux2014_x86_64",
        "manylinux_2_16_x86_64",
        "manylinux_2_15_x86_64",
    ]
    assert WINDOWS.tags == ["win_amd64"]


def test_tags_are_among_those_that_this_python_accepts() -> None:
    from packaging.tags import platform_tags

    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    accepted = [tag for tag in platform_tags() if tag.startswith("manylinux")]
    glibc = re.match(r"manylinux_2_(\d+)_(\w+)", accepted[0])
    assert glibc
    assert [tag for tag in Target(glibc[0], "3.12").tags if tag in accepted] == accepted


def test_markers_of_this_machine_are_python_s_own() -> None:
    from packaging.markers import default_environment

    own, here = dict(default_environment()), this_machine().markers
    for name in ("os_name", "sys_platform", "platform_system", "platform_machine", "python_version"):
        assert here[name] == own[name]
    assert here.keys() == own.keys()


@pytest.mark.parametrize(
    "tag", ["", "linux", "linux_x86_64", "manylinux_2_x86_64", "any", "win_amd64;rm", "macosx_arm64", "--help"]
)
def test_platform_that_is_none_is_refused(tag: str) -> None:
    with pytest.raises(InputError, match="--kit-platform"):
        Target(tag, "3.12")


@pytest.mark.parametrize("python", ["", "3", "2.7", "312", "3.12.1", "cp312"])
def test_python_that_is_none_is_refused(python: str) -> None:
    with pytest.raises(InputError, match="--kit-python"):
        Target("win_amd64", python)


# The wheels


def test_own_wheel_is_the_installed_package(tmp_path: Path) -> None:
    path = write_own_wheel(tmp_path)
    with zipfile.ZipFile(path) as wheel:
        assert wheel.testzip() is None
        names = wheel.namelist()
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        rows = list(csv.reader(io.StringIO(wheel.read(f"{info}/RECORD").decode())))
        runtime = wheel.read("medvlm/runtime/bundle.py")
    assert sorted(row[0] for row in rows) == sorted(names)
    assert {"medvlm/export/cli.py", "medvlm/demo/checkpoint/model.safetensors", f"{info}/entry_points.txt"} <= {*names}
    assert [name for name in names if name.endswith(".pyc") or ".." in name or "direct_url" in name] == []
    assert runtime == Path(bundle.__file__).read_bytes()


def test_own_wheel_is_the_same_each_time(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    assert write_own_wheel(tmp_path).read_bytes() == write_own_wheel(tmp_path / "again").read_bytes()


def make_wheel(folder: Path, name: str, version: str = "1.0", *headers: str) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *headers]
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")
    return path


class Index:
    """In pip's place: it gives what is asked for by name, and what this machine needs, which is Linux's."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def download(self, folder: Path, wanted: Sequence[str], target: Target) -> None:
        self.asked += wanted
        make_wheel(folder, "medvlm", "0.1", "Requires-Dist: click", 'Requires-Dist: fast; extra == "cpu"')
        windows = 'Requires-Dist: colorama>=1; sys_platform == "win32"'
        make_wheel(folder, "click", "8", windows, 'Requires-Dist: posix; os_name == "posix"')
        make_wheel(folder, "posix")
        make_wheel(folder, "fast", "2", "Requires-Dist: Deep_Name[more]")
        make_wheel(
            folder, "deep_name", "3", 'Requires-Dist: deeper; extra == "more"', 'Requires-Dist: no; extra == "x"'
        )
        make_wheel(folder, "deeper")
        if any(name.startswith("colorama") for name in wanted):
            make_wheel(folder, "colorama")


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Index:
    found = Index()
    monkeypatch.setattr(wheelhouse_module, "_download", found.download)
    monkeypatch.setattr(wheelhouse_module, "write_own_wheel", lambda folder: make_wheel(folder, "medvlm", "0.1"))
    return found


def test_wheels_are_those_that_the_target_needs(index: Index, tmp_path: Path) -> None:
    house = fill_wheelhouse(tmp_path, ["cpu"], LINUX)
    assert sorted(house.wheels) == ["click", "deep-name", "deeper", "fast", "medvlm", "posix"]
    assert house.needs["fast"] == ["deep-name"]
    assert index.asked == [f"medvlm[cpu] @ file://{tmp_path}/medvlm-0.1-py3-none-any.whl"]


def test_what_only_the_target_needs_is_asked_for_and_what_only_this_machine_needs_is_left_out(
    index: Index, tmp_path: Path
) -> None:
    house = fill_wheelhouse(tmp_path, ["cpu"], WINDOWS)
    assert sorted(house.wheels) == ["click", "colorama", "deep-name", "deeper", "fast", "medvlm"]
    assert "colorama>=1" in index.asked
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == [
        *("click", "colorama", "deep_name", "deeper", "fast", "medvlm")
    ]


def test_kit_may_lie_in_a_folder_of_any_name(index: Index, tmp_path: Path) -> None:
    """What stands behind a semicolon is a requirement's marker."""
    from packaging.requirements import Requirement

    folder = tmp_path / "a;b #1 %20[x]"
    folder.mkdir()
    fill_wheelhouse(folder, ["cpu"], LINUX)
    url = Requirement(index.asked[0]).url
    assert url
    assert Path(url2pathname(urlsplit(url).path)).parent == folder


def test_lock_names_every_wheel_with_its_digest(index: Index, tmp_path: Path) -> None:
    lock = fill_wheelhouse(tmp_path, ["cpu"], LINUX).lock()
    digest = hashlib.sha256((tmp_path / "fast-2-py3-none-any.whl").read_bytes()).hexdigest()
    assert f"fast==2 \\\n    --hash=sha256:{digest}\n" in lock
    assert "medvlm[cpu]==0.1 \\\n" in lock
    assert lock.count("--hash=sha256:") == 6


def test_download_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        MedVLMError, match=r"pip could not download the wheels for win_amd64, Python 3\.11: .+"
    ) as error:
        fill_wheelhouse(tmp_path, ["cpu"], WINDOWS)
    assert len(str(error.value).splitlines()) == 1


def test_pip_that_is_stopped_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to stop while it unpacks, it is killed and cleans nothing up itself."""
    places = [tmp_path / "house", tmp_path / "temporary"]
    for place in places:
        place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(places[1]))

    def stopped(_command: object, *, env: dict[str, str], **_others: object) -> None:
        (Path(env["TMPDIR"]) / "pip-unpack-1").mkdir()
        assert Path(env["TMPDIR"]).parent == Path(env["TEMP"]).parent == places[1]
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        fill_wheelhouse(places[0], ["cpu"], WINDOWS)
    assert list(places[1].iterdir()) == []


# The bill of materials


@pytest.fixture
def house(tmp_path: Path) -> Wheelhouse:
    wheels = {
        "medvlm": make_wheel(tmp_path, "medvlm", "0.1", "License-Expression: Apache-2.0"),
        "a": make_wheel(tmp_path, "a", "2.0+local", "License: BSD"),
        "b": make_wheel(tmp_path, "b", "3", "Classifier: License :: OSI Approved :: MIT License"),
        "c": make_wheel(tmp_path, "c", "3", "License: " + "a whole licence " * 100),
    }
    return Wheelhouse(
        {name: Wheel(path) for name, path in wheels.items()}, ("cpu",), {"medvlm": ["a", "b"], "a": ["c"]}
    )


def test_bill_of_materials_fits_cyclonedx_s_own_schema(house: Wheelhouse, tiny_bundle: Path) -> None:
    pytest.importorskip("jsonschema", reason="needs cyclonedx-python-lib[json-validation]")
    validation = pytest.importorskip("cyclonedx.validation.json", reason="needs cyclonedx-python-lib[json-validation]")
    from cyclonedx.schema import SchemaVersion

    validator = validation.JsonStrictValidator(SchemaVersion.V1_6)
    sbom = make_sbom(house, read_manifest(tiny_bundle), {"manifest.json": "ab" * 32, "model.sig": "cd" * 32})
    assert validator.validate_str(json.dumps(sbom)) is None
    assert validator.validate_str(json.dumps({**sbom, "serialNumber": "7"})) is not None


def test_bill_of_materials_names_wheels_licences_and_the_model_s_files(house: Wheelhouse, tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    made = datetime(2026, 1, 2, tzinfo=timezone.utc)
    sbom = make_sbom(house, manifest, {"manifest.json": "ab" * 32}, made)
    assert sbom["metadata"]["timestamp"] == "2026-01-02T00:00:00+00:00"
    assert sbom["metadata"]["component"]["licenses"] == [{"expression": "Apache-2.0"}]
    by_name = {component["name"]: component for component in sbom["components"]}
    assert by_name["a"]["licenses"] == [{"license": {"name": "BSD"}}]
    assert by_name["b"]["licenses"] == [{"license": {"name": "MIT License"}}]
    assert "licenses" not in by_name["c"]
    assert by_name["b"]["hashes"][0]["content"] == hashlib.sha256(house.wheels["b"].path.read_bytes()).hexdigest()
    model = by_name[manifest.source.name]
    files = {file["name"]: file["hashes"][0]["content"] for file in model["components"]}
    assert files["bundle/decoder.onnx"] == manifest.files["decoder.onnx"].sha256
    assert len(files) == len(manifest.files) + 1
    assert {"ref": "pkg:pypi/a@2.0+local", "dependsOn": ["pkg:pypi/c@3"]} in sbom["dependencies"]


# The command


def export(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--kit", "{there}"], "exists; give --kit a new folder"),
        (["--kit", "{there}/a/b"], "create it first"),
        (["--kit", "{out}/kit"], "create it first"),
        (["--kit", "{out}"], "lie in each other"),
        (["--kit", "{kit}", "--kit-platform", "dos"], "--kit-platform 'dos' is not known"),
        (["--kit", "{kit}", "--kit-python", "2"], "--kit-python '2' is not known"),
        (["--kit", "{kit}", "--kit-extra", "gold"], "--kit-extra gold is not known; medvlm has cpu, gpu"),
        (["--kit-python", "3.12"], "give --kit too"),
        (["--sign", "{there}/absent"], "cannot read the private key"),
    ],
)
def test_what_would_fail_later_is_refused_before_any_work(
    tiny_checkpoint: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    places = {"there": tmp_path, "out": tmp_path / "out", "kit": tmp_path / "kit"}
    result = export(tiny_checkpoint, tmp_path / "out", *(word.format(**places) for word in words))
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert says in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_kit_whose_wheels_cannot_be_had_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    result = export(tiny_checkpoint, tmp_path / "out", "--kit", tmp_path / "kit", "--quiet")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("target", [LINUX, WINDOWS])
def test_install_text_says_how_the_target_does_it(target: Target, signed: bool) -> None:
    text = install_text(target, signed=signed)
    assert target.tag in text
    assert ("--public-key PUBLIC_KEY.pem" in text) == signed
    assert "no medical device" in text
    assert ("Scripts\\medvlm" in text) == target.windows
    assert "{" not in text.replace("ForEach-Object {", "").replace("{ ", "").replace("${file}", "")


@pytest.mark.parametrize("target", [LINUX, WINDOWS])
def test_install_text_tells_of_the_page_where_the_kit_can_serve_it(target: Target) -> None:
    assert "serve bundle" not in install_text(target, signed=True)
    before, told, after = install_text(target, signed=True, serves=True).partition("## 5. A page for the browser")
    assert told
    assert before == install_text(target, signed=True) + "\n"
    assert f"{'powershell' if target.windows else 'sh'}\nmedvlm-venv" in after
    assert "medvlm serve bundle\n" in after


def test_install_text_takes_the_python_and_the_tools_that_the_target_has() -> None:
    """The newest Python that `py` finds by itself may be another; macOS before 15 has no sha256sum."""
    assert "py -3.11 -m venv" in install_text(WINDOWS, signed=False)
    assert "python3.12 -m venv" in install_text(LINUX, signed=False)
    mac = install_text(Target("macosx_14_0_arm64", "3.12"), signed=False)
    assert "sha256sum" not in mac
    assert "shasum -a 256 --check SHA256SUMS" in mac


# The whole way


def run(command: Sequence[object], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, **environment},
    )


def without_network() -> list[str]:
    for option in ("-n", "-rn"):
        if shutil.which("unshare") and subprocess.run(["unshare", option, "true"], check=False).returncode == 0:
            return ["unshare", option]
    pytest.skip("needs unshare, and the right to make a network namespace")


def commands(text: str, title: str) -> list[str]:
    """The commands of INSTALL.md under a title."""
    section = text.split(f". {title}\n")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)\n```", section, re.DOTALL)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A kit of the tiny model for this machine, signed; skips where no index can be reached."""
    folder = tmp_path_factory.mktemp("carried")
    key = ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    (folder / "key.pub.pem").write_bytes(key.public_key().public_bytes(pem, public))
    words = [tiny_checkpoint, folder / "out", "--kit", folder / "kit", "--sign", folder / "key.pem"]
    result = export(*words, "--kit-platform", this_machine().tag)
    if "pip could not download" in result.stderr:
        pytest.skip(f"needs a package index: {result.stderr.splitlines()[-1]}")
    assert result.exit_code == 0, result.output
    digest = hashlib.sha256((folder / "kit" / "SHA256SUMS").read_bytes()).hexdigest()
    assert f"note the sha256 of its SHA256SUMS, {digest}" in result.stdout
    return folder / "kit"


def test_kit_holds_what_it_says_and_nothing_else(kit: Path) -> None:
    assert {path.name for path in kit.iterdir()} == {
        *("bundle", "wheelhouse", "requirements.txt", "INSTALL.md", "sbom.cdx.json", "SHA256SUMS")
    }
    lines = [line.split("  ", 1) for line in (kit / "SHA256SUMS").read_text().splitlines()]
    sums = {name: digest for digest, name in lines}
    files = {path.relative_to(kit).as_posix(): path for path in kit.rglob("*") if path.is_file()}
    assert sums.keys() == files.keys() - {"SHA256SUMS"}
    assert all(hashlib.sha256(files[name].read_bytes()).hexdigest() == sums[name] for name in sums)
    assert {"bundle/manifest.json", "bundle/model.sig"} <= sums.keys()
    wheels = {name for name in files if name.startswith("wheelhouse/")}
    lock = (kit / "requirements.txt").read_text()
    assert lock.count("--hash=") == len(wheels)
    assert all(sums[name] in lock for name in wheels)
    sbom: dict[str, Any] = json.loads((kit / "sbom.cdx.json").read_text())
    assert len(sbom["components"]) == len(wheels)


def test_kit_installs_verifies_and_answers_where_there_is_no_network(
    kit: Path, tmp_path: Path, image_path: Path
) -> None:
    """By the commands of its INSTALL.md, word for word, in a network namespace without interfaces."""
    isolated = without_network()
    place = shutil.copytree(kit, tmp_path / "kit")
    shutil.copy(kit.parent / "key.pub.pem", place / "PUBLIC_KEY.pem")
    shutil.copy(image_path, place / "IMAGE.png")
    text = (place / "INSTALL.md").read_text()
    (check, _), (install,), (verify,), (ask,) = (
        commands(text, title) for title in ("Compare", "Install", "Verify the model", "Ask")
    )
    # Nothing of this Python's own packages, nor of pip's configuration.
    alone = {"PYTHONPATH": "", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_COMPILE": "1", "PATH": os.environ["PATH"]}
    assert "unreachable" in run([*isolated, sys.executable, "-c", PROBE], place).stderr
    for command in (check, install.replace(f"python3.{sys.version_info.minor}", sys.executable), verify):
        result = run([*isolated, "sh", "-euc", command], place, **alone)
        assert result.returncode == 0, result.stdout + result.stderr
    assert "as it was signed" in result.stdout
    answer = run([*isolated, "sh", "-euc", f"{ask} --max-new-tokens 20"], place, **alone)
    assert answer.returncode == 0, answer.stderr
    assert "Answer: " in answer.stdout


PROBE = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"


def test_wheel_that_was_changed_on_the_way_is_refused(kit: Path, tmp_path: Path) -> None:
    place = shutil.copytree(kit, tmp_path / "kit")
    wheel = next(place.glob("wheelhouse/click-*.whl"))
    with zipfile.ZipFile(wheel, "a") as opened:
        opened.writestr("click/extra.py", "")
    words = ["install", "--no-index", "--find-links", "wheelhouse", "--require-hashes", "-r", "requirements.txt"]
    result = run([sys.executable, "-m", "pip", *words, "--dry-run", "--ignore-installed"], place)
    assert result.returncode
    assert "DO NOT MATCH THE HASHES" in result.stderr
    if shutil.which("sha256sum"):
        assert f"{wheel.relative_to(place)}: FAILED" in run(["sha256sum", "--check", "SHA256SUMS"], place).stdout
