"""The page by keyboard alone, for screen readers, and as axe-core judges it."""

from collections.abc import Callable
from typing import Any

import pytest

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra test").expect

axe_module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
RULES = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
}

FOCUSED = """() => {
  const element = document.activeElement;
  const { outlineStyle, outlineWidth } = getComputedStyle(element);
  const name = element.id || element.className || element.nodeName;
  return [name, outlineStyle !== "none" && parseFloat(outlineWidth) >= 2];
}"""


def violations(page: Any) -> list[str]:
    found = axe_module.Axe().run(page, options=RULES).response["violations"]
    return [f"{each['id']}: {[node['html'][:90] for node in each['nodes']]}" for each in found]


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_axe_finds_nothing_in_any_state(
    open_page: Callable[..., Any], stub: Any, drop: Any, ask: Any, scheme: str
) -> None:
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    found = {"empty": violations(page)}
    drop(page, "ct.dcm")
    drop(page, "chest.png", zone="add")
    page.locator(".tile").first.focus()
    found["images"] = violations(page)
    stub.hold.set()
    ask(page, stub.answers[0])
    page.wait_for_selector("#result[data-phase=reading]")
    found["waiting"] = violations(page)
    stub.hold.clear()
    page.wait_for_selector("#result[data-phase=done]")
    found["answer"] = violations(page)
    page.locator(".tile").first.focus()
    press(page, "PageDown")
    page.wait_for_selector("#show-asked", state="visible")
    found["elsewhere"] = violations(page)
    page.click("#keys")
    found["keys"] = violations(page)
    press(page, "Escape")
    stub.refusal = (401, {}, "a token is wanted")
    page.click("#ask")
    page.wait_for_selector("#token-form", state="visible")
    found["failure"] = violations(page)
    assert found == {state: [] for state in found}


def test_everything_can_be_done_by_keyboard(open_page: Callable[..., Any], stub: Any, drop: Any) -> None:
    page = open_page()
    with page.expect_file_chooser():
        page.focus("#choose-first")
        press(page, "Enter")
    drop(page, "ct.dcm")
    page.locator(".tile").focus()
    press(page, "+", "+", "ArrowLeft", "PageDown")
    expect(page.locator("#zoom-level")).not_to_have_text("434 %")
    expect(page.locator(".tile .frame")).to_have_text("2 / 3")
    press(page, "Shift+ArrowLeft")
    expect(page.locator("#window-width")).to_have_value("1904")
    page.focus("#question-text")
    page.keyboard.type("Which organ?")
    press(page, "Tab")
    page.keyboard.type("Lung")
    press(page, "Enter")
    page.keyboard.type("Liver")
    press(page, "Enter")
    page.keyboard.type("Heart")
    stub.hold_after = 5
    stub.hold.set()
    press(page, "Control+Enter")
    page.wait_for_selector("#result[data-phase=reasoning]")
    # The option that had the focus is out of sight now; the focus went to what can be done next.
    assert page.evaluate("document.activeElement.id") == "stop"
    stub.hold.clear()
    page.wait_for_selector("#result[data-phase=done]")
    assert page.evaluate("document.activeElement.id") == "ask"
    asked = stub.requests[0]["messages"][0]["content"]
    assert asked[1]["text"] == "Which organ?\nA) Lung\nB) Liver\nC) Heart"
    assert asked[0]["image_url"]["view"] == {"window": "0,1904", "frame": 2}


def test_every_stop_of_the_tab_key_shows_where_it_is_and_has_a_name(
    open_page: Callable[..., Any], drop: Any, ask: Any, stub: Any
) -> None:
    page = open_page()
    drop(page, "ct.dcm")
    ask(page, stub.answers[0])
    page.wait_for_selector("#result[data-phase=done]")
    seen: list[str] = []
    for _ in range(80):
        press(page, "Tab")
        name, outlined = page.evaluate(FOCUSED)
        if seen and name == seen[0]:
            break
        seen.append(name)
        assert outlined or name == "BODY", name
    for wanted in (
        "print",
        "theme",
        "choose",
        "zoom-in",
        "frame",
        "window-center",
        "question-text",
        "ask",
        "reasoning",
    ):
        assert wanted in seen


def test_a_screen_reader_hears_whole_sentences_and_then_the_answer(
    open_page: Callable[..., Any], stub: Any, drop: Any, ask: Any
) -> None:
    page = open_page()
    drop(page, "chest.png")
    stub.seconds_each = 0.01
    ask(page, stub.answers[0])
    page.wait_for_selector("#result[data-phase=done]")
    said = page.locator("#live p").all_inner_texts()
    reasoning = "".join(stub.answers[0]["reasoning"])
    spoken = [line for line in said if line in reasoning]
    assert " ".join(spoken) == reasoning
    assert all(line.endswith(".") for line in spoken)
    assert 1 < len(spoken) < 6
    assert said[-1].startswith("Answer. C. Lung nodule. Clear preference")
    assert page.locator("#live").get_attribute("aria-live") == "polite"


def test_the_chosen_option_is_said_with_its_letter(open_page: Callable[..., Any], stub: Any, ask: Any) -> None:
    page = open_page()
    ask(page, stub.answers[0])
    page.wait_for_selector("#result[data-phase=done]")
    expect(page.locator("#answer")).to_match_aria_snapshot("- text: C\n- paragraph: Lung nodule\n- paragraph: /ahead/")
    expect(page.locator("#bars")).to_match_aria_snapshot(
        """
        - list:
          - listitem: /^A No abnormality < 0.1 %$/
          - listitem
          - listitem: /^C Lung nodule ?chosen/
          - listitem
        """
    )


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


def test_options_are_added_and_removed_with_their_letters_in_order(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.evaluate(
        """() => {
          const data = new DataTransfer();
          data.setData("text/plain", "Which side?\\nA) Left\\nB) Right\\nC) Both");
          const event = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
          document.querySelector("#question-text").dispatchEvent(event);
        }"""
    )
    rows = page.locator("#option-rows input")
    assert page.input_value("#question-text") == "Which side?"
    assert [row.input_value() for row in rows.all()] == ["Left", "Right", "Both"]
    rows.nth(1).fill("")
    press(page, "Backspace")
    assert [row.input_value() for row in rows.all()] == ["Left", "Both"]
    assert [row.get_attribute("aria-label") for row in rows.all()] == ["Option A", "Option B"]
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Option A"


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
