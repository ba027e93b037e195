"""Images on the page: as they are shown, and as they are asked about."""

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from medvlm.runtime.dicom.child import decode_file
from medvlm.runtime.dicom.view import read_view
from medvlm.runtime.images import decode_image
from numpy.typing import NDArray
from PIL import Image

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra test").expect

DRAWN = """async (picture) => {
  await picture.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
  canvas.getContext("2d").drawImage(picture, 0, 0);
  return canvas.toDataURL("image/png").split(",")[1];
}"""
PICTURE = ".tile img"


def shown(page: Any) -> NDArray[np.uint8]:
    """The pixels [height, width, 3] of the first image's picture, once it is as it is to be."""
    expect(page.locator(f"{PICTURE}[src]").first).to_be_attached()
    expect(page.locator(".tile").first).to_have_attribute("aria-busy", "false")
    drawn = base64.b64decode(page.locator(PICTURE).first.evaluate(DRAWN))
    return np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB"))


def decoded(content: bytes, window: str | None = None, frame: int | None = None) -> NDArray[np.uint8]:
    """What the runtime makes of a file: [height, width, 3]."""
    view = read_view(window, frame)
    if content[128:132] != b"DICM":
        return np.asarray(decode_image(content, "it", view).pixels)
    (greys,) = decode_file(io.BytesIO(content), view).frames
    return np.repeat(greys.pixels[..., None], 3, axis=2)


def changed(dicom: bytes, **elements: Any) -> bytes:
    """The file with other elements; None takes one out."""
    pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
    dataset, stream = pydicom.dcmread(io.BytesIO(dicom)), io.BytesIO()
    for keyword, value in elements.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    pydicom.dcmwrite(stream, dataset)
    return stream.getvalue()


def ask_anything(page: Any, stub: Any) -> dict[str, Any]:
    """Ask, and give the image's part of the request."""
    page.fill("#question-text", "What is it?")
    page.click("#ask")
    page.wait_for_selector("#result[data-phase=done]")
    return stub.requests[-1]["messages"][0]["content"][0]["image_url"]


def drag(page: Any, dx: int, dy: int, button: str = "left") -> None:
    box = page.locator(".tile").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down(button=button)
    page.mouse.move(x + dx / 2, y + dy / 2)
    page.mouse.move(x + dx, y + dy)
    page.mouse.up(button=button)


def test_a_picture_is_shown_as_the_runtime_decodes_it(open_page: Callable[..., Any], drop: Any, scan: bytes) -> None:
    page = open_page()
    drop(page, "chest.png")
    assert np.array_equal(shown(page), decoded(scan))


@pytest.mark.parametrize("kind", ["TIFF", "JPEG", "BMP", "WEBP"])
def test_every_kind_of_image_that_is_read_is_shown_and_named_by_its_content(
    open_page: Callable[..., Any], stub: Any, drop: Any, scan: bytes, kind: str
) -> None:
    page, content = open_page(), io.BytesIO()
    Image.open(io.BytesIO(scan)).save(content, kind)
    drop(page, "misnamed.png", content=content.getvalue())
    assert np.array_equal(shown(page), decoded(content.getvalue()))
    assert ask_anything(page, stub)["url"].startswith(f"data:image/{kind.lower()};base64,")


def test_dragging_windows_a_dicom_image_and_the_model_is_asked_about_what_is_shown(
    open_page: Callable[..., Any], stub: Any, drop: Any, ct: bytes
) -> None:
    page = open_page()
    drop(page, "ct.dcm")
    assert np.array_equal(shown(page), decoded(ct))
    drag(page, -100, 25)
    after = shown(page)
    center, width = (float(page.input_value(f"#window-{name}")) for name in ("center", "width"))
    # 100 of 250 pixels to the left take two fifths of the width; a tenth of it down raises the center by so much.
    assert (center, width) == (200, 1200)
    assert np.array_equal(after, decoded(ct, "200,1200"))
    assert ask_anything(page, stub)["view"] == {"window": "200,1200", "frame": 1}


def test_a_window_that_is_not_for_the_model_changes_only_what_is_shown(
    open_page: Callable[..., Any], stub: Any, drop: Any, ct: bytes
) -> None:
    page = open_page()
    drop(page, "ct.dcm")
    page.click("#presets >> text=Bone")
    page.uncheck("#ask-as-shown")
    assert np.array_equal(shown(page), decoded(ct, "bone"))
    assert ask_anything(page, stub)["view"] == {"frame": 1}


def test_presets_and_numbers_set_the_window_and_the_files_own_comes_back(
    open_page: Callable[..., Any], stub: Any, drop: Any, ct: bytes
) -> None:
    page = open_page()
    drop(page, "ct.dcm")
    page.click("#presets >> text=Lung")
    assert np.array_equal(shown(page), decoded(ct, "lung"))
    assert page.input_value("#window-width") == "1500"
    page.fill("#window-center", "40")
    page.press("#window-center", "Enter")
    assert np.array_equal(shown(page), decoded(ct, "40,1500"))
    page.click("#presets button:first-child")
    assert np.array_equal(shown(page), decoded(ct))


def test_a_file_without_a_window_of_its_own_is_windowed_from_all_its_values(
    open_page: Callable[..., Any], stub: Any, drop: Any, ct: bytes
) -> None:
    stored = np.frombuffer(ct[-3 * 128 * 128 * 2 :], "<i2").reshape(3, 128, 128).copy()
    stored[1] //= 2
    content = changed(ct, WindowCenter=None, WindowWidth=None, PixelData=stored.tobytes())
    page = open_page()
    drop(page, "ct.dcm", content=content)
    assert np.array_equal(shown(page), decoded(content))
    assert (page.input_value("#window-center"), page.input_value("#window-width")) == ("0.5", "2001")
    assert ask_anything(page, stub)["view"] == {"frame": 1}
    page.locator(".tile").focus()
    page.keyboard.press("Shift+ArrowLeft")
    assert np.array_equal(shown(page), decoded(content, "0.5,1905"))
    # Another frame has other values, and so another window of its own.
    page.click("#presets button:first-child")
    page.locator(".tile").focus()
    page.keyboard.press("PageDown")
    assert np.array_equal(shown(page), decoded(content, None, 2))
    assert page.input_value("#window-width") == "1001"
    assert page.locator(PICTURE).evaluate("(each) => each.style.filter") == ""


def test_a_window_that_is_refused_is_told_and_what_was_shown_stays(
    open_page: Callable[..., Any], stub: Any, drop: Any, ct: bytes
) -> None:
    mr = changed(ct, Modality="MR")
    page = open_page()
    drop(page, "mr.dcm", content=mr)
    page.click("#presets >> text=Lung")
    # The presets are windows of Hounsfield units, which an MRI has not.
    expect(page.locator("#viewer-failure")).to_contain_text("CT")
    assert np.array_equal(shown(page), decoded(mr))
    assert ask_anything(page, stub)["view"] == {"frame": 1}
    page.fill("#window-center", "300")
    page.press("#window-center", "Enter")
    expect(page.locator("#viewer-failure")).to_be_hidden()
    assert np.array_equal(shown(page), decoded(mr, "300,2000"))


def test_while_a_window_is_dragged_its_picture_is_approximated_at_once(
    open_page: Callable[..., Any], drop: Any, ct: bytes
) -> None:
    page = open_page()
    drop(page, "ct.dcm")
    shown(page)
    # The server's pictures never come: what the screen shows is the page's own doing.
    page.route("**/preview", lambda route: None)
    page.click("#presets >> text=Bone")
    page.wait_for_selector(".tile[aria-busy=true]")
    box = page.locator(".tile").bounding_box()
    screen = np.asarray(Image.open(io.BytesIO(page.locator(".tile").screenshot())).convert("L"), float)
    side = min(box["width"], box["height"])
    left = (box["width"] - side) / 2
    columns = np.arange(4, 128, 8)
    row = screen[int(box["height"] * 0.12), (left + (columns + 0.5) / 128 * side).astype(int)]
    exact = decoded(ct, "bone")[15, columns, 0].astype(float)
    assert np.abs(row - exact).max() < 12
    assert np.ptp(exact) > 100


def test_the_slider_and_the_wheel_go_through_frames(
    open_page: Callable[..., Any], stub: Any, drop: Any, ct: bytes
) -> None:
    page = open_page()
    drop(page, "ct.dcm")
    page.focus("#frame")
    page.keyboard.press("ArrowRight")
    assert np.array_equal(shown(page), decoded(ct, None, 2))
    page.hover(".tile")
    page.mouse.wheel(0, 100)
    assert np.array_equal(shown(page), decoded(ct, None, 3))
    assert page.inner_text(".tile .frame") == "3 / 3"
    assert ask_anything(page, stub)["view"] == {"frame": 3}


def test_the_wheel_zooms_at_the_pointer_and_dragging_moves(open_page: Callable[..., Any], drop: Any) -> None:
    page = open_page()
    drop(page, "chest.png")
    box = page.locator(".tile").bounding_box()
    before = page.locator(PICTURE).bounding_box()
    x, y = box["x"] + box["width"] / 4, box["y"] + box["height"] / 4
    page.mouse.move(x, y)
    page.mouse.wheel(0, -500)
    zoomed = page.locator(PICTURE).bounding_box()
    ratio = zoomed["width"] / before["width"]
    assert ratio > 1.5
    # The point under the pointer has stayed there.
    assert zoomed["x"] + (x - before["x"]) * ratio == pytest.approx(x, abs=1)
    assert zoomed["y"] + (y - before["y"]) * ratio == pytest.approx(y, abs=1)
    drag(page, 30, -20)
    moved = page.locator(PICTURE).bounding_box()
    assert (moved["x"] - zoomed["x"], moved["y"] - zoomed["y"]) == pytest.approx((30, -20), abs=1)
    page.click("#zoom-fit")
    assert page.locator(PICTURE).bounding_box() == before


def test_a_file_that_is_no_image_is_refused_in_words_and_not_shown(open_page: Callable[..., Any], drop: Any) -> None:
    page = open_page()
    drop(page, "letter.pdf", content=b"%PDF-1.7 no image at all", shown=False)
    expect(page.locator("#viewer-failure")).to_contain_text("not an image")
    assert page.locator(".tile").count() == 0


def test_a_file_that_is_no_image_takes_no_images_place(
    open_page: Callable[..., Any], stub: Any, drop: Any, ask: Any
) -> None:
    page = open_page()
    drop(page, "chest.png")
    drop(page, "ct.dcm", zone="add")
    drop(page, "letter.pdf", content=b"%PDF-1.7 no image at all", shown=False)
    expect(page.locator("#viewer-failure")).to_contain_text("not an image")
    expect(page.locator(".tile:not(.loading) img[src]")).to_have_count(2)
    assert page.locator(".tile .name").all_inner_texts() == ["1  chest.png", "2  ct.dcm"]
    assert all(page.locator(".tile img").evaluate_all("(images) => images.map((image) => image.naturalWidth)"))
    ask(page, stub.answers[0])
    page.wait_for_selector("#result[data-phase=done]")
    assert len(stub.requests[0]["messages"][0]["content"]) == 3


def test_more_images_than_a_question_may_have_are_refused(
    open_page: Callable[..., Any], drop: Any, scan: bytes
) -> None:
    page = open_page()
    page.set_input_files("#file", [{"name": f"{i}.png", "mimeType": "image/png", "buffer": scan} for i in range(9)])
    expect(page.locator("#viewer-failure")).to_contain_text("8 images; these would be 9")
    assert page.locator(".tile").count() == 0


def test_an_image_is_pasted_and_taken_away(open_page: Callable[..., Any], scan: bytes) -> None:
    page = open_page()
    page.evaluate(
        """(data) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(data)], "image.png", { type: "image/png" }));
          document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
        }""",
        list(scan),
    )
    assert np.array_equal(shown(page), decoded(scan))
    page.click(".tile .remove")
    assert page.is_visible("#empty")
    assert page.evaluate("document.activeElement.id") == "choose-first"
