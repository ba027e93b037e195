"""Multiple-choice questions about scans, in OmniMedVQA's manner, and the text that answers them in MedVLM-R1's form."""

from dataclasses import dataclass
from typing import TypeVar

from . import phrases
from .scans.canvas import Rng
from .scans.catalog import KINDS

TYPES = ("modality", "body part", "abnormality", "finding", "place")
_LETTERS = "ABCD"
_OPTION_TEXTS = {
    "modality": phrases.MODALITY_OPTIONS,
    "body part": phrases.BODY_OPTIONS,
    "abnormality": phrases.ABNORMALITY_OPTIONS,
    "finding": phrases.FINDING_OPTIONS,
    "place": phrases.PLACE_OPTIONS,
}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Facts:
    """What is true of a scan, or what a text claims of one: its kind, its finding if any, and where that is."""

    kind: str
    finding: str | None
    place: str | None


@dataclass(frozen=True)
class Question:
    """type: one of `TYPES`. meanings: what each option stands for, e.g. `left`. answer: the index of the right one."""

    type: str
    text: str
    options: tuple[str, ...]
    meanings: tuple[str, ...]
    answer: int

    @property
    def problem(self) -> str:
        """The question with its options, as OmniMedVQA's files write it."""
        return "\n".join([self.text, *(f"{a}) {b}" for a, b in zip(_LETTERS, self.options, strict=False))])

    @property
    def solution(self) -> str:
        """The right letter."""
        return _LETTERS[self.answer]

    def named(self, option: int) -> str:
        """The text of an option as it stands within a sentence."""
        return self.options[option].rstrip(".")


def meaning(facts: Facts, question_type: str) -> str:
    """What the answer to a question of that type is, e.g. `CT`, `no`, `nodule`, `left`; `none` where there is none."""
    kind = KINDS[facts.kind]
    return {
        "modality": kind.modality,
        "body part": kind.body,
        "abnormality": "yes" if facts.finding else "no",
        "finding": facts.finding or "none",
        "place": facts.place or "none",
    }[question_type]


def draw_facts(rng: Rng, question_type: str) -> Facts:
    """Facts to ask a question of that type about. The answers are equally likely, so that guessing gains nothing."""
    if question_type == "place":
        kind, finding = pick(rng, [(k.name, f) for k in KINDS.values() for f, places in k.findings.items() if places])
        return Facts(kind, finding, pick(rng, KINDS[kind].findings[finding]))
    groups: dict[str, list[str]] = {}
    for kind in KINDS.values():
        group = {"modality": kind.modality, "body part": kind.body}.get(question_type, "")
        groups.setdefault(group, []).append(kind.name)
    kind = pick(rng, pick(rng, list(groups.values())))
    findings = list(KINDS[kind].findings)
    if question_type == "finding":
        finding = pick(rng, [None, *findings])
    else:
        finding = pick(rng, findings) if rng.random() < 0.5 else None
    places = KINDS[kind].findings[finding] if finding else ()
    return Facts(kind, finding, pick(rng, places) if places else None)


def ask(rng: Rng, facts: Facts, question_type: str) -> Question:
    """A question of that type about a scan with `facts`; every option could be true of another scan of its kind."""
    right = meaning(facts, question_type)
    wrong = [m for m in _possible(facts, question_type) if m != right]
    chosen = [wrong[i] for i in rng.permutation(len(wrong))[: len(_LETTERS) - 1]]
    # The right letter is drawn first, so that it is uniform whatever the options are.
    answer = int(rng.integers(len(chosen) + 1))
    meanings = (*chosen[:answer], right, *chosen[answer:])
    style = int(rng.integers(6))
    texts = _OPTION_TEXTS[question_type]
    options = tuple(texts[m][style % len(texts[m])] for m in meanings)
    text = pick(rng, phrases.QUESTIONS[question_type])
    if question_type == "place" and facts.finding:
        text = text.format(phrases.FINDING_NOUNS[facts.finding])
    return Question(question_type, text, options, meanings, answer)


def response(rng: Rng, facts: Facts, question: Question) -> str:
    """The text to be learned: reasoning that says what is seen and where, and the letter."""
    what = pick(rng, phrases.KIND_SENTENCES).format(phrases.KIND_PHRASES[facts.kind])
    if facts.finding is None:
        seen = pick(rng, phrases.NORMAL_SENTENCES)
    else:
        seen = pick(rng, phrases.FINDING_SENTENCES[facts.finding])
        seen = seen.format(phrases.PLACE_PHRASES[facts.place]) if facts.place else seen
    so = conclusion(rng, question, question.answer)
    return f"<think>{what} {seen} {so}</think>\n\n<answer>{question.solution}</answer>"


def conclusion(rng: Rng, question: Question, option: int) -> str:
    """The sentence that ends the reasoning where that option is the right one: its text and its letter."""
    return pick(rng, phrases.CONCLUSIONS).format(question.named(option), _LETTERS[option])


def pick(rng: Rng, choices: "list[_T] | tuple[_T, ...]") -> _T:
    """One of the choices, each as likely."""
    return choices[int(rng.integers(len(choices)))]


def _possible(facts: Facts, question_type: str) -> list[str]:
    """What the answer could be, for all that the question's own words tell."""
    kind = KINDS[facts.kind]
    if question_type == "finding":
        return [*kind.findings, "none"]
    if question_type == "place":
        return list(kind.findings[facts.finding or ""])
    return list(_OPTION_TEXTS[question_type])
