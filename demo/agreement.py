"""Reading a piece of reasoning back into the facts that it claims, to hold them against its letter and the truth."""

from . import phrases
from .questions import Facts, Question, meaning
from .scans.catalog import KINDS


def claimed_facts(reasoning: str) -> Facts | None:
    """What the reasoning says is seen; None where it names no kind of scan, or two, or nothing of findings, or two."""
    kinds = [kind for kind, phrase in phrases.KIND_PHRASES.items() if phrase in reasoning]
    normal = any(sentence in reasoning for sentence in phrases.NORMAL_SENTENCES)
    findings = [finding for finding, sentences in phrases.FINDING_SENTENCES.items() if _says(reasoning, sentences)]
    if len(kinds) != 1 or len(findings) + normal != 1:
        return None
    if not findings:
        return Facts(kinds[0], None, None)
    places = [place for place, phrase in phrases.PLACE_PHRASES.items() if phrase in reasoning]
    if findings[0] not in KINDS[kinds[0]].findings or len(places) > 1:
        return None
    return Facts(kinds[0], findings[0], places[0] if places else None)


def agrees(reasoning: str, choice: str | None, question: Question) -> bool:
    """Whether the chosen letter is the option that the reasoning's claims make right, and that it concludes with."""
    facts = claimed_facts(reasoning)
    if facts is None or choice is None:
        return False
    claim = meaning(facts, question.type)
    if claim not in question.meanings:
        return False
    option = question.meanings.index(claim)
    return "ABCD"[option] == choice and reasoning.endswith(f" {question.named(option)} ({choice}).")


def _says(reasoning: str, sentences: tuple[str, ...]) -> bool:
    """Whether one of the sentences is there, wherever it puts the finding."""
    return any(sentence.split(" {}")[0].rstrip(".") in reasoning for sentence in sentences)
