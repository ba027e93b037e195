"""A question from the drop of its image to its answer, against recorded answers."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from medvlm.runtime.answer import parse_answer

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra test").expect

ANSWERS = json.loads(Path(__file__).with_name("answers.json").read_text(encoding="utf-8"))
NODULE, MODALITY = ANSWERS[0], ANSWERS[1]

# How long the reasoning was after each change.
WATCH = """() => {
  const reasoning = document.querySelector("#reasoning");
  window.lengths = [];
  new MutationObserver(() => window.lengths.push(reasoning.textContent.length)).observe(
    reasoning, { childList: true, characterData: true, subtree: true });
}"""


def test_drop_an_image_ask_and_read_the_answer(open_page: Callable[..., Any], stub: Any, drop: Any, ask: Any) -> None:
    page = open_page()
    drop(page, "chest.png")
    ask(page, NODULE)
    done(page)
    assert page.inner_text("#letter") == "C"
    assert page.inner_text("#answer-text") == "Lung nodule"
    assert page.inner_text("#reasoning") == "".join(NODULE["reasoning"])
    assert page.locator("#bars .share").all_inner_texts() == ["< 0.1 %", "< 0.1 %", "> 99.9 %", "< 0.1 %"]
    assert "99 points ahead" in page.inner_text("#margin")


def test_the_request_is_the_image_then_the_question_with_lettered_options(
    open_page: Callable[..., Any], stub: Any, drop: Any, ask: Any, scan: bytes
) -> None:
    page = open_page()
    drop(page, "chest.png")
    ask(page, NODULE)
    done(page)
    (message,) = stub.requests[0]["messages"]
    image, text = message["content"]
    head, data = image["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == scan
    assert "view" not in image["image_url"]
    assert text["text"] == NODULE["question"]
    assert stub.requests[0]["stream"] is True


def test_tokens_are_shown_as_they_arrive_and_nothing_moves(
    open_page: Callable[..., Any], stub: Any, drop: Any, ask: Any, watch_shifts: Callable[..., None]
) -> None:
    page = open_page()
    drop(page, "chest.png")
    stub.seconds_each, stub.hold_after = 0.05, 5
    stub.hold.set()
    ask(page, NODULE)
    page.wait_for_selector("#result[data-phase=reasoning]")
    page.evaluate(WATCH)
    watch_shifts(page)
    stub.hold.clear()
    done(page)
    page.wait_for_timeout(100)
    lengths = page.evaluate("window.lengths")
    assert lengths == sorted(set(lengths))
    assert len(lengths) > 5
    assert page.evaluate("window.shifts") == []


def test_stop_ends_the_answer_and_keeps_what_was_said(
    open_page: Callable[..., Any], stub: Any, drop: Any, ask: Any
) -> None:
    page = open_page()
    drop(page, "chest.png")
    stub.hold_after = 8
    stub.hold.set()
    ask(page, NODULE)
    expect(page.locator("#reasoning")).to_contain_text("frontal X-ray")
    page.click("#stop")
    page.wait_for_selector("#result[data-phase=stopped]")
    said = page.inner_text("#reasoning")
    assert "".join(NODULE["reasoning"]).startswith(said)
    assert "no answer" in page.inner_text("#margin")
    page.wait_for_selector("#ask", state="visible")
    until(lambda: stub.stopped == 1)


def test_escape_stops_too(open_page: Callable[..., Any], stub: Any, drop: Any, ask: Any) -> None:
    page = open_page()
    stub.hold.set()
    ask(page, NODULE)
    page.wait_for_selector("#result[data-phase=reading]")
    page.click("#keys")
    page.keyboard.press("Escape")
    assert page.is_hidden("#keys-dialog")
    assert page.get_attribute("#result", "data-phase") == "reading"
    page.keyboard.press("Escape")
    page.wait_for_selector("#result[data-phase=stopped]")
    until(lambda: stub.stopped == 1)


def test_a_double_click_is_one_click(open_page: Callable[..., Any], stub: Any) -> None:
    page = open_page()
    page.fill("#question-text", "What is it?")
    stub.hold_after = 5
    stub.hold.set()
    page.dblclick("#ask")
    page.wait_for_selector("#result[data-phase=reasoning]")
    assert page.evaluate("document.activeElement.id") == "stop"
    page.dblclick("#stop")
    page.wait_for_selector("#result[data-phase=stopped]")
    expect(page.locator("#ask")).to_be_visible()
    assert page.evaluate("document.activeElement.id") == "ask"
    assert len(stub.requests) == page.locator("#session-list li").count() == 1


def test_a_second_question_about_the_image_says_that_it_is_known(
    open_page: Callable[..., Any], stub: Any, drop: Any, ask: Any
) -> None:
    page = open_page()
    drop(page, "chest.png")
    ask(page, NODULE)
    done(page)
    assert page.inner_text("#ask") == "Ask again"
    assert page.inner_text("#ask-hint") == "Same image: sooner"
    ask(page, MODALITY)
    expect(page.locator("#answer-text")).to_have_text("Radiograph")
    assert f"{MODALITY['medvlm']['reused_tokens']} tokens kept" in page.inner_text("#timings")
    assert page.locator("#session-list li").count() == 2


def test_the_place_in_the_line_and_the_wait_are_told(
    open_page: Callable[..., Any], stub: Any, drop: Any, ask: Any
) -> None:
    page = open_page()
    stub.place = (3, 12.4)
    ask(page, NODULE)
    expect(page.locator("#answer-text")).to_have_text("3 answers come first, about 12 s")
    stub.place = (3, 9.4)
    expect(page.locator("#answer-text")).to_have_text("3 answers come first, about 9 s")
    stub.place = (1, 4.0)
    expect(page.locator("#answer-text")).to_have_text("Next in line, about 4 s")
    stub.place = None
    done(page)
    # Said once for each place, and not for each second.
    said = page.locator("#live p").all_inner_texts()
    assert [line for line in said if "first" in line or "line" in line] == ["3 answers come first", "Next in line"]


def test_several_images_stand_side_by_side_and_are_asked_in_their_order(
    open_page: Callable[..., Any], stub: Any, drop: Any, ask: Any, scan: bytes, ct: bytes
) -> None:
    page = open_page()
    drop(page, "chest.png")
    drop(page, "ct.dcm", zone="add")
    boxes = [tile.bounding_box() for tile in page.locator(".tile").all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    ask(page, NODULE)
    done(page)
    first, second, _ = stub.requests[0]["messages"][0]["content"]
    assert base64.b64decode(first["image_url"]["url"].split(",")[1]) == scan
    assert base64.b64decode(second["image_url"]["url"].split(",")[1]) == ct
    assert second["image_url"]["url"].startswith("data:application/dicom;")


def test_an_answer_never_stands_beside_an_image_that_it_is_not_about(
    open_page: Callable[..., Any], drop: Any, ask: Any
) -> None:
    page = open_page()
    drop(page, "chest.png")
    ask(page, NODULE)
    done(page)
    drop(page, "ct.dcm")
    assert page.is_hidden("#result")
    page.click("#session-list button")
    assert page.is_visible("#result")
    assert "chest.png" in page.inner_text(".tile")


def test_a_question_without_options_has_its_text_as_answer(open_page: Callable[..., Any], stub: Any, drop: Any) -> None:
    page = open_page()
    told = {**NODULE["medvlm"], "choice": None, "options": {}}
    stub.answers = [{**NODULE, "content": ["A frontal", " X-ray <b>of the chest</b>."], "medvlm": told}]
    page.fill("#question-text", "Describe the image.")
    page.click("#ask")
    done(page)
    assert page.inner_text("#answer-text") == "A frontal X-ray <b>of the chest</b>."
    assert stub.requests[0]["messages"][0]["content"][-1]["text"] == "Describe the image."
    assert page.is_hidden("#bars")


def test_reasoning_without_its_tags_is_shown_as_the_runtime_reads_it(
    open_page: Callable[..., Any], stub: Any, ask: Any
) -> None:
    page = open_page()
    said = ["The lungs are clear.", " So C", " <", "ans", "wer>C</answer>"]
    stub.answers = [{**NODULE, "reasoning": [], "content": said}]
    stub.hold_after = 4
    stub.hold.set()
    ask(page, NODULE)
    expect(page.locator("#reasoning")).to_have_text("The lungs are clear. So C")
    stub.hold.clear()
    done(page)
    assert page.inner_text("#reasoning") == parse_answer("".join(said), dict.fromkeys("ABCD", "")).reasoning
    assert page.inner_text("#letter") == "C"


def test_what_is_unusual_about_an_answer_is_said_in_words(open_page: Callable[..., Any], stub: Any, ask: Any) -> None:
    page = open_page()
    told = {**NODULE["medvlm"], "choice": None, "flags": ["ambiguous"], "notes": ["the image has 2 frames"]}
    stub.answers = [{**NODULE, "medvlm": told}]
    ask(page, NODULE)
    done(page)
    assert page.inner_text("#letter") == "?"
    assert page.inner_text("#answer-text") == "No option can be read from the answer"
    cautions = page.inner_text("#notes")
    assert "several letters at once" in cautions
    assert "the image has 2 frames" in cautions


@pytest.mark.parametrize(
    ("question", "advice"),
    [({"text": "", "options": []}, "Write a question"), ({"text": "Which?", "options": ["one"]}, "two options")],
)
def test_what_cannot_be_asked_is_said_before_it_is_sent(
    open_page: Callable[..., Any], stub: Any, question: dict[str, Any], advice: str
) -> None:
    page = open_page()
    page.fill("#question-text", question["text"])
    for option in question["options"]:
        page.locator("#option-rows input").first.fill(option)
    page.click("#ask")
    assert advice in page.inner_text("#failure-advice")
    assert stub.requests == []


def done(page: Any) -> None:
    page.wait_for_selector("#result[data-phase=done]")


def until(condition: Callable[[], bool]) -> None:
    import time

    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
