"""The model's text -> its reasoning and the letter it chose.

Two readings. `strict_choice` is the paper's own evaluation and is for comparing with it. `choice` is for people: it
understands what a person would understand without guessing, and is None where a person would have to guess. Every
step is linear in the text: a model that loops can write megabytes of tags.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

# The evaluation of MedVLM-R1's authors: the first such match is the answer.
_PAPER = re.compile(r"<answer>\s*([A-Z])\s*</answer>")
_TAG = re.compile(r"<(/?)(think|answer)\s*>", re.IGNORECASE)
_ALPHANUMERIC = re.compile(r"[^\W_]")

_MARKUP = re.compile(r"\\(?:boxed|text(?:bf)?)|[*_`\"#$]")
_ONE_WRITING = {0xFF01 + i: chr(0x21 + i) for i in range(94)} | str.maketrans(
    "[{]}\u2018\u2019\u2013\u2014", "(())''--"
)

# The patterns below work on `_plain` text: single spaces, no empty lines, no markup.
_LEAD = re.compile(
    r"(?:(?:(?:so|therefore|thus|hence),? )?(?:the |my )?(?:(?:correct|final|best|right) )?"
    r"(?:answer|choice|option|letter)\b(?: is\b)? ?[:=-]? ?(?:(?:option|choice|letter) )?)?",
    re.IGNORECASE,
)
_LONE_LETTER = re.compile(r"\({0,3}([A-Za-z])[).,:;!]*")
# A letter at the start of an answer: "B)", "(B)", "B.", "B, ", "B - ", B at the end of a line; "B " is unmarked.
_HEAD = re.compile(r"\({0,3}([A-Za-z])(?:(?P<mark>\)+[.:,]?|[.:,](?=\s|$)| ?-(?= )|(?=\n|$))|(?= ))\s?")
_TAIL = re.compile(r" \(([A-Z])\)[.!]*$")
# Another letter behind the first: "and B", ", B", "B)" anywhere, "B." at the start of a line or of a sentence.
_ANOTHER = re.compile(
    r"^(?:(?:and|or) |[&/,] ?)?\(?([A-Za-z])(?=[).:,;/&\n]|$)|(?<![\w-])([A-Za-z])\)"
    r"|(?:^|[\n ])([A-Z])[.:] (?=[A-Z0-9])",
    re.MULTILINE,
)
# "the answer is B." but not "the answer is a tumor", "the answer is A or B", nor "the answer is a" cut short.
_STATED = re.compile(
    r"\b(?i:(?:answer|choice|option)(?: (?:is|must be|should be|would be)(?: ?:)?| ?[:=]))"
    r" ?(?i:(?:the )?(?:option|choice|letter) )?\({0,3}"
    r"(?:([A-Z])(?=$|\n|[.;:!](?:\s|$)| (?:because|since|as|due|based|which)\b| [-(]"
    r"|,(?! ?(?:or |and )?\(?[A-Z](?!\w))|\)(?! ?[,/]| (?:or|and)\b|[^\n]{0,80}?\b[A-Z]\)))"
    r"|([a-z])(?=\)|\.(?:\s|$)))"
)
# A denial or a condition earlier in the clause; "so", "but" and punctuation end a clause.
_UNASSERTED = re.compile(
    r"(?:\b(?:no|not|never|without|neither|nor|cannot|if|whether|unless|rather than|instead of|excludes?)|n't)\b"
    r"(?:(?!\b(?:so|but|therefore|hence|thus)\b)[^.,;:!?\n])*$",
    re.IGNORECASE,
)
_UNASSERTED_WITHIN = 48
# Option texts that prose uses for other ends ("there is no doubt"): they count only where a clause ends with them.
_DETERMINERS = ("a", "all", "both", "neither", "no", "none")


@dataclass(frozen=True)
class ParsedAnswer:
    """What the model's text says.

    `reasoning` is what stands in `<think>`; without it, what stands before the answer. `choice` and `strict_choice` are
    letters that the question offered, or None; `choice_text` is the text of `choice`. `flags` say what a reader
    should know: "unclosed_think", "unclosed_answer", "no_tags" (no answer tag), "several_answers" (the last counts),
    "matched_text" (the option's text stood in place of its letter), "unoffered_letter" (a letter that the question
    does not offer), "ambiguous" (several letters at once, so none), "conflict" (another text or statement beside the
    letter says another option; the letter counts).
    """

    reasoning: str
    choice: str | None
    strict_choice: str | None
    choice_text: str | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class _Reading:
    letter: str | None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Tagged:
    """One `<answer>`: the text in it, where it ends in the whole, whether it was closed."""

    text: str
    end: int
    closed: bool


def parse_answer(text: str, options: Mapping[str, str]) -> ParsedAnswer:
    """Read the model's whole output. `options`: letter -> text, as the question offered; without, no letter is read."""
    tags = list(_TAG.finditer(text))
    answers = _tagged_answers(text, tags)
    given = [answer for answer in answers if _ALPHANUMERIC.search(answer.text)]
    reasoning, flags = _reasoning(text, tags)
    if answers and not (given or answers)[-1].closed:
        flags.append("unclosed_answer")
    if not answers:
        flags.append("no_tags")
    if len(given) > 1:
        flags.append("several_answers")
    reading = _Reading(None)
    if options:
        reading = _read_tagged(text, given[-1], options) if given else _read_untagged(text, tags, options)
    return ParsedAnswer(
        reasoning=reasoning,
        choice=reading.letter,
        strict_choice=_strict_choice(text, options),
        choice_text=options[reading.letter] if reading.letter else None,
        flags=tuple(dict.fromkeys((*flags, *reading.flags))),
    )


def _strict_choice(text: str, options: Mapping[str, str]) -> str | None:
    match = _PAPER.search(text)
    return match[1] if match and match[1] in options else None


def _tagged_answers(text: str, tags: list[re.Match[str]]) -> list[_Tagged]:
    """Each `<answer>` with its text up to the next tag of any kind, or to the end."""
    answers = []
    for tag, following in zip(tags, [*tags[1:], None], strict=False):
        if _name(tag) == "answer":
            end = following.start() if following else len(text)
            closed = following is not None and _name(following) == "/answer"
            answers.append(_Tagged(text[tag.end() : end], end, closed))
    return answers


def _reasoning(text: str, tags: list[re.Match[str]]) -> tuple[str, list[str]]:
    """The reasoning, and the flag of a `<think>` that is never closed (then it ends where the answer begins)."""
    opened = next((tag for tag in tags if _name(tag) == "think"), None)
    start = opened.end() if opened else 0
    # A closing tag alone is enough: some chat templates put the opening one in the prompt.
    closing = next((tag for tag in tags if _name(tag) == "/think" and tag.start() >= start), None)
    answer = next((tag for tag in tags if _name(tag) == "answer" and tag.start() >= start), None)
    end = closing or answer
    return text[start : end.start() if end else len(text)].strip(), ["unclosed_think"] if opened and not closing else []


def _name(tag: re.Match[str]) -> str:
    return tag[1] + tag[2].lower()


def _plain(text: str) -> str:
    """`text` without markup and empty lines, in one way of writing brackets and quotes, and with single spaces."""
    lines = (" ".join(line.split()) for line in _MARKUP.sub("", text.translate(_ONE_WRITING)).splitlines())
    return "\n".join(line for line in lines if line)


def _read_tagged(text: str, answer: _Tagged, options: Mapping[str, str]) -> _Reading:
    """The letter in the deciding `<answer>`; flagged where what follows the tags states another."""
    reading = _read_answer(_plain(answer.text), options)
    afterwards = _read_statement(_plain(_TAG.sub("\n", text[answer.end :])), options)
    return _with_conflict(reading, afterwards)


def _with_conflict(reading: _Reading, other: _Reading | None) -> _Reading:
    if reading.letter and other and other.letter and other.letter != reading.letter:
        return _Reading(reading.letter, (*reading.flags, "conflict"))
    return reading


def _read_answer(answer: str, options: Mapping[str, str]) -> _Reading:
    """The letter in the plain text of an answer, the plainest way of saying it first."""
    words = answer[match.end() :] if (match := _LEAD.match(answer)) else answer
    if lone := _LONE_LETTER.fullmatch(words):
        return _offered(lone[1].upper(), options)
    if (exact := _equal_option(words, options)) is not None:
        return _Reading(exact, ("matched_text",))
    if marked := _read_head(words, options) or _read_tail(words, options) or _read_statement(answer, options):
        return marked
    contained = _contained_option(words, options)
    return _Reading(contained, ("matched_text",)) if contained else _Reading(None)


def _offered(letter: str, options: Mapping[str, str]) -> _Reading:
    return _Reading(letter) if letter in options else _Reading(None, ("unoffered_letter",))


def _read_head(words: str, options: Mapping[str, str]) -> _Reading | None:
    """The letter that `words` begin with; without a mark ("B Yes") only if that option's text follows."""
    head = _HEAD.match(words)
    if head is None:
        return None
    letter, rest = head[1].upper(), words[head.end() :]
    text_says = _text_option(rest, options)
    if text_says == letter:
        return _Reading(letter)
    if head["mark"] is None:
        return None
    letters = {(match[1] or match[2] or match[3]).upper() for match in _ANOTHER.finditer(rest)}
    if letters - {letter}:
        return _Reading(None, ("ambiguous",))
    return _with_conflict(_offered(letter, options), _Reading(text_says))


def _read_tail(words: str, options: Mapping[str, str]) -> _Reading | None:
    """The letter in brackets that `words` end with: "Brain (B)"."""
    tail = _TAIL.search(words)
    if tail is None or tail[1] not in options:
        return None
    return _with_conflict(_Reading(tail[1]), _Reading(_text_option(words[: tail.start()], options)))


def _read_statement(words: str, options: Mapping[str, str]) -> _Reading | None:
    """The letter of the last "the answer is B" in `words`."""
    stated = [(match[1] or match[2]).upper() for match in _STATED.finditer(words) if _asserted(words, match.start())]
    if not stated:
        return None
    last = _offered(stated[-1], options)
    return _Reading(last.letter, (*last.flags, "several_answers")) if len(set(stated)) > 1 else last


def _read_untagged(text: str, tags: list[re.Match[str]], options: Mapping[str, str]) -> _Reading:
    """The letter in a text without an answer tag: only a last line that is an option, or a clear statement.

    What follows the reasoning comes first; where nothing follows, the reasoning itself may end in a statement.
    """
    closing = [tag for tag in tags if _name(tag) == "/think"]
    words = _plain(_TAG.sub("\n", text[closing[-1].end() :])) if closing else ""
    words = words or _plain(_TAG.sub("\n", text))
    stated = _read_statement(words, options)
    last = _read_last_line(words, options)
    return _with_conflict(last, stated) if last else stated or _Reading(None)


def _read_last_line(words: str, options: Mapping[str, str]) -> _Reading | None:
    """The option that the last line is: "B", "B) text" or "text", unless the line before is another of a list."""
    *before, last = words.rsplit("\n", 2)[-2:]
    head, head_before = _HEAD.match(last), _HEAD.match(before[0]) if before else None
    if head and head["mark"] is not None:
        letter, rest = head[1].upper(), last[head.end() :]
        if head_before and head_before["mark"] is not None and head_before[1].upper() != letter:
            return None
        if not rest or ")" in head["mark"] or _text_option(rest, options) == letter:
            return _read_head(last, options)
    exact = _equal_option(last, options)
    return _Reading(exact, ("matched_text",)) if exact else None


def _text_option(words: str, options: Mapping[str, str]) -> str | None:
    return _equal_option(words, options) or _contained_option(words, options)


def _equal_option(words: str, options: Mapping[str, str]) -> str | None:
    """The only option whose text is `words`."""
    folded = _fold(words)
    equal = [letter for letter, text in options.items() if folded and _fold(_plain(text)) == folded]
    return equal[0] if len(equal) == 1 else None


def _contained_option(words: str, options: Mapping[str, str]) -> str | None:
    """The only option whose text stands in `words`, not denied; a text within a longer option's does not count."""
    folded = _fold(words)
    spans = []
    for letter, text in options.items():
        found = re.finditer(pattern, folded) if (pattern := _whole_words(_fold(_plain(text)))) else ()
        spans += [(match.start(), -match.end(), letter) for match in found if _asserted(folded, match.start())]
    letters, widest = set(), (-1, 0)
    for start, minus_end, letter in sorted(spans):
        if minus_end < widest[1] or (start, minus_end) == widest:
            letters.add(letter)
            widest = (start, minus_end)
    return letters.pop() if len(letters) == 1 else None


def _whole_words(option: str) -> str | None:
    """The pattern of an option's folded text as whole words; None for no text.

    A hyphen or a sign is part of a word: "operative" is not in "post-operative", nor "5 mm" in "<5 mm".
    """
    if not option:
        return None
    end = r"(?![^.,;:!?)'])" if option in _DETERMINERS else r"(?![^\s.,;:!?)'])(?![.,]\d)"
    return rf"(?<![^\s(']){re.escape(option)}{end}"


def _asserted(words: str, position: int) -> bool:
    """Whether what stands at `position` is said to be so: not behind "not", "if" or the like in its clause."""
    return not _UNASSERTED.search(words[max(0, position - _UNASSERTED_WITHIN) : position])


def _fold(words: str) -> str:
    return " ".join(words.casefold().split()).rstrip(" .,;:!?")
