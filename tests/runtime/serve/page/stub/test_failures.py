"""What goes wrong is said with what to do, and the question is kept."""

import re
from collections.abc import Callable
from typing import Any

import pytest

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra test").expect

QUESTION = "Is there a nodule?"


def write_and_ask(page: Any) -> None:
    page.fill("#question-text", QUESTION)
    page.click("#ask")


@pytest.mark.parametrize(
    ("refusal", "title", "advice"),
    [
        ((429, {"Retry-After": "7"}, "the queue is full"), "busy", "about 7 s"),
        ((400, {}, "the question holds '<|im_end|>'; remove it"), "cannot be asked", "The question holds"),
        ((413, {}, "the body is larger than 64 MiB"), "too large", "The body is larger than 64 MiB."),
        ((500, {}, "the model failed"), "server failed", "The model failed."),
        ((503, {}, ""), "not taking questions", "kept here"),
        ((503, {}, "the queue is closed"), "not taking questions", "The queue is closed. Your question is kept here"),
    ],
)
def test_a_refusal_is_told_and_the_question_kept(
    open_page: Callable[..., Any], stub: Any, refusal: Any, title: str, advice: str
) -> None:
    page = open_page()
    stub.refusal = refusal
    write_and_ask(page)
    expect(page.locator("#failure-title")).to_contain_text(title)
    expect(page.locator("#failure-advice")).to_contain_text(advice)
    assert page.input_value("#question-text") == QUESTION
    assert page.locator("#session-list li").count() == 0
    stub.refusal = None
    page.click("#ask")
    page.wait_for_selector("#result[data-phase=done]")
    assert page.is_hidden("#failure")


def test_an_answer_that_breaks_off_is_kept_and_marked(open_page: Callable[..., Any], stub: Any) -> None:
    page = open_page()
    stub.cut_after = 9
    write_and_ask(page)
    page.wait_for_selector("#result[data-phase=failed]")
    assert page.inner_text("#answer-text") == "Broke off"
    assert page.inner_text("#reasoning").startswith("The image shows")
    expect(page.locator("#failure-title")).to_have_text("The answer broke off")
    assert page.inner_text("#session-list .state") == "broke off"


def test_a_server_that_went_away_is_noticed_and_so_is_its_return(open_page: Callable[..., Any], stub: Any) -> None:
    page = open_page()
    port = stub.server.server_port
    stub.stop()
    write_and_ask(page)
    expect(page.locator("#server-state-text")).to_have_text("Server gone")
    expect(page.locator("#failure-title")).to_have_text("The medvlm server does not answer")
    assert page.input_value("#question-text") == QUESTION
    # It is started again with another bundle.
    stub.demo = False
    stub.start(port)
    page.wait_for_selector("#server-state[data-state=ready]")
    assert page.is_hidden("#failure")
    expect(page.locator("#demo-notice")).to_be_hidden()
    page.click("#ask")
    page.wait_for_selector("#result[data-phase=done]")


def test_an_image_that_could_not_be_read_is_read_when_the_server_is_back(
    open_page: Callable[..., Any], stub: Any, drop: Any
) -> None:
    page = open_page()
    port = stub.server.server_port
    stub.stop()
    drop(page, "chest.png", shown=False)
    expect(page.locator(".tile")).to_have_class(re.compile("unread"))
    expect(page.locator("#failure-title")).to_have_text("The medvlm server does not answer")
    stub.start(port)
    expect(page.locator(".tile img[src]")).to_be_visible()
    assert page.is_hidden("#failure")


def test_a_server_that_goes_while_nobody_asks_is_noticed(open_page: Callable[..., Any], stub: Any) -> None:
    page = open_page()
    stub.stop()
    expect(page.locator("#server-state-text")).to_have_text("Server gone")


def test_a_server_that_hangs_is_noticed_within_five_seconds(open_page: Callable[..., Any]) -> None:
    longest = """async () => {
      const { EVERY_MS } = await import("/page/server_watch.js");
      const { HEALTH_PATIENCE_MS } = await import("/page/server.js");
      return EVERY_MS + HEALTH_PATIENCE_MS;
    }"""
    assert open_page().evaluate(longest) <= 5000


def test_the_token_comes_by_the_link_and_is_out_of_the_address(open_page: Callable[..., Any], stub: Any) -> None:
    stub.bearer = "a-secret-of-some-length"
    page = open_page("#token=a-secret-of-some-length")
    expect(page.locator("#model-name")).to_contain_text("INT4")
    assert page.url == stub.url
    write_and_ask(page)
    page.wait_for_selector("#result[data-phase=done]")


def test_without_the_token_it_is_asked_for(open_page: Callable[..., Any], stub: Any) -> None:
    stub.bearer = "a-secret-of-some-length"
    page = open_page()
    expect(page.locator("#failure-title")).to_have_text("The server wants its access token")
    page.fill("#token", "a-secret-of-some-length")
    page.press("#token", "Enter")
    expect(page.locator("#model-name")).to_contain_text("INT4")
    assert page.is_hidden("#failure")
    write_and_ask(page)
    page.wait_for_selector("#result[data-phase=done]")


def test_what_the_server_says_is_text_and_never_markup(open_page: Callable[..., Any], stub: Any) -> None:
    page = open_page()
    stub.refusal = (400, {}, "<img src=x onerror=alert(1)> is refused")
    write_and_ask(page)
    expect(page.locator("#failure-advice")).to_have_text(re.compile("<img src=x"))
    assert page.locator("#failure img").count() == 0
