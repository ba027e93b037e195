"""Judging one answer: its letter, its form, and whether its reasoning agrees with its letter and with the scan."""

from dataclasses import dataclass

from ..runtime.answer import parse_answer
from ..runtime.evaluation.outcome import is_well_formed
from ..runtime.prompt import parse_options
from .agreement import agrees, claimed_facts
from .questions import Facts, Question


@dataclass(frozen=True)
class Grade:
    """choice: the letter by the paper's strict rule, or None. truthful: the reasoning claims what the scan shows."""

    choice: str | None
    correct: bool
    well_formed: bool
    agrees: bool
    truthful: bool


def grade(text: str, question: Question, facts: Facts) -> Grade:
    """Judge the whole `text` that the model wrote in answer to `question` about a scan with `facts`."""
    parsed = parse_answer(text, parse_options(question.problem))
    return Grade(
        choice=parsed.strict_choice,
        correct=parsed.strict_choice == question.solution,
        well_formed=is_well_formed(text) and parsed.strict_choice is not None,
        agrees=agrees(parsed.reasoning, parsed.strict_choice, question),
        truthful=claimed_facts(parsed.reasoning) == facts,
    )
