"""DICOM files and series in datasets and folders that are asked about, and what is left behind of them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from medvlm.runtime import MedVLM, View, Window
from medvlm.runtime.cli import main
from medvlm.runtime.decoding import Decoding

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("pylibjpeg", reason="needs the extra dicom")

Make = Callable[..., bytes]
NAME = "PLANTED^NAME"
QUESTION = "Which is it?\nA) MRI\nB) CT"
LUNG = View(Window(-600, 1500, "lung"))
SHORT = ("--threads", "1", "--max-new-tokens", "9")
PEOPLE = {
    "PatientName": NAME, "PatientID": NAME, "ReferringPhysicianName": NAME, "InstitutionName": NAME,
    "StudyDescription": NAME, "SeriesDescription": NAME, "AccessionNumber": "PLANTED", "OperatorsName": NAME,
}  # fmt: skip


@pytest.fixture
def folder(make: Make, tmp_path: Path) -> Path:
    """scan, a CT; cut, the same without its end; and series, a folder of four slices; a name in each."""
    folder = tmp_path / "images"
    (folder / "series").mkdir(parents=True)
    pixels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    scan = make(pixels, RescaleIntercept=-1024, RescaleSlope=1, **PEOPLE)
    (folder / "scan").write_bytes(scan)
    (folder / "cut").write_bytes(scan[:-100])
    for n in range(4):
        where = {"ImagePositionPatient": [0, 0, n], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        (folder / "series" / str(n)).write_bytes(make(pixels + n, **where, **PEOPLE))
    return folder


@pytest.fixture
def dataset(folder: Path) -> Path:
    entries = [{"image": name, "problem": QUESTION, "solution": "B"} for name in ("scan", "cut", "series")]
    path = folder.parent / "dataset.json"
    path.write_text(json.dumps(entries))
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [*map(str, words), *SHORT])


def answers(out: Path) -> dict[str, dict[str, Any]]:
    return {line["key"]: line for line in map(json.loads, out.read_text().splitlines()[1:])}


def test_evaluation_asks_in_the_window_that_was_asked_for(tiny_bundle: Path, folder: Path, dataset: Path) -> None:
    out = folder.parent / "out"
    evaluate = ("eval", tiny_bundle, dataset, "--images", folder, "--out", out)
    assert run(*evaluate, "--window", "lung", "--questions", "2").exit_code == 0
    model, short = MedVLM.load(tiny_bundle, threads=1), Decoding(9, constrained=False)
    found = answers(out)
    assert found["0"]["text"] == model.ask(folder / "scan", QUESTION, short, view=LUNG).text
    assert found["0"]["notes"] == []
    assert "8092 bytes of pixels, where 8192 should be" in found["1"]["error"]
    other = run(*evaluate)
    assert (other.exit_code, "other settings (window -600,1500)" in other.stderr) == (2, True)


def test_series_stands_in_a_dataset_as_a_folder(tiny_bundle: Path, folder: Path, dataset: Path) -> None:
    out = folder.parent / "out"
    assert run("eval", tiny_bundle, dataset, "--images", folder, "--out", out, "--montage", "2x2").exit_code == 0
    model, short = MedVLM.load(tiny_bundle, threads=1), Decoding(9, constrained=False)
    found = answers(out)
    assert found["2"]["text"] == model.ask(folder / "series", QUESTION, short, view=View(montage=(2, 2))).text
    # Without a montage a folder is none.
    (folder.parent / "alone").touch()
    assert run("eval", tiny_bundle, dataset, "--images", folder, "--out", folder.parent / "alone").exit_code == 0
    assert "is a folder" in answers(folder.parent / "alone")["2"]["error"]


def test_batch_asks_about_series_where_a_montage_is_asked_for(tiny_bundle: Path, folder: Path) -> None:
    plain, montage = folder.parent / "plain", folder.parent / "montage"
    assert run("batch", tiny_bundle, folder, "-q", QUESTION, "--out", plain).exit_code == 0
    assert run("batch", tiny_bundle, folder, "-q", QUESTION, "--out", montage, "--montage", "2x2").exit_code == 0
    assert answers(plain).keys() == {"scan", "cut"}
    assert answers(montage).keys() == {"scan", "cut", "series"}
    assert answers(montage)["series"]["error"] is None


def test_no_name_is_in_results_reports_or_logs(tiny_bundle: Path, folder: Path, dataset: Path) -> None:
    place = folder.parent / "kept"
    place.mkdir()
    for more in ((), ("--blank-images", "--report", place / "report.html", "--audit", place / "log")):
        out = place / f"out{len(more)}"
        result = run("eval", tiny_bundle, dataset, "--images", folder, "--out", out, "--montage", "2x2", *more)
        assert result.exit_code == 0, result.stderr
        assert "PLANTED" not in result.output
    kept = {path.name: path.read_bytes() for path in place.iterdir()}
    assert kept.keys() == {"out0", "out5", "report.html", "log", "log.key", "log.head"}
    assert [name for name, content in kept.items() if b"PLANTED" in content] == []
    assert kept["log"].count(b"\n") == 4
    # Images are in the report, as pixels alone.
    assert kept["report.html"].count(b"data:image/jpeg;base64,") == 2
    assert b"PLANTED" in (folder / "scan").read_bytes()


def test_audit_log_that_cannot_be_written_ends_the_evaluation(
    tiny_bundle: Path, folder: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no error of one question, to be noted and passed over: answers would be given without the log."""
    out, log, synced = folder.parent / "out", folder.parent / "log", os.fsync

    def full(descriptor: int) -> None:
        if log.exists() and os.path.sameopenfile(descriptor, os.open(log, os.O_RDONLY)):
            raise OSError(28, "No space left on device")
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    result = run("eval", tiny_bundle, dataset, "--images", folder, "--out", out, "--audit", log)
    assert result.exit_code == 1
    assert "cannot write the audit log" in result.stderr.splitlines()[-1]
    assert answers(out) == {}
    monkeypatch.undo()
    assert run("eval", tiny_bundle, dataset, "--images", folder, "--out", out, "--audit", log).exit_code == 0
    assert answers(out).keys() == {"0", "1", "2"}
