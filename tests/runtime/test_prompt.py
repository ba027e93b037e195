import json
import time
from pathlib import Path

import pytest
from medvlm.runtime.errors import InputError
from medvlm.runtime.manifest import PromptParts
from medvlm.runtime.prompt import QUESTION_TEMPLATE, check_question, parse_options, question_text, render_prompt

SHARED = Path(__file__).parents[2].parent / "shared"
QUESTION_FILES = ("questions-60.json", "questions-with-images.json")
RESERVED = ("<|im_start|>", "<|im_end|>", "<|image_pad|>")

NO_YES = {"A": "No", "B": "Yes."}
BRAIN_KNEE = {"A": "Brain", "B": "Knee"}


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Is it abnormal?\nA) No\nB) Yes.", NO_YES),
        ("Is it abnormal?\nA. No\nB. Yes.", NO_YES),
        ("Is it abnormal?\nA: No\nB: Yes.", NO_YES),
        ("Is it abnormal?\n(A) No\n(B) Yes.", NO_YES),
        ("Is it abnormal?\na) No\nb) Yes.", NO_YES),
        ("Is it abnormal?\n(a) No\n(b) Yes.", NO_YES),
        ("Is it abnormal?\n   A) No  \n\tB) Yes.  \n", NO_YES),
        ("Is it abnormal?\r\nA) No\r\nB) Yes.\r\n", NO_YES),
        ("Is it abnormal?\nA)No\nB)Yes.", NO_YES),
        ("Is it abnormal?\n\nA) No\n\nB) Yes.\n\nAnswer with one letter.", NO_YES),
        ("A) No\nB) Yes.\nIs it abnormal?", NO_YES),
        ("Is it abnormal?\nA) No\nB. Yes.", NO_YES),
        ("Which?\nA) Hepatitis (type A) B) virus\nB) Knee", {"A": "Hepatitis (type A) B) virus", "B": "Knee"}),
        ("S: pain\nO: swelling\nA: injury\nP: rest\nWhich organ?\nA) Brain\nB) Knee", BRAIN_KNEE),
        ("Was it A. baumannii?\nA) No\nB) Yes.", NO_YES),
    ],
)
def test_options_on_lines_of_their_own_are_found(question: str, options: dict[str, str]) -> None:
    assert parse_options(question) == options


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which organ? A) Brain B) Knee", BRAIN_KNEE),
        ("Which organ is this A) Brain, B) Knee", BRAIN_KNEE),
        ("Which organ is shown: A. Brain, B. Knee", BRAIN_KNEE),
        ("Which organ? A. Brain B. Knee.", {"A": "Brain", "B": "Knee."}),
        ("Which organ? A: Brain; B: Knee", BRAIN_KNEE),
        ("Which organ? (A) Brain (B) Knee", BRAIN_KNEE),
        ("Which organ? a) Brain b) Knee", BRAIN_KNEE),
        ("Is it A) Brain or B) Knee?", BRAIN_KNEE),
        ("A) Brain B) Knee", BRAIN_KNEE),
        ("Which organ?\nA) Brain B) Knee\nC) Lung D) Liver", BRAIN_KNEE | {"C": "Lung", "D": "Liver"}),
        ("Which? A) CT (with contrast) B) MRI", {"A": "CT (with contrast)", "B": "MRI"}),
        ("Which? A) Retinol (vitamin A) B) Iron", {"A": "Retinol (vitamin A)", "B": "Iron"}),
        ("Is it E. coli? A. No, B. Yes.", NO_YES),
        ("Which organ? A) Brain B) Knee\nAnswer with one letter.", BRAIN_KNEE),
    ],
)
def test_options_in_one_line_are_found(question: str, options: dict[str, str]) -> None:
    assert parse_options(question) == options


@pytest.mark.parametrize(
    "question",
    [
        "",
        "What is visible in this image?",
        "Is this a T1 image? A. baumannii was cultured.",
        "Was it caused by A. baumannii or B. fragilis?",
        "Was it A. baumannii? A. baumannii or B. fragilis may be seen.",
        "Is a lack of vitamin A) likely here?",
        "Is a lack of vitamin A) or of vitamin B) likely here?",
        "Does he lack a vitamin (vitamin A) or another (vitamin B)?",
        "Panel (A) shows T1 and panel (B) shows T2. What differs?",
        "Image (A) and image (B): what differs?",
        "Shown are: (A) axial, (B) coronal. Which of them is T1?",
        "Which organ?\nA) Brain",
        "Which organ?\nB) Brain\nC) Knee",
        "Which organ?\nA) Brain\nC) Knee",
        "Which organ?\nA) Brain\nB) Knee\nD) Lung",
        "Which organ?\n1) Brain\n2) Knee",
        "Which organ?\nA)\nB)",
        "Which organ?\n(A. Brain\n(B. Knee",
        "The scan was at 10 A.M. and again at 4 P.M. What changed?",
        "Which? A) , B) ;",
    ],
)
def test_prose_and_broken_lists_offer_no_options(question: str) -> None:
    assert parse_options(question) == {}


def test_up_to_26_options_are_found_in_order() -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    question = "Which?\n" + "\n".join(f"{letter}) text {letter}" for letter in letters)
    assert list(parse_options(question)) == list(letters)


@pytest.mark.parametrize("name", QUESTION_FILES)
def test_options_of_real_questions_are_those_of_the_dataset(name: str) -> None:
    path = SHARED / "medvlm-r1" / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    for record in json.loads(path.read_text(encoding="utf-8")):
        options = parse_options(record["problem"])
        assert options[record["solution"]] == record["answer"]
        assert list(options.values()) == record.get("options", list(options.values()))
        assert parse_options(record["problem"].replace("\n", " ")).keys() == options.keys()


@pytest.mark.parametrize("piece", ["A) ", "(", "A) x B) y ", " ", "\n", "A. x\n", "a"])
def test_a_megabyte_of_marks_is_read_in_linear_time(piece: str) -> None:
    start = time.perf_counter()
    parse_options(piece * (1_000_000 // len(piece)))
    # Quadratic time would be hours; no machine is so busy that a linear pass takes a minute.
    assert time.perf_counter() - start < 60


def test_the_template_is_the_authors_to_the_last_space() -> None:
    assert QUESTION_TEMPLATE.split("\n") == [
        "",
        "    {Question} ",
        "    Your task: ",
        "    1. Think through the question step by step, enclose your reasoning process in <think>...</think> tags. ",
        "    2. Then provide the correct single-letter choice (A, B, C, D,...) inside <answer>...</answer> tags.",
        "    3. No extra information or text outside of these tags.",
        "    ",
    ]


def test_a_multiple_choice_question_is_put_in_the_template() -> None:
    text = question_text("Is it {normal}? {Question}\nA) No\nB) Yes.", raw=False)
    assert text.startswith("\n    Is it {normal}? {Question}\nA) No\nB) Yes. \n    Your task: \n")


def test_raw_and_open_questions_are_sent_as_they_are() -> None:
    assert question_text("Is it?\nA) No\nB) Yes.", raw=True) == "Is it?\nA) No\nB) Yes."
    assert question_text(" What is shown? ", raw=False) == " What is shown? "


@pytest.mark.parametrize("images", [0, 1, 3])
def test_images_stand_between_prefix_and_question(images: int) -> None:
    prompt = render_prompt(PromptParts(prefix="<p>", image="<i>", suffix="<s>"), "text", images)
    assert prompt == "<p>" + "<i>" * images + "text<s>"


@pytest.mark.parametrize("question", ["", " ", "\n\t "])
def test_a_blank_question_is_refused(question: str) -> None:
    with pytest.raises(InputError, match="empty"):
        check_question(question, RESERVED)


def test_the_first_control_token_is_named() -> None:
    with pytest.raises(InputError, match=r"<\|image_pad\|>") as caught:
        check_question("What is <|image_pad|> here?<|im_end|>\n", RESERVED)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("question", ["a\0b", "a\ud800b", "\udfff"])
def test_text_that_cannot_be_encoded_is_refused_in_one_printable_line(question: str) -> None:
    with pytest.raises(InputError) as caught:
        check_question(question, RESERVED)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("question", ["What is shown?", "Ist das 异常 \U0001f9e0?", "<think> <|im_en", "a < b | c > d"])
def test_an_ordinary_question_is_accepted(question: str) -> None:
    check_question(question, (*RESERVED, ""))
