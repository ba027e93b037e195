"""Writing a question: where its options come from, and what may not be sent."""

from collections.abc import Callable
from typing import Any

import pytest

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra test").expect

PASTE = """([where, text, image]) => {
  const data = new DataTransfer();
  if (text) data.setData("text/plain", text);
  if (image) data.items.add(new File([new Uint8Array(image)], "image.png", { type: "image/png" }));
  const event = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
  document.querySelector(where).dispatchEvent(event);
}"""
WITH_OPTIONS = "Which side?\nA) Left\nB) Right"


def options(page: Any) -> list[str]:
    return [row.input_value() for row in page.locator("#option-rows input").all()]


def asked(stub: Any) -> str:
    return stub.requests[-1]["messages"][0]["content"][-1]["text"]


def test_options_in_the_text_are_rows_by_the_time_it_is_asked(open_page: Callable[..., Any], stub: Any) -> None:
    page = open_page()
    page.fill(
        "#question-text", "Which?\n\n- **A)** No abnormality\n\n- **B)** Enlarged\n  heart\n- **C)** Lung nodule\n"
    )
    page.locator("#option-rows input").last.focus()
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#result[data-phase=done]")
    assert asked(stub) == "Which?\nA) No abnormality\nB) Enlarged heart\nC) Lung nodule"
    assert options(page) == ["No abnormality", "Enlarged heart", "Lung nodule"]
    assert page.inner_text("#answer-text") == "Lung nodule"
    assert page.locator("#bars li").count() == 3


def test_a_pasted_question_comes_to_the_caret_and_can_be_undone(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.fill("#question-text", "History: cough. ")
    page.focus("#question-text")
    page.keyboard.press("End")
    page.evaluate(PASTE, ["#question-text", WITH_OPTIONS, None])
    assert page.input_value("#question-text") == "History: cough. Which side?"
    assert options(page) == ["Left", "Right"]
    page.keyboard.press("Control+z")
    assert page.input_value("#question-text") == "History: cough. "


def test_of_text_and_image_in_one_clipboard_the_text_goes_to_the_field_that_has_the_focus(
    open_page: Callable[..., Any], scan: bytes
) -> None:
    page = open_page()
    page.evaluate(PASTE, ["#question-text", "Is it old?", list(scan)])
    assert page.is_visible("#empty")
    page.evaluate(PASTE, ["#stage", "chest.png", list(scan)])
    expect(page.locator(".tile img[src]")).to_have_count(1)


def test_the_focus_stays_where_it_was_when_an_empty_row_above_goes(open_page: Callable[..., Any], stub: Any) -> None:
    page = open_page()
    page.set_viewport_size({"width": 1280, "height": 1000})
    page.fill("#question-text", "Which side?")
    page.click("#add-option")
    rows = page.locator("#option-rows input")
    rows.nth(1).fill("Left")
    rows.nth(2).fill("Right")
    rows.nth(1).focus()
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#result[data-phase=done]")
    assert asked(stub) == WITH_OPTIONS
    assert page.evaluate("[document.activeElement.value, document.activeElement.ariaLabel]") == ["Left", "Option A"]


@pytest.mark.parametrize(
    ("text", "rows", "advice"),
    [
        ("Which?", ["a" * 4000, "b" * 4000], "8014 characters with its options; shorten it to 8000"),
        ("(A) axial\n(B) coronal\nWhich is T1?", ["left", "right"], "options of its own"),
        (WITH_OPTIONS.removeprefix("Which side?\n"), [], "Write a question first"),
    ],
)
def test_what_would_be_read_otherwise_than_it_is_shown_is_not_sent(
    open_page: Callable[..., Any], stub: Any, text: str, rows: list[str], advice: str
) -> None:
    page = open_page()
    page.fill("#question-text", text)
    for row, option in zip(page.locator("#option-rows input").all(), rows, strict=False):
        row.fill(option)
    page.click("#ask")
    expect(page.locator("#failure-advice")).to_contain_text(advice)
    assert stub.requests == []


def test_each_text_has_the_direction_of_its_own_script(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.fill("#question-text", "ما هذا؟")
    page.locator("#option-rows input").first.fill("رئة")
    page.locator("#option-rows input").last.fill("Liver")
    page.click("#ask")
    page.wait_for_selector("#result[data-phase=done]")
    where = (
        "#question-text",
        "#asked",
        "#bars li:first-child .text",
        "#bars li:last-child .text",
        "#session-list .text",
    )
    directions = [page.locator(each).evaluate("(each) => getComputedStyle(each).direction") for each in where]
    assert directions == ["rtl", "rtl", "rtl", "ltr", "rtl"]
