"""The page on small, enlarged, light and dark screens, and in colours that the system sets."""

from collections.abc import Callable
from typing import Any

import pytest

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra test").expect


def contrast(page: Any, part: str, style: str, ground: str) -> float:
    """Between one colour of a part and the background of another, after WCAG."""

    def luminance(colour: str) -> float:
        shares = [int(value) / 255 for value in colour.strip("rgb()").split(",")]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    read = "(each, style) => getComputedStyle(each)[style]"
    colours = (
        page.locator(part).first.evaluate(read, style),
        page.locator(ground).first.evaluate(read, "backgroundColor"),
    )
    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_where_a_bar_ends_is_seen(open_page: Callable[..., Any], stub: Any, ask: Any, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    told = {**stub.answers[0]["medvlm"], "options": {"A": 0.25, "B": 0.25, "C": 0.5, "D": 0}}
    stub.answers = [{**stub.answers[0], "medvlm": told}]
    ask(page, stub.answers[0])
    page.wait_for_selector("#result[data-phase=done]")
    assert page.locator("#bars .fill").first.evaluate("(each) => getComputedStyle(each).borderRightWidth") == "2px"
    assert contrast(page, "#bars .fill", "borderRightColor", "#bars li") > 3
    page.locator("#bars").evaluate(
        "(each) => Promise.all(each.getAnimations({ subtree: true }).map((a) => a.finished))"
    )
    row, bar = (page.locator(f"#bars li:nth-child(3){part}").bounding_box() for part in ("", " .fill"))
    assert bar["x"] + bar["width"] == pytest.approx(row["x"] + row["width"] / 2, abs=1)


def test_what_colours_say_is_said_where_the_system_sets_them_too(
    open_page: Callable[..., Any], stub: Any, drop: Any, ask: Any
) -> None:
    page = open_page(forced_colors="active")
    drop(page, "ct.dcm")
    ask(page, stub.answers[0])
    page.wait_for_selector("#result[data-phase=done]")

    def style(part: str, name: str) -> str:
        return page.locator(part).first.evaluate("(each, name) => getComputedStyle(each)[name]", name)

    pressed, other = (style(f"#presets [aria-pressed={state}]", "backgroundColor") for state in ("true", "false"))
    assert pressed != other
    assert style(".dot", "backgroundColor") != style("#top", "backgroundColor")
    assert style("#bars .fill", "borderRightColor") != style("#bars li", "backgroundColor")
    parts = {style(f".stages .{stage}", "backgroundColor") for stage in ("image", "prompt", "writing")}
    assert len(parts | {style("#panel", "backgroundColor")}) == 4


def test_enlarged_to_twice_its_size_the_image_has_room(
    open_page: Callable[..., Any], stub: Any, drop: Any, scan: bytes
) -> None:
    page = open_page()
    page.set_viewport_size({"width": 640, "height": 360})
    drop(page, "ct.dcm")
    expect(page.locator("#notice")).to_be_in_viewport(ratio=1)
    assert page.locator("#notice").bounding_box()["height"] < 40
    assert page.locator("#stage").bounding_box()["height"] > 200
    images = [{"name": f"{index}.png", "mimeType": "image/png", "buffer": scan} for index in range(8)]
    page.set_input_files("#file", images)
    expect(page.locator(".tile:not(.loading) img[src]")).to_have_count(8)
    assert page.locator(".tile").first.bounding_box()["width"] > 150
    # The notice stands over the page wherever it is scrolled to.
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    expect(page.locator("#notice")).to_be_in_viewport(ratio=1)
    expect(page.locator("#bundle-name")).to_be_in_viewport()


def test_dark_and_light_follow_the_system_until_the_button_says_otherwise(open_page: Callable[..., Any]) -> None:
    page = open_page(color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="light")
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, dark[4:-1].split(","))) < 100 < 600 < sum(map(int, light[4:-1].split(",")))
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    page.emulate_media(color_scheme="dark")
    page.emulate_media(color_scheme="light")
    page.wait_for_timeout(100)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


@pytest.mark.parametrize(("width", "height"), [(1024, 768), (640, 360)])
def test_what_is_asked_and_answered_is_reached_on_smaller_screens(
    open_page: Callable[..., Any], stub: Any, drop: Any, ask: Any, width: int, height: int
) -> None:
    page = open_page()
    page.set_viewport_size({"width": width, "height": height})
    drop(page, "ct.dcm")
    ask(page, stub.answers[0])
    page.wait_for_selector("#result[data-phase=done]")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for part in (".tile", "#ask", "#letter", "#reasoning", "#timings", "#session-list"):
        page.locator(part).evaluate("(each) => each.scrollIntoView({ block: 'center' })")
        expect(page.locator(part)).to_be_in_viewport()
        # For a moment after an answer, a press does not reach what came to its place.
        page.locator(part).evaluate("(each) => Promise.all(each.getAnimations().map((each) => each.finished))")
        # What is at its middle is itself: nothing lies over it.
        found = page.locator(part).evaluate(
            """(each) => {
              const box = each.getBoundingClientRect();
              const [x, y] = [box.x + box.width / 2, box.y + Math.min(box.height, innerHeight / 2) / 2];
              return each.contains(document.elementFromPoint(x, y));
            }"""
        )
        assert found, part
    expect(page.locator("#notice")).to_be_in_viewport()


def test_the_page_fits_a_small_screen_without_scrolling(
    open_page: Callable[..., Any], stub: Any, drop: Any, ask: Any
) -> None:
    page = open_page()
    drop(page, "ct.dcm")
    ask(page, stub.answers[0])
    page.wait_for_selector("#result[data-phase=done]")
    for part in ("#ask", "#letter", "#margin", "#bars", "#reasoning", "#timings", "#notice", "#windowing"):
        expect(page.locator(part)).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    assert page.locator(".tile").bounding_box()["height"] > 500
