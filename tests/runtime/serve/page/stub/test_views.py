"""Which picture an answer is about, and what a reader is told where the page shows another."""

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra test").expect

OWN = "frame 1 of 3, the file\u2019s own window, center 0, width 2000"

# The next file is chosen, and the page does not hear of it.
UNHEARD = """document.querySelector("#file").addEventListener(
  "change", (event) => event.stopImmediatePropagation(), { capture: true, once: true })"""


def ask_about(page: Any, text: str = "What is it?", *, phase: str = "done") -> None:
    page.fill("#question-text", text)
    page.click("#ask")
    page.wait_for_selector(f"#result[data-phase={phase}]")


def ready(page: Any) -> None:
    """Wait until the picture is the one wanted."""
    expect(page.locator(".tile").first).to_have_attribute("aria-busy", "false")


def test_beside_another_frame_or_window_an_answer_says_what_it_is_about_and_shows_it(
    open_page: Callable[..., Any], stub: Any, drop: Any, watch_shifts: Callable[..., None]
) -> None:
    page = open_page()
    drop(page, "ct.dcm")
    stub.hold_after = 5
    stub.hold.set()
    ask_about(page, phase="reasoning")
    expect(page.locator("#views-text")).to_have_text(f"Asked about {OWN}")
    watch_shifts(page)
    page.locator(".tile").focus()
    page.keyboard.press("PageDown")
    # While the answer is written, too.
    expect(page.locator("#views-text")).to_have_text(f"This answer is about {OWN}")
    page.click("#presets >> text=Bone")
    stub.hold.clear()
    page.wait_for_selector("#result[data-phase=done]")
    expect(page.locator("#views-text")).to_have_text(f"This answer is about {OWN}")
    page.click("#show-asked")
    expect(page.locator("#views-text")).to_have_text(f"Asked about {OWN}")
    expect(page.locator("#show-asked")).to_be_hidden()
    expect(page.locator(".tile .frame")).to_have_text("1 / 3")
    expect(page.locator(".tile .window")).to_have_text("C 0  W 2000")
    assert page.evaluate("document.activeElement.className").startswith("tile")
    assert {"answer", "letter", "bars", "margin"}.isdisjoint(page.evaluate("window.shifts"))


def test_a_window_that_the_model_does_not_see_is_marked_as_not_what_the_answer_is_about(
    open_page: Callable[..., Any], drop: Any
) -> None:
    page = open_page()
    drop(page, "ct.dcm")
    page.click("#presets >> text=Bone")
    page.uncheck("#ask-as-shown")
    ready(page)
    ask_about(page)
    expect(page.locator("#views-text")).to_have_text(f"This answer is about {OWN}")
    page.click("#show-asked")
    expect(page.locator("#views-text")).to_have_text(f"Asked about {OWN}")


def test_of_several_images_the_one_that_is_shown_otherwise_is_named(open_page: Callable[..., Any], drop: Any) -> None:
    page = open_page()
    drop(page, "chest.png")
    drop(page, "ct.dcm", zone="add")
    ask_about(page)
    expect(page.locator("#views-text")).to_have_text(f"Asked about image 2: {OWN}")
    page.locator(".tile").last.focus()
    page.keyboard.press("PageDown")
    expect(page.locator("#views-text")).to_have_text(f"This answer is about image 2: {OWN}")


def test_only_pictures_that_were_asked_about_are_said_to_be_known(open_page: Callable[..., Any], drop: Any) -> None:
    page = open_page()
    drop(page, "ct.dcm")
    ask_about(page)
    expect(page.locator("#ask-hint")).to_have_text("Same image: sooner")
    page.locator(".tile").focus()
    page.keyboard.press("PageDown")
    expect(page.locator("#ask-hint")).to_have_text("Ctrl + Enter")
    assert page.inner_text("#ask") == "Ask"
    page.keyboard.press("PageUp")
    expect(page.locator("#ask")).to_have_text("Ask again")


def test_a_number_that_was_typed_is_applied_before_it_is_asked_about(
    open_page: Callable[..., Any], stub: Any, drop: Any
) -> None:
    page = open_page()
    drop(page, "ct.dcm")
    page.fill("#question-text", "What is it?")
    page.fill("#window-center", "300")
    page.press("#window-center", "Control+Enter")
    page.wait_for_selector("#result[data-phase=done]")
    assert stub.requests[0]["messages"][0]["content"][0]["image_url"]["view"] == {"window": "300,2000", "frame": 1}


@pytest.mark.parametrize(("typed", "applied"), [("999999", "4002"), ("", "2000"), ("-5", "1"), ("1e308", "4002")])
def test_a_number_stands_in_its_field_as_it_was_applied(
    open_page: Callable[..., Any], drop: Any, typed: str, applied: str
) -> None:
    page = open_page()
    drop(page, "ct.dcm")
    page.fill("#window-width", typed)
    page.press("#window-width", "Enter")
    expect(page.locator("#window-width")).to_have_value(applied)
    expect(page.locator(".tile .window")).to_have_text(f"C 0  W {applied}")
    assert page.evaluate("document.activeElement.id") == "window-width"


def test_a_question_about_a_window_that_is_refused_is_not_asked_about_the_one_before(
    open_page: Callable[..., Any], stub: Any, drop: Any, held_previews: Any
) -> None:
    page = open_page()
    drop(page, "ct.dcm")
    page.click("#presets >> text=Lung")
    ready(page)
    held = held_previews(page)
    page.fill("#question-text", "What is it?")
    with page.expect_request("**/preview"):
        page.click("#presets >> text=Bone")
    page.click("#ask")
    held[0].fulfill(status=400, json={"error": {"message": "this window is refused"}})
    expect(page.locator("#failure-advice")).to_have_text("This window is refused.")
    expect(page.locator("#ask")).to_be_visible()
    assert stub.requests == []


def test_the_frame_that_is_named_is_the_one_that_is_shown(
    open_page: Callable[..., Any], drop: Any, held_previews: Any
) -> None:
    page = open_page()
    drop(page, "ct.dcm")
    ready(page)
    held = held_previews(page)
    page.locator(".tile").focus()
    with page.expect_request("**/preview"):
        page.keyboard.press("PageDown")
    expect(page.locator(".tile .frame")).to_have_text("1 / 3  → 2 …")
    expect(page.locator("#frame-number")).to_have_text("2 / 3 …")
    expect(page.locator(".tile")).to_have_attribute("aria-label", re.compile("frame 1 of 3, reading frame 2$"))
    expect(page.locator(".tile img")).to_have_css("opacity", "0.45")
    held[0].continue_()
    expect(page.locator(".tile .frame")).to_have_text("2 / 3")
    expect(page.locator("#frame-number")).to_have_text("2 / 3")
    expect(page.locator(".tile img")).to_have_css("opacity", "1")


def test_up_is_brighter_where_small_values_are_white(open_page: Callable[..., Any], drop: Any, ct: bytes) -> None:
    page = open_page()
    drop(page, "ct.dcm", content=ct.replace(b"MONOCHROME2 ", b"MONOCHROME1 "))
    page.locator(".tile").focus()
    page.keyboard.press("Shift+ArrowUp")
    # A higher center makes more of the image small, which is white here.
    expect(page.locator("#window-center")).to_have_value("96")


def test_a_window_over_few_values_moves_in_steps_that_are_fine_for_them(
    open_page: Callable[..., Any], stub: Any, drop: Any, ct: bytes
) -> None:
    pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
    dataset, stream = pydicom.dcmread(io.BytesIO(ct)), io.BytesIO()
    dataset.RescaleSlope = 0.0005
    del dataset.WindowCenter, dataset.WindowWidth
    pydicom.dcmwrite(stream, dataset)
    page = open_page()
    drop(page, "pet.dcm", content=stream.getvalue())
    # All of -0.5 to 0.5, as DICOM's linear window counts.
    expect(page.locator("#window-center")).to_have_value("0.5")
    expect(page.locator("#window-width")).to_have_value("2")
    page.locator(".tile").focus()
    page.keyboard.press("Shift+ArrowDown")
    expect(page.locator("#window-center")).to_have_value("0.596")
    page.keyboard.press("Shift+ArrowLeft")
    expect(page.locator("#window-width")).to_have_value("1.904")
    ready(page)
    assert stub.previews[-1] == ("0.596,1.904", None)


def test_a_file_that_is_gone_before_it_is_read_is_told_as_that(
    open_page: Callable[..., Any], scan: bytes, tmp_path: Path
) -> None:
    page = open_page()
    path = tmp_path / "scan.png"
    path.write_bytes(scan)
    page.evaluate(UNHEARD)
    page.set_input_files("#file", path)
    path.unlink()
    page.locator("#file").dispatch_event("change")
    expect(page.locator("#viewer-failure")).to_contain_text("moved or changed")
    assert page.locator(".tile").count() == 0
    expect(page.locator("#server-state-text")).to_have_text("Ready")


def test_a_file_that_changed_after_it_was_read_is_told_as_that(
    open_page: Callable[..., Any], stub: Any, ct: bytes, tmp_path: Path
) -> None:
    page = open_page()
    path = tmp_path / "ct.dcm"
    path.write_bytes(ct)
    page.set_input_files("#file", path)
    expect(page.locator(".tile .frame")).to_have_text("1 / 3")
    # Browsers judge it by its time, in whole seconds.
    os.utime(path, (1e9, 1e9))
    page.click("#presets >> text=Bone")
    expect(page.locator("#viewer-failure")).to_contain_text("moved or changed")
    page.fill("#question-text", "What is it?")
    page.click("#ask")
    expect(page.locator("#failure-title")).to_have_text("An image can no longer be read")
    assert page.locator("#session-list li").count() == 0
    assert stub.requests == []
