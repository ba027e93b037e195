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
