"""Names planted in every element that may hold text, and looked for in all that comes out."""

import io
import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medvlm.runtime.dicom.child import decode_file
from medvlm.runtime.dicom.view import DEFAULT_VIEW, View, Window
from medvlm.runtime.errors import MedVLMError
from medvlm.runtime.images import load_image

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("pylibjpeg", reason="needs the extra dicom")

Make = Callable[..., bytes]
NAME = "PLANTED"
NO_WORDS = {"DA", "TM", "DT", "AS", "IS", "DS"}
TEXTS = {"PN", "LO", "SH", "ST", "LT", "UT", "UC", "CS", "AE", "UR", "UI"} | NO_WORDS
# What decides whether a file is an image at all; each of these has a test of its own.
NEEDED = {
    "PhotometricInterpretation", "NumberOfFrames", "PixelAspectRatio", "SOPClassUID", "SpecificCharacterSet",
    "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "PixelSpacing", "PixelPresentation",
}  # fmt: skip
QUESTION = "Which is it?\nA) MRI\nB) CT"


def planted(make: Make) -> bytes:
    """A CT with a name in every element of a text type, in a sequence too, and in a private element."""
    dataset = pydicom.dcmread(io.BytesIO(make(np.arange(4096, dtype=np.uint16).reshape(64, 64))))
    names = pydicom.Dataset()
    with pydicom.config.disable_value_validation():
        for tag, (vr, *_, keyword) in pydicom.datadict.DicomDictionary.items():
            if vr in TEXTS and 0x0008 <= tag >> 16 <= 0x5000 and keyword not in NEEDED:
                # Where the dictionary has a number or a date, a file may still hold any text.
                names.add(pydicom.DataElement(tag, "UT" if vr in NO_WORDS else vr, f"{NAME}^ONE"))
        for element in names:
            if element.keyword != "SOPInstanceUID":
                dataset.add(element)
        dataset.add_new(0x00081140, "SQ", [names])
        dataset.private_block(0x0009, f"{NAME} MAKER", create=True).add_new(1, "LO", NAME)
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, dataset)
    assert len(names) > 1500
    assert stream.getvalue().count(NAME.encode()) > 2 * len(names)
    return stream.getvalue()


@pytest.fixture(scope="module")
def scan(make: Make) -> bytes:
    return planted(make)


RUN = "from medvlm.runtime.cli import main; import logging; logging.basicConfig(level=0); main()"


def test_no_name_reaches_output_logs_or_files(scan: bytes, tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "scan"
    path.write_bytes(scan)
    places = {name: tmp_path / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "work")}
    for place in places.values():
        place.mkdir()
    environment = {**os.environ, **{name: str(place) for name, place in places.items()}}
    ask = ["ask", str(tiny_bundle), str(path), "-q", QUESTION, "--max-new-tokens", "9"]
    for more in ([], ["--json"], ["--window", "bone"]):
        result = subprocess.run(
            [sys.executable, "-c", RUN, *ask, *more], capture_output=True, env=environment, cwd=places["work"]
        )
        assert result.returncode == (2 if more == ["--window", "bone"] else 0), result.stderr
        assert NAME.encode() not in result.stdout + result.stderr
        if more == ["--json"]:
            assert json.loads(result.stdout)["new_tokens"] == 9
    assert [list(place.iterdir()) for place in places.values()] == [[], [], [], []]


def test_no_name_is_in_what_python_is_given(scan: bytes, caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    with caplog.at_level(logging.DEBUG):
        loaded = load_image(scan)
    assert NAME not in "".join([*loaded.notes, repr(loaded), caplog.text, *capfd.readouterr()])
    assert loaded.pixels.info == {}


def everything_said(content: bytes, view: View = DEFAULT_VIEW) -> str:
    """The notes, or the error with its whole traceback and what led to it."""
    try:
        return "\n".join(decode_file(io.BytesIO(content), view).notes)
    except MedVLMError as error:
        return "".join([str(error), *traceback.format_exception(error, chain=False)])


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "cut early": lambda content: content[:400],
    "pixels cut": lambda content: content[:-100],
    "pixels added": lambda content: content + bytes(100),
    "syntax": lambda content: content.replace(b"1.2.840.10008.1.2.1\0", b"PLANTED.SYNTAX.UID.\0"),
    "compressed": lambda content: content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"),
    "big-endian": lambda content: content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0"),
    "deflated": lambda content: content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"),
    "class": lambda content: content.replace(b"1.2.840.10008.5.1.4.1.1.2", b"PLANTED.CLASS.OF.STORAGE."),
    "photometric": lambda content: content.replace(b"MONOCHROME2 ", b"PLANTED NAME"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", DAMAGES)
def test_no_name_is_in_the_line_about_a_damaged_file(scan: bytes, damage: str) -> None:
    damaged = DAMAGES[damage](scan)
    assert damaged != scan
    assert NAME not in everything_said(damaged)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keyword", sorted(NEEDED))
def test_no_name_is_in_the_line_about_an_element(make: Make, keyword: str) -> None:
    content = make()
    dataset = pydicom.dcmread(io.BytesIO(content))
    vr = pydicom.datadict.dictionary_VR(keyword)
    with pydicom.config.disable_value_validation():
        # As bytes of the file would have it: a value that pydicom will not read as a number.
        dataset[keyword] = pydicom.DataElement(keyword, "LO", NAME)
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, dataset)
    name = NAME.encode() + b" " * (len(NAME) % 2)
    tag = pydicom.datadict.tag_for_keyword(keyword)
    assert tag is not None
    start = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
    changed = stream.getvalue().replace(start + b"LO", start + vr.encode())
    assert name in changed
    assert NAME not in everything_said(changed)


def test_the_search_for_names_finds_one(scan: bytes) -> None:
    """Or the tests before it would prove nothing: pydicom itself says the names."""
    assert NAME in str(pydicom.dcmread(io.BytesIO(scan)).PatientName)
    with pytest.raises(Exception, match=NAME), pydicom.config.disable_value_validation():
        int(pydicom.DataElement("InstanceNumber", "LO", NAME).value)


def test_views_do_not_change_that(scan: bytes) -> None:
    for view in (View(frame=3), View(montage=(2, 2)), View(Window(1, 2))):
        assert NAME not in everything_said(scan, view)
