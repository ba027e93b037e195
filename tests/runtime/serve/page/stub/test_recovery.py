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
