import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medvlm.runtime.answer import parse_answer

NO_YES = {"A": "No", "B": "Yes."}
NODULE = {"A": "Nodule formation", "B": "Atelectasis", "C": "Airspace opacity", "D": "Lung consolidation"}
INFARCT = {"A": "Infarct", "B": "Acute infarct", "C": "No infarct", "D": "Acute infarct of the left lobe"}
NORMAL = {
    "A": "I'm not sure, but there might be a slight abnormality.",
    "B": "It's difficult to determine if there is an abnormality based on this image.",
    "C": "No, It's normal.",
    "D": "Yes, it shows a significant abnormality.",
}
SCAN = {"A": "MRI", "B": "Positron emission tomography (PET)", "C": "x_ray.", "D": "CT"}
HEPATITIS = {"A": "Hepatitis B", "B": "Hepatitis A", "C": "E. coli", "D": "A. baumannii"}
SIZES = {"A": "<5 mm", "B": ">5 mm", "C": "5-10 mm", "D": "1.5 cm"}
VITAMINS = {"A": "B", "B": "A"}

THINK = "<think>The lung field has a dense area with air bronchograms. A nodule is round.</think>"
OPTION_SETS = (NO_YES, NODULE, INFARCT, NORMAL, SCAN, HEPATITIS, SIZES, VITAMINS, {})


def tagged(answer: str) -> str:
    return f"{THINK}\n<answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("answer", "options", "choice", "flags"),
    [
        ("B", NO_YES, "B", ()),
        (" \n B \n ", NO_YES, "B", ()),
        ("b", NO_YES, "B", ()),
        ("B)", NO_YES, "B", ()),
        ("B.", NO_YES, "B", ()),
        ("(B)", NO_YES, "B", ()),
        ("[B]", NO_YES, "B", ()),
        ("**B**", NO_YES, "B", ()),
        ("`B`", NO_YES, "B", ()),
        ("\uff22\uff09", NO_YES, "B", ()),
        ("$\\boxed{B}$", NO_YES, "B", ()),
        ("B. Yes", NO_YES, "B", ()),
        ("B) Yes.", NO_YES, "B", ()),
        ("**B)** Yes", NO_YES, "B", ()),
        ("B: Yes", NO_YES, "B", ()),
        ("B - Yes", NO_YES, "B", ()),
        ("B \u2013 Yes", NO_YES, "B", ()),
        ("B Yes", NO_YES, "B", ()),
        ("Yes (B)", NO_YES, "B", ()),
        ("B\nYes", NO_YES, "B", ()),
        ("B\n\nThe image shows a lesion.", NO_YES, "B", ()),
        ("Answer: B", NO_YES, "B", ()),
        ("Option B", NO_YES, "B", ()),
        ("The answer is B", NO_YES, "B", ()),
        ("The correct answer is: **B**.", NO_YES, "B", ()),
        ("The answer is option (b) Yes.", NO_YES, "B", ()),
        ("I believe that the answer is B because of the lesion.", NO_YES, "B", ()),
        ("A) Yes", NO_YES, "A", ("conflict",)),
        ("Yes (A)", NO_YES, "A", ("conflict",)),
        ("C. Atelectasis", NODULE, "C", ("conflict",)),
        ("C. Opacity of an airspace", NODULE, "C", ()),
        ("yes", NO_YES, "B", ("matched_text",)),
        ("Yes!", NO_YES, "B", ("matched_text",)),
        ("NO.", NO_YES, "A", ("matched_text",)),
        ("Airspace   OPACITY", NODULE, "C", ("matched_text",)),
        ("Answer: Airspace opacity", NODULE, "C", ("matched_text",)),
        ("The image shows an airspace opacity.", NODULE, "C", ("matched_text",)),
        ("A large airspace opacity", NODULE, "C", ("matched_text",)),
        ("not atelectasis but lung consolidation", NODULE, "D", ("matched_text",)),
        ("No, it\u2019s normal", NORMAL, "C", ("matched_text",)),
        ("I'm not sure, but there might be a slight abnormality.", NORMAL, "A", ("matched_text",)),
        ("acute infarct", INFARCT, "B", ("matched_text",)),
        ("An acute infarct is seen", INFARCT, "B", ("matched_text",)),
        ("acute infarct of the left lobe, clearly", INFARCT, "D", ("matched_text",)),
        ("No infarct.", INFARCT, "C", ("matched_text",)),
        ("There is no infarct here", INFARCT, "C", ("matched_text",)),
        ("x_ray", SCAN, "C", ("matched_text",)),
        ("positron emission tomography (PET)", SCAN, "B", ("matched_text",)),
        ("E. coli", HEPATITIS, "C", ("matched_text",)),
        ("A. baumannii", HEPATITIS, "D", ("matched_text",)),
        ("B. Hepatitis A", HEPATITIS, "B", ()),
        ("B) Hepatitis A.", HEPATITIS, "B", ()),
        ("A) Hepatitis A", HEPATITIS, "A", ("conflict",)),
        (">5 mm", SIZES, "B", ("matched_text",)),
        ("about 1.5 cm.", SIZES, "D", ("matched_text",)),
        ("B", VITAMINS, "B", ()),
    ],
)
def test_an_answer_is_read_as_a_person_would(
    answer: str, options: dict[str, str], choice: str, flags: tuple[str, ...]
) -> None:
    parsed = parse_answer(tagged(answer), options)
    assert (parsed.choice, parsed.flags) == (choice, flags)
    assert parsed.choice_text == options[choice]


@pytest.mark.parametrize(
    ("answer", "options", "flags"),
    [
        ("", NO_YES, ()),
        ("...", NO_YES, ()),
        ("?", NO_YES, ()),
        ("E", NODULE, ("unoffered_letter",)),
        ("E) Nodule formation", NODULE, ("unoffered_letter",)),
        ("The answer is E.", NODULE, ("unoffered_letter",)),
        ("A, B", NODULE, ("ambiguous",)),
        ("a, b", NODULE, ("ambiguous",)),
        ("B, E", NODULE, ("ambiguous",)),
        ("B?", NODULE, ()),
        ("A. B. C.", NODULE, ("ambiguous",)),
        ("A\nB\nC\nD", NODULE, ("ambiguous",)),
        ("A) and (C)", NODULE, ("ambiguous",)),
        ("A) Nodule formation B) Atelectasis", NODULE, ("ambiguous",)),
        ("A. Nodule formation\nB. Atelectasis", NODULE, ("ambiguous",)),
        ("A, B, C, D,...", NODULE, ("ambiguous",)),
        ("A and B", NODULE, ()),
        ("A or B", NODULE, ()),
        ("A/B", NODULE, ()),
        ("Options A and B", NODULE, ()),
        ("The answer is not B", NO_YES, ()),
        ("nodule formation or atelectasis", NODULE, ()),
        ("not atelectasis", NODULE, ()),
        ("It isn't atelectasis", NODULE, ()),
        ("neither", NODULE, ()),
        ("A mass in the left lung", NODULE, ()),
        ("I see a round mass", NODULE, ()),
        ("I'd rather not say", NODULE, ()),
        ("There is no doubt", NO_YES, ()),
        ("Yes and no", NO_YES, ()),
        ("nodules", {"A": "no", "B": "nodule"}, ()),
        ("post-operative changes", {"A": "operative changes", "B": "fracture"}, ()),
        ("non-small cell carcinoma", {"A": "small cell carcinoma", "B": "sarcoma"}, ()),
        ("5 mm", SIZES, ()),
        ("15-10 mm", SIZES, ()),
        ("B-cell lymphoma", NODULE, ()),
        ("vitamin B deficiency", NODULE, ()),
        ("same", {"A": "Same", "B": "same."}, ()),
        ("acute infarct of brain", {"A": "Acute infarct", "B": "Infarct of brain"}, ()),
        ("1", NODULE, ()),
        ("Option 2", NODULE, ()),
    ],
)
def test_an_unclear_answer_is_not_guessed_at(answer: str, options: dict[str, str], flags: tuple[str, ...]) -> None:
    parsed = parse_answer(tagged(answer), options)
    assert (parsed.choice, parsed.choice_text, parsed.flags) == (None, None, flags)


@pytest.mark.parametrize(
    ("text", "choice", "flags"),
    [
        ("<think>x</think><answer>C", "C", ("unclosed_answer",)),
        ("<think>x</think><answer>C) Airsp", "C", ("unclosed_answer",)),
        ("<think>x</think><answer>C<answer>", "C", ("unclosed_answer",)),
        ("<think>x <answer>C</answer>", "C", ("unclosed_think",)),
        ("<think>x <answer>C", "C", ("unclosed_think", "unclosed_answer")),
        ("<think>x <answer>C</think>", "C", ("unclosed_answer",)),
        ("<answer>C</answer>", "C", ()),
        ("<ANSWER>C</ANSWER >", "C", ()),
        ("Sure! <think>x</think> Here: <answer>C</answer> I hope this helps. A nodule is round.", "C", ()),
        ("<answer>A</answer> Wait. <answer>C</answer>", "C", ("several_answers",)),
        ("<answer>C</answer><answer>C</answer>", "C", ("several_answers",)),
        ("<answer>C</answer>\n<answer>", "C", ()),
        ("<answer>C</answer>\n<answer></answer>", "C", ()),
        ("<answer>C</answer>\n<answer>unclear</answer>", None, ("several_answers",)),
        ("<think>letters go in <answer>...</answer> tags</think><answer>C</answer>", "C", ()),
        ("<think>first <answer>A</answer></think><answer>C</answer>", "C", ("several_answers",)),
        ("<answer>A</answer> Sorry, the answer is C.", "A", ("conflict",)),
        ("<answer>C</answer> So the answer is C.", "C", ()),
        ("<answer></answer> The answer is C.", "C", ()),
        ("<think>The answer is C.</think>\n<answer>", "C", ("unclosed_answer",)),
        ("<think>x</think>C</answer>", "C", ("no_tags",)),
        ("<think>x</think>\nC", "C", ("no_tags",)),
        ("<think>The answer is A?</think>\nC) Airspace opacity", "C", ("no_tags",)),
        ("<think>So the answer is C.</think>", "C", ("no_tags",)),
        ("<think>So the answer is C.", "C", ("unclosed_think", "no_tags")),
        ("C", "C", ("no_tags",)),
        ("c.", "C", ("no_tags",)),
        ("The correct answer is C.", "C", ("no_tags",)),
        ("Final answer: **C**", "C", ("no_tags",)),
        ("Answer: (C) Airspace opacity", "C", ("no_tags",)),
        ("It is dense.\n\nC) Airspace opacity", "C", ("no_tags",)),
        ("It is dense.\n\n**C. Airspace opacity**", "C", ("no_tags",)),
        ("It is dense.\n\nAirspace opacity", "C", ("no_tags", "matched_text")),
        ("The answer is A. On second thought the answer is C.", "C", ("no_tags", "several_answers")),
        ("The answer is A.\nC) Airspace opacity", "C", ("no_tags", "conflict")),
        ("The image does not show a nodule, so the answer is C, not A.", "C", ("no_tags",)),
        ("", None, ("no_tags",)),
        ("A nodule is seen in the left lung.", None, ("no_tags",)),
        ("A", "A", ("no_tags",)),
        ("I think that this is an airspace opacity.", None, ("no_tags",)),
        ("The answer is a nodule formation.", None, ("no_tags",)),
        ("The answer is a", None, ("no_tags",)),
        ("The answer is A or C.", None, ("no_tags",)),
        ("The answer is A, B or C.", None, ("no_tags",)),
        ("The answer is either (A) or (C).", None, ("no_tags",)),
        ("The answer is (A) or (C).", None, ("no_tags",)),
        ("Answer: A) Nodule formation C) Airspace opacity", None, ("no_tags",)),
        ("The answer is not C.", None, ("no_tags",)),
        ("I don't think the answer is C.", None, ("no_tags",)),
        ("If the answer is C then it should be dense.", None, ("no_tags",)),
        ("Option A is round. Option C is dense.", None, ("no_tags",)),
        ("The answer is E.", None, ("no_tags", "unoffered_letter")),
        ("It is seen in hepatitis.\nA. baumannii was cultured.", None, ("no_tags",)),
        ("A) Nodule formation\nB) Atelectasis\nC) Airspace opacity\nD) Lung consolidation", None, ("no_tags",)),
        ("A) Nodule formation B) Atelectasis", None, ("no_tags", "ambiguous")),
        ("A\nB\nC\nD", None, ("no_tags",)),
        ("<think>A nodule is round. An airspace opacity", None, ("unclosed_think", "no_tags")),
    ],
)
def test_broken_forms_are_read_and_flagged(text: str, choice: str | None, flags: tuple[str, ...]) -> None:
    parsed = parse_answer(text, NODULE)
    assert (parsed.choice, parsed.flags) == (choice, flags)


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("<think> It is dense. </think><answer>C</answer>", "It is dense."),
        ("<Think>It is dense.</THINK>\n<answer>C</answer>", "It is dense."),
        ("<think>It is dense. <answer>C</answer>", "It is dense."),
        ("<think>It is dense", "It is dense"),
        ("It is dense.</think><answer>C</answer>", "It is dense."),
        ("It is dense. <answer>C</answer> Yes.", "It is dense."),
        (" It is dense. ", "It is dense."),
        ("Hm. <think>It is dense.</think> So: <answer>C</answer>", "It is dense."),
        ("<answer>C</answer>", ""),
        ("<answer>C</answer><think>It is dense.</think>", "It is dense."),
        ("</think><think>It is dense.</think>", "It is dense."),
        ("", ""),
    ],
)
def test_reasoning_is_what_stands_before_the_answer(text: str, reasoning: str) -> None:
    assert parse_answer(text, NODULE).reasoning == reasoning


@pytest.mark.parametrize(
    ("text", "strict"),
    [
        ("<answer> C\n</answer>", "C"),
        ("<answer>A</answer><answer>C</answer>", "A"),
        ("<answer>c</answer><answer>C</answer>", "C"),
        ("<answer>C.</answer>", None),
        ("<answer>E</answer><answer>C</answer>", None),
        ("<answer>C", None),
        ("C", None),
    ],
)
def test_the_strict_choice_is_the_first_match_of_the_papers_pattern(text: str, strict: str | None) -> None:
    assert parse_answer(text, NODULE).strict_choice == strict


def test_without_options_there_is_reasoning_and_no_choice() -> None:
    parsed = parse_answer("<think>It is dense.</think><answer>C</answer>", {})
    assert parsed.reasoning == "It is dense."
    assert (parsed.choice, parsed.strict_choice, parsed.choice_text, parsed.flags) == (None, None, None, ())


TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<Answer>", "<answer", "<", ">")
WORDS = (
    "answer",
    "The answer is",
    "Option",
    "or",
    "not",
    "is",
    "a",
    "I",
    ":",
    ")",
    "(",
    ".",
    ",",
    "-",
    "\\boxed{",
    "}",
)
SPACES = (" ", "\n", "\r\n", "\t", "\u00a0", "\u2028", "\u200b", "\0")
OPTION_TEXTS = tuple(text for options in OPTION_SETS for text in options.values())
PIECES = st.one_of(
    st.sampled_from((*TAGS, *WORDS, *SPACES, *OPTION_TEXTS)),
    st.sampled_from("ABCDEFabcdefZ\u0391\uff22"),
    st.text(max_size=4),
)
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=25).map("".join), st.lists(PIECES, max_size=12).map(" ".join))
OPTIONS = st.one_of(
    st.sampled_from(OPTION_SETS),
    st.lists(st.text(max_size=8), max_size=5).map(lambda texts: dict(zip("ABCDE", texts, strict=False))),
)


@given(text=TEXTS, options=OPTIONS)
@settings(max_examples=1500)
def test_any_text_is_read_and_only_offered_letters_are_returned(text: str, options: dict[str, str]) -> None:
    parsed = parse_answer(text, options)
    assert parsed.choice is None or parsed.choice in options
    assert parsed.choice_text == (options[parsed.choice] if parsed.choice else None)
    paper = re.search(r"<answer>\s*([A-Z])\s*</answer>", text)
    assert parsed.strict_choice == (paper[1] if paper and paper[1] in options else None)
    assert parsed.reasoning in text
    assert parsed.reasoning == parsed.reasoning.strip()
    assert len(set(parsed.flags)) == len(parsed.flags)


@given(letter=st.sampled_from("ABCD"), before=st.text("abc .\n"), after=st.text("abc .\n"))
def test_a_well_formed_answer_reads_the_same_both_ways(letter: str, before: str, after: str) -> None:
    parsed = parse_answer(f"<think>{before}</think>{after}<answer>{letter}</answer>{after}", NODULE)
    assert parsed.choice == parsed.strict_choice == letter


TAG_PIECES = ("<answer>", "<think>", "</answer>", "<answer>B</answer>", "<answer", "<", "<answer> ")
MARK_PIECES = (" ", "\n", "(", ")", "A) ", "A", "B.", "A, ", " (A).", "- ", "**", "\\boxed{", "\u0300\u0316", "\ufdfa")
STATED_PIECES = ("answer ", "the answer is ", "answer: B ", "answer: B) ", "answer is not B. ", "option: ")
TEXT_PIECES = ("no ", "not ", "Atelectasis ", "atelectasis, ", "not atelectasis ")


@pytest.mark.parametrize("piece", [*TAG_PIECES, *MARK_PIECES, *STATED_PIECES, *TEXT_PIECES])
@pytest.mark.parametrize("around", ["{}", "<answer>A) {}x"])
def test_a_megabyte_of_anything_is_read_in_linear_time(piece: str, around: str) -> None:
    text = around.format(piece * (1_000_000 // len(piece)))
    start = time.perf_counter()
    parse_answer(text, NODULE | {"E": "no"})
    # Quadratic time would be hours; no machine is so busy that a linear pass takes a minute.
    assert time.perf_counter() - start < 60
