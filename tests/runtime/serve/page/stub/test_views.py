"""Which picture an answer is about, and what a reader is told where the page shows another."""

import io
from collections.abc import Callable
from typing import Any

import pytest

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra test").expect


def ready(page: Any) -> None:
    """Wait until the picture is the one wanted."""
    expect(page.locator(".tile").first).to_have_attribute("aria-busy", "false")


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
