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
