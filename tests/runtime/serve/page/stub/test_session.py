"""The session: a list that lasts as long as the page, and the report that is printed of it."""

from collections.abc import Callable
from typing import Any

import pytest

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra test").expect


ASKED = """() => ({
  cookies: document.cookie,
  stored: localStorage.length + sessionStorage.length,
  address: location.href,
})"""


def ask_and_wait(page: Any, text: str) -> None:
    page.fill("#question-text", text)
    page.click("#ask")
    page.wait_for_selector("#result[data-phase=done]")


def test_an_earlier_question_comes_back_with_its_image_and_answer(open_page: Callable[..., Any], drop: Any) -> None:
    page = open_page()
    drop(page, "chest.png")
    ask_and_wait(page, "What is in the chest?")
    drop(page, "ct.dcm")
    ask_and_wait(page, "What is in the CT?")
    expect(page.locator("#session-list li")).to_have_count(2)
    page.locator("#session-list button").last.click()
    assert page.input_value("#question-text") == "What is in the chest?"
    assert page.inner_text(".tile .name") == "chest.png"
    assert page.locator("#session-list button").last.get_attribute("aria-current") == "true"


def test_an_earlier_question_comes_back_in_the_view_that_was_asked_about(
    open_page: Callable[..., Any], stub: Any, drop: Any
) -> None:
    page = open_page()
    drop(page, "ct.dcm")
    page.click("#presets >> text=Bone")
    ask_and_wait(page, "What is it?")
    page.locator(".tile").focus()
    page.keyboard.press("PageDown")
    page.click("#presets >> text=Lung")
    asked = "about frame 1 of 3, bone window, center 400, width 1800"
    expect(page.locator("#views-text")).to_contain_text(f"This answer is {asked}")
    page.click("#session-list button")
    expect(page.locator("#views-text")).to_have_text(f"Asked {asked}")
    expect(page.locator(".tile .frame")).to_have_text("1 / 3")
    expect(page.locator(".tile .window")).to_contain_text("bone")
    page.click("#ask")
    expect(page.locator("#session-list li")).to_have_count(2)
    page.wait_for_selector("#result[data-phase=done]")
    views = [asked["messages"][0]["content"][0]["image_url"]["view"] for asked in stub.requests]
    assert views == [{"window": "bone", "frame": 1}] * 2


def test_a_reload_loses_the_session_and_nothing_is_stored(open_page: Callable[..., Any], stub: Any, drop: Any) -> None:
    page = open_page()
    drop(page, "chest.png")
    ask_and_wait(page, "What is it?")
    assert page.evaluate(ASKED) == {"cookies": "", "stored": 0, "address": stub.url}
    page.reload()
    page.wait_for_selector("#server-state[data-state=ready]")
    assert page.locator("#session-list li").count() == 0
    assert page.is_visible("#empty")
    assert page.input_value("#question-text") == ""


def test_the_report_has_what_a_record_needs(open_page: Callable[..., Any], stub: Any, drop: Any, ask: Any) -> None:
    page = open_page()
    drop(page, "ct.dcm")
    page.click("#presets >> text=Bone")
    ask(page, stub.answers[0])
    page.wait_for_selector("#result[data-phase=done]")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    report = page.inner_text("#report")
    for part in (
        "not a medical device",
        "knows only drawings",
        "frame 1 of 3, bone window, center 400, width 1800",
        "What kind of irregularity can be observed in the presented image?",
        "Lung nodule",
        "> 99.9 %",
        "round dense spot in the lung",
        "5e8f" * 16,
        "medvlm 0.1.0",
    ):
        assert part in report
    assert page.is_hidden("#screen")
    assert page.locator("#report img").evaluate("(each) => each.decode().then(() => each.naturalWidth)") == 128
    assert page.pdf().startswith(b"%PDF")


def test_an_answer_keeps_the_bundle_that_it_is_of(
    open_page: Callable[..., Any], stub: Any, drop: Any, printed: Callable[..., str]
) -> None:
    page = open_page()
    drop(page, "chest.png")
    ask_and_wait(page, "The earlier one?")
    # Another bundle comes so soon that nobody notices.
    stub.bundle, stub.demo = "77aa" * 16, False
    ask_and_wait(page, "The later one?")
    expect(page.locator("#bundle-name")).to_contain_text("77aa77aa77aa")
    assert page.locator("#session-list .bundle").all_inner_texts() == ["", "earlier bundle"]
    assert "has another now" not in page.inner_text("#notes")
    later = printed(page)
    page.locator("#session-list button").last.click()
    assert "has another now" in page.inner_text("#notes")
    earlier = printed(page)
    assert "77aa" * 16 in later
    assert "MedVLM demo, INT4" in later
    assert "knows only drawings" not in later
    assert "5e8f" * 16 in earlier
    assert "Demo model, INT4" in earlier
    assert "knows only drawings" in earlier


def test_a_report_that_is_printed_too_early_has_no_answer(
    open_page: Callable[..., Any], stub: Any, ask: Any, printed: Callable[..., str]
) -> None:
    page = open_page()
    stub.hold_after = 5
    stub.hold.set()
    ask(page, stub.answers[0])
    page.wait_for_selector("#result[data-phase=reasoning]")
    report = printed(page)
    assert "Not finished" in report
    assert "Reasoning\n" not in report.partition("REASONING")[0]


def test_a_long_word_does_not_push_the_report_off_the_paper(open_page: Callable[..., Any], stub: Any, ask: Any) -> None:
    page = open_page()
    ask(page, {"question": f"Which?\nA) {'W' * 200}\nB) no\nC) {'i' * 400}"})
    page.wait_for_selector("#result[data-phase=done]")
    page.set_viewport_size({"width": 640, "height": 900})
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    share = page.locator("#report td:last-child").first.bounding_box()
    assert share["x"] + share["width"] <= 640


def test_a_failure_is_told_beside_the_answer_that_failed_alone(open_page: Callable[..., Any], stub: Any) -> None:
    page = open_page()
    ask_and_wait(page, "The whole one?")
    stub.hold_after = 5
    stub.hold.set()
    page.fill("#question-text", "The broken one?")
    page.click("#ask")
    page.wait_for_selector("#result[data-phase=reasoning]")
    page.locator("#session-list button").last.click()
    stub.cut_after = 6
    stub.hold.clear()
    expect(page.locator("#session-list .state").first).to_have_text("broke off")
    expect(page.locator("#ask")).to_be_visible()
    assert page.is_hidden("#failure")
    assert page.get_attribute("#result", "data-phase") == "done"
    page.locator("#session-list button").first.click()
    expect(page.locator("#failure-title")).to_have_text("The answer broke off")
    page.locator("#session-list button").last.click()
    expect(page.locator("#failure")).to_be_hidden()


def test_an_answer_that_is_not_shown_is_not_read_out(open_page: Callable[..., Any], stub: Any, ask: Any) -> None:
    page = open_page()
    ask_and_wait(page, "The first one?")
    stub.hold_after = 1
    stub.hold.set()
    ask(page, stub.answers[1])
    page.wait_for_selector("#result[data-phase=reasoning]")
    before = page.locator("#live p").count()
    page.locator("#session-list button").last.click()
    stub.hold.clear()
    expect(page.locator("#ask")).to_be_visible()
    said = page.locator("#live p").all_inner_texts()[before:]
    assert said == ["The answer to “What kind of scan is this?” is ready"]


@pytest.mark.parametrize("zone", ["replace", "add"])
def test_an_answer_comes_back_with_its_image_where_the_new_one_cannot_be_read(
    open_page: Callable[..., Any], drop: Any, zone: str
) -> None:
    page = open_page()
    drop(page, "chest.png")
    ask_and_wait(page, "What is it?")
    drop(page, "notes.txt", zone=zone, content=b"no image at all", shown=False)
    expect(page.locator("#viewer-failure")).to_contain_text("not an image")
    expect(page.locator("#result")).to_be_visible()
    assert page.locator(".tile .name").all_inner_texts() == ["chest.png"]
    assert page.get_attribute("#session-list button", "aria-current") == "true"
    # What was taken away is not brought back.
    page.click("#clear")
    drop(page, "notes.txt", content=b"no image at all", shown=False)
    expect(page.locator("#viewer-failure")).to_contain_text("not an image")
    assert page.is_hidden("#result")


def test_the_notice_is_always_there(open_page: Callable[..., Any], stub: Any) -> None:
    page = open_page()
    expect(page.locator("#notice")).to_contain_text("Research model, not a medical device")
    expect(page.locator("#demo-notice")).to_be_in_viewport()
    stub.demo = False
    page.reload()
    expect(page.locator("#model-name")).to_contain_text("MedVLM")
    expect(page.locator("#notice")).to_be_in_viewport()
    assert page.is_hidden("#demo-notice")


def test_clear_takes_image_and_question_away_and_leaves_the_session(open_page: Callable[..., Any], drop: Any) -> None:
    page = open_page()
    drop(page, "chest.png")
    ask_and_wait(page, "What is it?")
    page.click("#clear")
    assert page.is_visible("#empty")
    assert page.input_value("#question-text") == ""
    assert page.is_hidden("#result")
    assert page.locator("#session-list li").count() == 1
