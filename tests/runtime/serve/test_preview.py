"""POST /preview and POST /ask: pydicom's own windowing is the reference for what is shown."""

import base64
import copy
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3
from click.testing import CliRunner
from medvlm.runtime.cli import main
from PIL import Image

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("pylibjpeg", reason="needs the extra dicom")
pytest.importorskip("uvicorn", reason="needs the extra serve")


@pytest.fixture(scope="module")
def dataset() -> Any:
    """A CT of three frames with a window of its own, in HU from -1024 on."""
    stored = np.random.default_rng(3).integers(0, 3000, (3, 40, 60)).astype(np.uint16)
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4"
    dataset.SeriesInstanceUID, dataset.Modality, dataset.PatientName = "1.2.3", "CT", "DOE^JOHN"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.WindowCenter, dataset.WindowWidth = 300, 1500
    dataset.PixelData = stored.tobytes()
    return dataset


@pytest.fixture(scope="module")
def content(dataset: Any) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def post(server: Any, path: str, image: bytes, **fields: str) -> Any:
    body, kind = urllib3.encode_multipart_formdata({"image": ("x", image), **fields})
    return server.send("POST", path, body, {"Content-Type": kind})


def pixels(preview: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(preview["png"]))))


def shown_by_pydicom(dataset: Any, frame: int, center: float, width: float) -> np.ndarray:
    """The greys of a frame, counted from 0, in a window."""
    asked = pydicom.Dataset()
    asked.WindowCenter, asked.WindowWidth, asked.PhotometricInterpretation = center, width, "MONOCHROME2"
    asked.BitsStored, asked.PixelRepresentation, asked.RescaleSlope, asked.RescaleIntercept = 12, 0, 1, -1024
    values = pydicom.pixels.apply_rescale(dataset.pixel_array[frame], dataset)
    greys = pydicom.pixels.apply_windowing(values, asked)
    # Its levels are of the stored bits, from the least to the largest.
    return np.rint((greys + 1024) / 4095 * 255)


def test_a_dicom_file_is_shown_in_its_own_window(server: Any, dataset: Any, content: bytes) -> None:
    preview = post(server, "/preview", content).json
    assert (preview["width"], preview["height"], preview["frames"], preview["dicom"]) == (60, 40, 3, True)
    assert preview["window"] == [300, 1500]
    first = dataset.pixel_array[0].astype(int) - 1024
    assert preview["window_range"] == [first.min(), first.max()]
    assert np.abs(pixels(preview)[..., 0] - shown_by_pydicom(dataset, 0, 300, 1500)).max() <= 1


@pytest.mark.parametrize(("photometric", "inverted"), [("MONOCHROME1", True), ("MONOCHROME2", False)])
def test_a_viewer_is_told_whether_small_values_are_white(
    server: Any, dataset: Any, photometric: str, inverted: bool
) -> None:
    stream, changed = io.BytesIO(), copy.deepcopy(dataset)
    changed.PhotometricInterpretation = photometric
    changed.save_as(stream, enforce_file_format=True)
    preview = post(server, "/preview", stream.getvalue()).json
    stored, levels = dataset.pixel_array[0], pixels(preview)[..., 0]
    assert levels[np.unravel_index(stored.argmin(), stored.shape)] == (255 if inverted else 0)
    assert preview["inverted"] == inverted


@pytest.mark.parametrize(("window", "center", "width"), [("40,400", 40, 400), ("lung", -600, 1500)])
def test_window_and_frame_change_what_is_shown(
    server: Any, dataset: Any, content: bytes, window: str, center: int, width: int
) -> None:
    preview = post(server, "/preview", content, window=window, frame="2").json
    assert preview["window"] == [center, width]
    assert np.abs(pixels(preview)[..., 0] - shown_by_pydicom(dataset, 1, center, width)).max() <= 1


def test_a_png_is_shown_as_it_is(server: Any, asked: list[Any]) -> None:
    preview = post(server, "/preview", asked[0].png).json
    expected = np.asarray(Image.open(io.BytesIO(asked[0].png)).convert("RGB"))
    assert np.array_equal(pixels(preview), expected)
    assert (preview["window"], preview["window_range"], preview["dicom"], preview["frames"]) == (None, None, False, 1)


def test_a_large_image_is_shown_smaller(server: Any) -> None:
    stream = io.BytesIO()
    Image.new("L", (6000, 30)).save(stream, "PNG")
    preview = post(server, "/preview", stream.getvalue()).json
    assert (preview["width"], preview["height"]) == (6000, 30)
    assert pixels(preview).shape[:2] == (20, 4096)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"window": "wide"}, "the window is"),
        ({"frame": "4"}, "has 3 frames"),
        ({"frame": "0"}, "the first is 1"),
        ({"frame": "two"}, "frame is not a whole number"),
        ({"size": "1"}, "is not known"),
    ],
)
def test_what_cannot_be_shown_is_refused(server: Any, content: bytes, fields: dict[str, str], word: str) -> None:
    reply = post(server, "/preview", content, **fields)
    assert reply.status == 400
    assert word in reply.error["message"]
    assert "DOE" not in reply.error["message"]


def test_an_image_that_is_none_is_refused(server: Any, asked: list[Any]) -> None:
    for image in (b"", b"x" * 500, asked[0].png[:200]):
        for path in ("/preview", "/ask"):
            reply = post(server, path, image, **({"question": "?"} if path == "/ask" else {}))
            assert reply.status == 400
            assert "the image" in reply.error["message"]
    assert post(server, "/preview", asked[0].png, window="lung").status == 400


def timeless(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what differs from one asking to the next."""
    return {name: value for name, value in answer.items() if name not in ("timings", "cached_tokens", "notes")}


@pytest.mark.parametrize("kind", ["png", "dicom"])
def test_ask_answers_as_the_command_does(
    server: Any, asked: list[Any], content: bytes, demo_bundle: Path, tmp_path: Path, kind: str
) -> None:
    image, words = (asked[2].png, []) if kind == "png" else (content, ["--window", "40,400", "--frame", "3"])
    (tmp_path / "image").write_bytes(image)
    question = asked[2].question
    command = ["ask", str(demo_bundle), str(tmp_path / "image"), "-q", question, "--json", "--threads", "1", *words]
    expected = json.loads(CliRunner().invoke(main, command).stdout)
    fields = {"window": "40,400", "frame": "3"} if kind == "dicom" else {}
    answer = post(server, "/ask", image, question=question, **fields).json
    assert set(answer) == set(expected)
    assert timeless(answer) == timeless(expected) | {"options": pytest.approx(expected["options"], abs=1e-3)} | {
        "margin": pytest.approx(expected["margin"], abs=1e-3)
    }


def test_the_view_of_an_image_url_decides_what_the_model_sees(server: Any, asked: list[Any], content: bytes) -> None:
    url = "data:application/dicom;base64," + base64.b64encode(content).decode()

    def ask(view: dict[str, Any]) -> Any:
        image = {"type": "image_url", "image_url": {"url": url, "view": view}}
        reply = server.chat([{"role": "user", "content": [image, {"type": "text", "text": asked[0].question}]}])
        assert reply.status == 200
        return reply.json

    wide, narrow, again = (ask({"window": window, "frame": 2}) for window in ("0,4000", "900,50", "0,4000"))
    assert again["medvlm"]["reused_tokens"] > narrow["medvlm"]["reused_tokens"], "other pixels, other features"
    assert wide["medvlm"]["options"] != narrow["medvlm"]["options"]
    assert wide["choices"][0]["message"] == again["choices"][0]["message"]


def test_a_file_is_decoded_once_for_a_look_and_the_questions_after_it(
    server: Any, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **named: started.append(words) or popen(*words, **named))
    view = {"window": "77,333", "frame": "2"}
    assert post(server, "/preview", content, **view).status == 200
    for question in ("What?", "Why?"):
        assert post(server, "/ask", content, question=question, max_new_tokens="2", **view).status == 200
    assert len(started) == 1
    assert post(server, "/preview", content, window="78,333", frame="2").status == 200
    assert len(started) == 2, "another view is another image"


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", "1_0"), ("temperature", "\u0661"), ("top_p", "nan"), ("seed", "1.0"), ("montage", "x" * 10**6)],
)
def test_numbers_of_a_form_are_json_s_and_messages_short(server: Any, asked: list[Any], name: str, value: str) -> None:
    refused = post(server, "/ask", asked[0].png, question="What?", **{name: value})
    assert refused.status == 400
    assert len(refused.error["message"]) < 500


def test_windows_line_ends_change_no_question(server: Any, asked: list[Any]) -> None:
    one = asked[3]
    expected = post(server, "/ask", one.png, question=one.question).json
    answer = post(server, "/ask", one.png, question=one.question.replace("\n", "\r\n")).json
    assert answer["token_ids"] == expected["token_ids"]
    assert answer["prompt_tokens"] == expected["prompt_tokens"]
