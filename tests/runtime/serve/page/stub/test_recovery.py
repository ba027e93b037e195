"""What the page does after something went wrong, or while something takes long: it never hangs, and nothing is lost."""

import re
from collections.abc import Callable
from typing import Any

import pytest

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra test").expect

NOT_OURS = {"status": 200, "content_type": "text/html", "body": "<h1>Log in to the proxy</h1>"}
COUNT_URLS = """() => {
  const { createObjectURL, revokeObjectURL } = URL;
  window.urls = new Set();
  URL.createObjectURL = (blob) => {
    const url = createObjectURL.call(URL, blob);
    window.urls.add(url);
    return url;
  };
  URL.revokeObjectURL = (url) => {
    window.urls.delete(url);
    revokeObjectURL.call(URL, url);
  };
}"""


def ask_it(page: Any, text: str = "What is it?") -> None:
    page.fill("#question-text", text)
    page.click("#ask")


def done(page: Any) -> None:
    page.wait_for_selector("#result[data-phase=done]")


def choose(page: Any, name: str, content: bytes) -> None:
    page.set_input_files("#file", [{"name": name, "mimeType": "image/png", "buffer": content}])


def test_a_window_that_failed_while_the_server_was_gone_is_told_and_over_when_it_is_back(
    open_page: Callable[..., Any], stub: Any, drop: Any
) -> None:
    page = open_page()
    drop(page, "ct.dcm")
    expect(page.locator(".tile")).to_have_attribute("aria-busy", "false")
    states = page.evaluate_handle(
        """() => {
          const states = [];
          const state = document.querySelector("#server-state");
          const observer = new MutationObserver(() => states.push(state.dataset.state));
          observer.observe(state, { attributeFilter: ["data-state"] });
          return states;
        }"""
    )
    infos: list[Any] = []
    page.on("request", lambda request: infos.append(request) if request.url.endswith("/info") else None)
    port = stub.server.server_port
    stub.stop()
    page.click("#presets >> text=Bone")
    expect(page.locator("#failure-title")).to_have_text("The medvlm server does not answer")
    stub.start(port)
    page.wait_for_selector("#server-state[data-state=ready]")
    expect(page.locator("#failure")).to_be_hidden()
    page.click("#presets >> text=Lung")
    expect(page.locator(".tile .window")).to_contain_text("lung")
    assert states.json_value() == ["gone", "ready"]
    assert len(infos) == 1


def test_a_reply_that_is_not_the_servers_is_told_and_the_page_goes_on(
    open_page: Callable[..., Any], stub: Any, drop: Any
) -> None:
    page = open_page()
    page.route("**/preview", lambda route: route.fulfill(**NOT_OURS))
    drop(page, "chest.png", shown=False)
    expect(page.locator(".tile")).to_have_class(re.compile("unread"))
    expect(page.locator("#failure-title")).to_contain_text("reply cannot be read")
    ask_it(page)
    expect(page.locator("#failure-title")).to_contain_text("reply cannot be read")
    expect(page.locator("#ask")).to_be_visible()
    page.unroute_all()
    page.click("#ask")
    done(page)


def test_a_preview_that_cannot_be_shown_is_told_and_the_page_goes_on(
    open_page: Callable[..., Any], stub: Any, drop: Any
) -> None:
    page = open_page()
    page.route("**/preview", lambda route: route.fulfill(json={}))
    drop(page, "chest.png", shown=False)
    expect(page.locator("#failure-title")).to_have_text("The page failed")
    page.unroute_all()
    ask_it(page)
    done(page)


@pytest.mark.parametrize("wrong", ["секрет", "another secret"])
def test_a_wrong_token_is_told_and_the_right_one_reads_what_was_opened(
    open_page: Callable[..., Any], stub: Any, drop: Any, wrong: str
) -> None:
    stub.bearer = "a-secret-of-some-length"
    page = open_page()
    expect(page.locator("#failure-title")).to_have_text("The server wants its access token")
    page.fill("#token", wrong)
    page.press("#token", "Enter")
    expect(page.locator("#failure-title")).to_have_text("This token was refused")
    selected = "(({ selectionStart, selectionEnd }) => selectionEnd - selectionStart)(token)"
    page.wait_for_function(f"{selected} === {len(wrong)}")
    expect(page.locator("#token")).to_be_focused()
    drop(page, "chest.png", shown=False)
    expect(page.locator(".tile")).to_have_class(re.compile("unread"))
    page.keyboard.type("a-secret-of-some-length")
    page.keyboard.press("Enter")
    expect(page.locator("#failure")).to_be_hidden()
    expect(page.locator(".tile:not(.loading) img[src]")).to_have_count(1)
    expect(page.locator("#question-text")).to_be_focused()
    assert page.input_value("#token") == ""


def test_an_answer_of_another_bundle_than_the_page_knew_is_reported_as_that_bundles(
    open_page: Callable[..., Any], stub: Any, printed: Callable[..., str]
) -> None:
    page = open_page()
    ask_it(page)
    done(page)
    # Started again with another bundle, sooner than anybody noticed.
    stub.bundle, stub.demo = "ab12" * 16, False
    page.click("#ask")
    expect(page.locator("#bundle-name")).to_contain_text("ab12ab12")
    expect(page.locator("#demo-notice")).to_be_hidden()
    done(page)
    assert page.is_hidden("#notes .caution")
    report = printed(page)
    assert "MedVLM demo, INT4" in report
    assert "ab12" * 16 in report
    assert "knows only drawings" not in report
    page.locator("#session-list button").last.click()
    expect(page.locator("#notes .caution")).to_have_text("Bundle 5e8f5e8f5e8f answered; the server has another now.")
    report = printed(page)
    assert "Demo model, INT4" in report
    assert "5e8f" * 16 in report
    assert "knows only drawings" in report


def ask_while_it_is_read(page: Any, scan: bytes, held_previews: Any) -> list[Any]:
    """Ask about an image whose preview does not come until the first of what is returned goes on."""
    held = held_previews(page)
    with page.expect_request("**/preview"):
        choose(page, "slow.png", scan)
    ask_it(page)
    return held


def test_while_an_image_is_read_for_a_question_it_says_so_and_can_be_stopped(
    open_page: Callable[..., Any], stub: Any, scan: bytes, held_previews: Any
) -> None:
    page = open_page()
    held = ask_while_it_is_read(page, scan, held_previews)
    expect(page.locator("#ask-hint")).to_have_text("Reading the image; Esc stops")
    page.keyboard.press("Escape")
    expect(page.locator("#ask")).to_be_visible()
    held[0].continue_()
    expect(page.locator(".tile:not(.loading) img[src]")).to_have_count(1)
    assert page.locator("#session-list li").count() == 0
    assert page.is_hidden("#failure")
    assert stub.requests == []


def test_an_image_opened_while_another_is_read_for_a_question_stays(
    open_page: Callable[..., Any], stub: Any, scan: bytes, held_previews: Any
) -> None:
    page = open_page()
    held = ask_while_it_is_read(page, scan, held_previews)
    expect(page.locator("#stop")).to_be_visible()
    choose(page, "other.png", scan)
    page.route("**/preview", lambda route: route.continue_())
    held[0].continue_()
    expect(page.locator("#session-list .state")).to_have_text("C")
    expect(page.locator(".tile .name")).to_have_text("other.png")
    assert page.is_hidden("#result")
    page.click("#session-list button")
    expect(page.locator(".tile .name")).to_have_text("slow.png")
    done(page)


def test_a_question_asked_before_the_server_told_of_itself_is_asked_then(
    open_page: Callable[..., Any], stub: Any
) -> None:
    stub.bearer = "a-secret-of-some-length"
    page = open_page()
    expect(page.locator("#failure-title")).to_have_text("The server wants its access token")
    # Now it is there without a token, and nobody has looked since.
    stub.bearer = ""
    ask_it(page)
    done(page)
    assert page.is_hidden("#failure")


def test_pictures_of_images_that_were_taken_away_while_they_were_read_are_let_go(
    open_page: Callable[..., Any], stub: Any, drop: Any, scan: bytes, held_previews: Any
) -> None:
    page = open_page()
    page.evaluate(COUNT_URLS)
    held = held_previews(page)
    with page.expect_request("**/preview"):
        choose(page, "slow.png", scan)
    page.click(".tile .remove")
    with page.expect_response("**/preview"):
        held[0].continue_()
    page.route("**/preview", lambda route: route.continue_())
    drop(page, "chest.png")
    stub.hold.set()
    ask_it(page)
    page.wait_for_selector("#result[data-phase=reading]")
    # Opened and taken away during an answer.
    drop(page, "other.png", zone="add")
    page.locator(".tile .remove").last.click()
    stub.hold.clear()
    expect(page.locator("#ask")).to_be_visible()
    drop(page, "ct.dcm", zone="add")
    assert page.evaluate("urls.size") == 2
