"""The picture of a report: that it says what the report does, and where it cannot be drawn."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from medvlm.runtime import InputError
from medvlm.runtime.bench.plot import plot
from PIL import Image


def first_token(image: str, tokens: int, *seconds: float) -> dict[str, Any]:
    stages = ("preprocess_s", "vision_s", "prefill_s", "decode_s")
    return {"image": image, "visual_tokens": tokens, **dict(zip(stages, seconds, strict=True))}


def context(length: int, median: float) -> dict[str, Any]:
    return {"length": length, "tokens_per_s": {"median": median, "p5": 0.95 * median, "p95": 1.02 * median}}


REPORT: dict[str, Any] = {
    "first_token": [
        first_token("224x224", 64, 0.003, 0.29, 0.40, 0.024),
        first_token("504x504", 324, 0.01, 1.9, 0.84, 0.024),
        first_token("1024x1024", 1369, 0.05, 18.5, 3.5, 0.03),
    ],
    "contexts": [context(128, 42.1), context(1024, 38.7), context(4096, 28.8)],
}


@pytest.fixture
def readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """SVG files hold text as text."""
    matplotlib = pytest.importorskip("matplotlib")
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")


def texts(report: dict[str, Any], out: Path) -> list[str]:
    """All that is written in the picture, in order."""
    plot(report, out)
    return re.findall(r"<text[^>]*>([^<]*)</text>", out.read_text(encoding="utf-8"))


@pytest.mark.usefixtures("readable")
def test_the_suffix_chooses_the_format(tmp_path: Path) -> None:
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for suffix, start in starts.items():
        out = tmp_path / f"report.{suffix}"
        plot(REPORT, out)
        assert out.read_bytes().startswith(start)
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.width > 2 * picture.height > 1000


@pytest.mark.usefixtures("readable")
def test_every_stage_of_every_image_is_written_with_its_time(tmp_path: Path) -> None:
    written = texts(REPORT, tmp_path / "report.svg")
    for label in ("preprocess 3.00 ms", "vision 0.29 s", "prefill 0.40 s", "vision 18.5 s", "first decode 30.0 ms"):
        assert label in written
    for image, total in (("224x224, 64", "0.72 s"), ("504x504, 324", "2.77 s"), ("1024x1024, 1369", "22.1 s")):
        assert f"{image} visual tokens" in written
        assert total in written


@pytest.mark.usefixtures("readable")
def test_axes_have_units_and_points_their_values(tmp_path: Path) -> None:
    written = texts(REPORT, tmp_path / "report.svg")
    assert {"tokens/s", "tokens in the context", "42.1", "38.7", "28.8"} <= {*written}
    assert any("seconds" in text for text in written)


@pytest.mark.usefixtures("readable")
def test_points_too_close_for_two_values_have_one(tmp_path: Path) -> None:
    report = REPORT | {"contexts": [context(64, 42.2), context(65, 42.1), context(4096, 28.8)]}
    written = texts(report, tmp_path / "report.svg")
    assert "42.2" in written
    assert "42.1" not in written


@pytest.mark.usefixtures("readable")
def test_one_image_whose_stages_are_all_short_is_drawn(tmp_path: Path) -> None:
    report = {"first_token": [first_token("8x8", 1, 0.001, 0.0, 0.002, 1.0)], "contexts": [context(100, 40.0)]}
    written = texts(report, tmp_path / "report.svg")
    assert {"preprocess 1.00 ms", "vision 0.00 ms", "prefill 2.00 ms", "first decode 1.00 s"} <= {*written}


@pytest.mark.usefixtures("readable")
def test_a_place_or_a_format_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"choose .png"):
        plot(REPORT, tmp_path / "report.docx")
    with pytest.raises(InputError, match="cannot write"):
        plot(REPORT, tmp_path / "absent" / "report.png")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'medvlm\[plot\]'"):
        plot(REPORT, tmp_path / "report.png")
