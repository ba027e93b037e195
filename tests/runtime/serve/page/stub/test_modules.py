"""The page's arithmetic and wording, module by module, in the browser that runs them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from medvlm.runtime.prompt import parse_options

READ_EVENTS = """async (pieces) => {
  const { eventData } = await import("/page/event_stream.js");
  const body = new ReadableStream({
    start(controller) {
      for (const piece of pieces) controller.enqueue(new Uint8Array(piece));
      controller.close();
    },
  });
  const found = [];
  for await (const data of eventData(body)) found.push(data);
  return found;
}"""


@pytest.fixture(scope="module")
def run(browser: Any, stub_of_module: Any) -> Iterator[Callable[..., Any]]:
    """Call it with a module, a function and its arguments."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(stub_of_module.url)

    def call(module: str, function: str, *arguments: Any) -> Any:
        if function == "eventData":
            return page.evaluate(READ_EVENTS, *arguments)
        return page.evaluate(
            "([module, name, given]) => import(`/page/${module}.js`).then((found) => found[name](...given))",
            [module, function, list(arguments)],
        )

    yield call
    context.close()


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_events_are_read_however_their_bytes_are_cut(run: Callable[..., Any], size: int) -> None:
    stream = (
        b': comment\r\n\r\ndata: {"a": "\xc3\xa9\xe2\x80\x9d"}\r\n\r\nevent: x\ndata:one\ndata: two\n\ndata: [DONE]\n\n'
    )
    pieces = [list(stream[start : start + size]) for start in range(0, len(stream), size)]
    assert run("event_stream", "eventData", pieces) == ['{"a": "é”"}', "one\ntwo", "[DONE]"]


@pytest.mark.parametrize(
    "text",
    [
        "What is it?\nA) Lung\nB) Liver",
        "What is it?\n(A) Lung\n(B) Liver\n(C) Heart",
        "a) first\nb) second",
        "What is it?\r\nA. Lung\r\nB. Liver\r\n",
        "No options here",
        "What is it?\nB) Lung\nC) Liver",
        "What is it?\nA) Lung",
        "Vitamin A) is\nB) not",
    ],
)
def test_a_pasted_question_is_taken_apart_as_the_runtime_reads_it(run: Callable[..., Any], text: str) -> None:
    parts = run("question_text", "questionParts", text)
    expected = list(parse_options(text.replace("\r\n", "\n")).values())
    assert (parts["options"] if parts else []) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Which?\nA) Lung\n\nB) Liver\n\n",
        "Which?\n- A) Lung\n- B) Liver",
        "Which?\n**A)** Lung\n**B)** Liver",
        "Which?\n**A.** Lung\n**B.** Liver",
        "Which?\n**A) Lung**\n**B) Liver**",
        "Which?\nA\uff09 Lung\nB\uff09 Liver",
        "Which?\n\uff21\uff09Lung\n\uff22\uff09Liver",
        "Which?\n[A] Lung\n[B] Liver",
        "Which?\nA - Lung\nB - Liver",
        "Which?\n\u00a0A) Lung\n\u00a0B)\u00a0Liver",
        "Which?\rA) Lung\rB) Liver",
        "Which? A) Lung B) Liver",
        "Which? (A) Lung, (B) Liver",
        "Which?\nA) Lung or B) Liver",
    ],
)
def test_options_are_found_however_they_are_marked(run: Callable[..., Any], text: str) -> None:
    parts = run("question_text", "questionParts", text)
    assert parts == {"text": "Which?", "options": ["Lung", "Liver"]}


@pytest.mark.parametrize(
    ("text", "rest", "options"),
    [
        ("Which?\nA) The lung\non the left\nB) The\n  liver", "Which?", ["The lung on the left", "The liver"]),
        ("Which?\nA) Lung\nB) Liver\nGive the letter.", "Which?\nGive the letter.", ["Lung", "Liver"]),
        ("Which?\n" + "\n".join(f"{letter}) {letter}x" for letter in "ABCDEFGHIJKLMN"), "Which?", None),
    ],
)
def test_no_line_of_a_question_with_options_is_lost(
    run: Callable[..., Any], text: str, rest: str, options: list[str] | None
) -> None:
    expected = options or [f"{letter}x" for letter in "ABCDEFGHIJKLMN"]
    assert run("question_text", "questionParts", text) == {"text": rest, "options": expected}


@pytest.mark.parametrize(
    "text",
    [
        "Describe:\n1) the heart\n2) the lungs",
        "Is it vitamin A) or B)?",
        "A. baumannii or B. fragilis?",
        "The panel (A) shows a lung, (B) a liver. Which is T1?",
        "Which?\nA.M.\nB.C.",
        "Which?\nA) one\nC) three",
    ],
)
def test_prose_and_lists_are_no_options(run: Callable[..., Any], text: str) -> None:
    assert run("question_text", "questionParts", text) is None


@pytest.mark.parametrize(
    "text",
    [
        "Which?\nA) Lung\nB) Liver",
        "(A) axial\n(B) coronal\nA) one\nB) two",
        "Which?\nA. one\nb) two",
        "(A one\n(B) two",
        "A) one A) two B) three",
        "Which one, a) left, b) right, or c) both?",
        "Is it (A) benign or (B) malignant?",
        "Is it hepatitis A) or hepatitis B) now",
        "See (vitamin A) and B) then",
        "Labels: (A) axial, (B) coronal. Which is T1?",
        "Which? A: one B: two",
        "Which?\u00a0A) one\u00a0B) two",
        "Which?\rA) one\rB) two",
        "A) B) C)",
        "Which? A) , B) x",
        "type\nB) one",
        "\n".join(f"{chr(65 + index)}) x" for index in range(26)),
    ],
)
def test_the_page_knows_which_options_the_runtime_reads(run: Callable[..., Any], text: str) -> None:
    read = run("option_marks", "optionsRead", text)
    assert [option["text"] for option in read] == list(parse_options(text).values())


def test_what_is_asked_has_the_options_that_were_written(run: Callable[..., Any]) -> None:
    options = ["Lung", "Liver (left lobe)", "A) strange one", "none"]
    text = run("question_text", "writtenQuestion", {"text": " Which? ", "options": options})
    assert text.startswith("Which?\nA) Lung\n")
    assert list(parse_options(text).values()) == options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"A": 0.9999, "B": 0.0001}, "Clear preference: A more than 99 points ahead of B"),
        ({"A": 0.05, "B": 0.95}, "Clear preference: B 90 points ahead of A"),
        ({"A": 0.7, "B": 0.1, "C": 0.2}, "Preference: A 50 points ahead of C"),
        ({"A": 0.6, "B": 0.4}, "Slight preference: A 20 points ahead of B"),
        ({"A": 0.505, "B": 0.495}, "Nearly undecided: A 1 point ahead of B"),
        ({"A": 0.501, "B": 0.499}, "Nearly undecided: A less than a point ahead of B"),
        ({}, ""),
    ],
)
def test_the_margin_is_told_in_words(run: Callable[..., Any], options: dict[str, float], words: str) -> None:
    assert run("words", "marginInWords", options) == words


def test_next_to_nothing_is_not_nothing_and_next_to_all_not_all(run: Callable[..., Any]) -> None:
    shares = [1, 0.99996, 0.5, 0.123, 0.00004, 0]
    told = [run("words", "percent", share) for share in shares]
    assert told == ["100.0 %", "> 99.9 %", "50.0 %", "12.3 %", "< 0.1 %", "0.0 %"]


@pytest.mark.parametrize("inverted", [False, True])
def test_the_approximation_of_a_window_is_that_window_where_nothing_was_clipped(
    run: Callable[..., Any], inverted: bool
) -> None:
    wide, narrow = (0.0, 2000.0), (100.0, 400.0)
    told = run("window_level", "approximation", wide, narrow, inverted)

    def grey(value: float, window: tuple[float, float]) -> float:
        # LINEAR of DICOM PS3.3, C.11.2.1.2.1.
        level = (value - (window[0] - 0.5)) / (window[1] - 1) + 0.5
        return 1 - level if inverted else level

    for value in (-90, 100, 250):
        assert grey(value, wide) * told["slope"] + told["intercept"] == pytest.approx(grey(value, narrow))


def test_a_window_stays_within_what_makes_sense(run: Callable[..., Any]) -> None:
    assert run("window_level", "bounded", [5000, 0.2], [-1000, 1000]) == [1001, 1]
    assert run("window_level", "bounded", [0, 99999], [-1000, 1000]) == [0, 4002]
    assert run("window_level", "bounded", [1e308, 1e308], None) == [1e9 + 1, 4e9 + 2]
    assert run("window_level", "dragged", [40, 400], 50, -25, [-1000, 1000]) == [0, 480]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (3, 2), (4, 2), (6, 3), (8, 3)])
def test_images_are_laid_out_as_large_as_they_can_be(run: Callable[..., Any], count: int, columns: int) -> None:
    # 660 x 610: three in a row would be 220 high, two and one are 305.
    assert run("zoom", "bestColumns", count, 660, 610) == columns
