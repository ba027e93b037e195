"""The text put to the model: the multiple-choice template, the options of a question, the whole prompt of one turn."""

import re
from collections.abc import Collection

from .errors import InputError
from .manifest import PromptParts

# Word for word the template that MedVLM-R1's authors trained and evaluated with, odd spaces included: the model has
# seen no other, so every character counts.
QUESTION_TEMPLATE = (
    "\n    {Question} \n"
    "    Your task: \n"
    "    1. Think through the question step by step, enclose your reasoning process in <think>...</think> tags. \n"
    "    2. Then provide the correct single-letter choice (A, B, C, D,...) inside <answer>...</answer> tags.\n"
    "    3. No extra information or text outside of these tags.\n"
    "    "
)

# "A)", "(A)", "A.", "A:" with text behind it on the same line. A dot or a colon needs a space: "A.M." is no option.
_MARK = r"(?P<open>\(?)(?P<letter>[A-Za-z])(?P<close>\)|[.:](?=[ \t]))[ \t]*(?=\S)"
_AT_LINE_START = re.compile(r"^[ \t]*" + _MARK, re.MULTILINE)
_ANYWHERE = re.compile(r"(?<![^\s,;])" + _MARK)
# Words whose letter is part of a name: "hepatitis B) ...", "panel (A) shows ...".
_NAMING_WORD = re.compile(
    r"\b(?:vitamin|hepatitis|influenza|type|group|class|stage|grade|panel|figure|fig\.?|image|factor)s?$", re.IGNORECASE
)
_JOINING_WORD = re.compile(r"\b(?:or|and|vs\.?|versus)$", re.IGNORECASE)
# How far back prose is searched for a bracket that a mark may close, so that the time stays linear.
_NEARBY = 200
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_options(question: str) -> dict[str, str]:
    """The options that a multiple-choice question offers, in order, upper-case letter -> text; empty where it has none.

    Options stand one a line or all in one line, marked `A)`, `(A)`, `A.` or `A:` in either case; an option's text ends
    with its line. The letters must run A, B, C… without a gap and be at least two. Within a line the rules are
    narrower, because prose has such marks too ("A. baumannii", "vitamin A)"): see `_is_inline_mark`.
    """
    at_line_start = [mark for mark in _AT_LINE_START.finditer(question) if _style(mark)]
    for style in dict.fromkeys(map(_style, at_line_start)):
        if run := _run([mark for mark in at_line_start if _style(mark) == style]):
            return _texts(question, run)
    if run := _run(at_line_start):
        return _texts(question, run)
    anywhere = [mark for mark in _ANYWHERE.finditer(question) if _is_inline_mark(question, mark)]
    for style in dict.fromkeys(map(_style, anywhere)):
        if run := _run([mark for mark in anywhere if _style(mark) == style]):
            return _inline_texts(question, run)
    return {}


def question_text(question: str, raw: bool) -> str:
    """What is sent: a multiple-choice question in `QUESTION_TEMPLATE` unless `raw`, any other `question` as it is."""
    if raw or not parse_options(question):
        return question
    return QUESTION_TEMPLATE.replace("{Question}", question)


def render_prompt(parts: PromptParts, text: str, images: int) -> str:
    """The whole prompt of one turn with `images` images before `text`, as the checkpoint's chat template writes it."""
    return parts.prefix + parts.image * images + text + parts.suffix


def check_question(question: str, reserved: Collection[str]) -> None:
    """Raise `InputError` for a question that cannot be asked: blank, not encodable, or with a control token in it.

    `reserved` are the tokenizer's special tokens. In a question they would end the turn or announce an image that
    is not there, and the tokenizer cannot tell them from the prompt's own.
    """
    if not question.strip():
        raise InputError("the question is empty; ask something about the image")
    check_text(question, reserved, "the question")


def check_text(text: str, reserved: Collection[str], name: str) -> None:
    """As `check_question`, of any text of a prompt that messages call `name`; it may be blank."""
    if "\0" in text:
        raise InputError(f"{name} holds a NUL character; remove it")
    if _SURROGATE.search(text):
        raise InputError(f"{name} holds a broken character (a lone surrogate); give it as valid UTF-8")
    found = [token for token in reserved if token and token in text]
    if found:
        first = min(found, key=text.index)
        raise InputError(f"{name} holds {first!r}, which is a control token of the model; remove it")


def _style(mark: re.Match[str]) -> str:
    """How the mark is written, e.g. `(X)` or `x.`; empty for a bracket that is opened and not closed."""
    if mark["open"] and mark["close"] != ")":
        return ""
    return mark["open"] + ("X" if mark["letter"].isupper() else "x") + mark["close"]


def _run(marks: list[re.Match[str]]) -> list[re.Match[str]]:
    """The marks from the last A on, if they are A, B, C… and at least two; otherwise none."""
    letters = "".join(mark["letter"].upper() for mark in marks)
    start = letters.rfind("A")
    run = letters[start:]
    return marks[start:] if len(run) > 1 and "ABCDEFGHIJKLMNOPQRSTUVWXYZ".startswith(run) else []


def _is_inline_mark(question: str, mark: re.Match[str]) -> bool:
    """Whether a mark inside a line is one of an option, not of prose.

    Not so: the end of a bracket ("(vitamin A)"), a letter that belongs to a name ("type B)"), an abbreviation
    ("A. baumannii or B. fragilis"), a label ("panel (A) shows"). So `A.`, `A:` and `(A)` must follow a sentence's
    end or punctuation, and `B.` must not follow "or"; a bare bracket, `A)`, is odd enough in prose to stand anywhere.
    """
    before = question[max(0, mark.start() - _NEARBY) : mark.start()].rstrip(" \t")
    style = _style(mark)
    if not style or _NAMING_WORD.search(before[-12:]):
        return False
    if style in ("X)", "x)"):
        return before.rfind("(") <= before.rfind(")")
    if mark["letter"] in "Aa":
        return not before or before[-1] in "?!.:;,\n"
    return mark["open"] == "(" or not _JOINING_WORD.search(before[-8:])


def _texts(question: str, run: list[re.Match[str]]) -> dict[str, str]:
    """The text of each option in `run`: up to the next one, or to the end of its line."""
    ends = [mark.start() for mark in run[1:]] + [len(question)]
    lines = [question[mark.end() : end].split("\n", 1)[0].strip() for mark, end in zip(run, ends, strict=True)]
    return {mark["letter"].upper(): line for mark, line in zip(run, lines, strict=True)}


def _inline_texts(question: str, run: list[re.Match[str]]) -> dict[str, str]:
    """As `_texts`, without what joins one option to the next; empty where an option has no text of its own.

    A last text that goes on to ask something ("(A) axial, (B) coronal. Which is T1?") shows labels, not options.
    """
    texts = _texts(question, run)
    last = list(texts.values())[-1]
    if "?" in last and re.search(r"[.!?]\s", last[: last.rfind("?")]):
        return {}
    joined = {letter: _JOINING_WORD.sub("", text.rstrip(" ,;")).rstrip(" ,;") for letter, text in texts.items()}
    joined[list(joined)[-1]] = last.rstrip(" ,;?")
    return joined if all(joined.values()) else {}
