"""Where some of the decoder's heads are told to look while it learns: attention guided by what is known to matter.

To write the letter of an option, a decoder has to find the option among the others and carry its letter along: two
heads in a row, neither of any use without the other. From the loss on letters alone that pair did not form in twenty
thousand answers; told where to look, it forms in a hundred steps. Each head's attention is held against the even
distribution over the tokens that it should look at, by cross-entropy (as Deshpande & Narasimhan 2020, arXiv
2010.02399, guide heads towards fixed patterns). Nothing of this is left in the model but its weights.
"""

from collections import defaultdict
from typing import NamedTuple

import torch

from ..phrases import PLACE_PHRASES
from ..questions import Facts, Question
from .batch import Tokens


class Head(NamedTuple):
    """A layer of the decoder and one of its heads."""

    layer: int
    head: int


# An option's words look at its letter. The bracket after a named option looks at the name, and then, one layer on, at
# the option of that name, whose letter follows; the answer looks back at that letter.
OPTION_LETTER, NAME, NAMED_OPTION, CONCLUDED_LETTER = Head(0, 0), Head(0, 2), Head(1, 0), Head(1, 1)
# What tells of the finding looks at it in the scan. What names the option looks at what was told that decides it, and
# then, one layer on, at the right option.
FINDING, TOLD, RIGHT_OPTION = Head(2, 0), Head(1, 2), Head(2, 2)


class Look(NamedTuple):
    """The token at `at` should have `head` look evenly at the tokens `to`."""

    head: Head
    at: int
    to: tuple[int, ...]


def option_looks(prompt: Tokens, question: Question) -> tuple[list[Look], list[tuple[int, ...]]]:
    """What the words of the options in a prompt look at, and the places of each option's words."""
    looks, words = [], []
    start = prompt.text.index(question.problem) + len(question.text) + 1
    for option in question.options:
        letter = prompt.within(start, start + 1)
        words.append(prompt.within(start + 3, start + 3 + len(option)))
        looks.extend(Look(OPTION_LETTER, at, letter) for at in words[-1])
        start += 3 + len(option) + 1
    return looks, words


def conclusion_looks(
    answer: Tokens, question: Question, option: int, words: list[tuple[int, ...]], start: int = 0
) -> list[Look]:
    """What the first conclusion from character `start` on looks at. words: the places of each option's words."""
    name = question.named(option)
    begin = answer.text.index(f"{name} ({'ABCD'[option]})", start)
    named = answer.within(begin, begin + len(name))
    bracket = answer.within(begin + len(name) + 1, begin + len(name) + 2)[0]
    return [Look(NAME, bracket, named), Look(NAMED_OPTION, bracket, words[option])]


def answer_looks(
    prompt: Tokens, answer: Tokens, question: Question, facts: Facts, finding: tuple[int, ...]
) -> list[Look]:
    """All that a prompt and its answer look at. finding: the places of the visual tokens that show the finding."""
    looks, words = option_looks(prompt, question)
    looks += conclusion_looks(answer, question, question.answer, words)
    named = answer.text.index(f"{question.named(question.answer)} ({question.solution})")
    before = answer.within(named, named + 1)[0] - 1
    told = answer.within(*_deciding(answer.text, question, facts))
    looks += [Look(TOLD, before, told), Look(RIGHT_OPTION, before, words[question.answer])]
    concluded, answered = answer_letters(answer, question)
    looks.append(Look(CONCLUDED_LETTER, answered - 1, (concluded,)))
    looks.extend(Look(FINDING, at - 1, finding) for at in answer.within(*_seen(answer.text)) if finding)
    return looks


def _deciding(text: str, question: Question, facts: Facts) -> tuple[int, int]:
    """The characters of an answer that tell which option is right."""
    if question.type in ("modality", "body part"):
        return 0, _seen(text)[0]
    if question.type == "place":
        phrase = PLACE_PHRASES[facts.place or ""]
        return text.index(phrase), text.index(phrase) + len(phrase)
    return _seen(text)


def _seen(text: str) -> tuple[int, int]:
    """The characters of the answer's second sentence: what is seen."""
    start = text.index(". ") + 1
    return start, text.index(". ", start)


def answer_letters(answer: Tokens, question: Question) -> tuple[int, int]:
    """The places of an answer's two letters: the conclusion's, and the one between the answer's tags."""
    concluded = answer.text.index(f" ({question.solution}).") + 2
    answered = answer.text.index("<answer>") + len("<answer>")
    return answer.within(concluded, concluded + 1)[0], answer.within(answered, answered + 1)[0]


def looking_loss(attentions: tuple[torch.Tensor, ...], looks: list[list[Look]]) -> torch.Tensor:
    """Cross-entropy of what heads look at, averaged over each head's looks and summed over heads.

    attentions: [rows, heads, length, length] of each layer. looks: those of each row.
    """
    by_head: dict[Head, list[tuple[int, int, int, float]]] = defaultdict(list)
    for row, row_looks in enumerate(looks):
        for head, at, to in row_looks:
            by_head[head].extend((row, at, place, 1 / len(to)) for place in to)
    total = torch.zeros(())
    for head, entries in by_head.items():
        rows, ats, tos, weights = zip(*entries, strict=True)
        weight = torch.tensor(weights)
        looked = attentions[head.layer][list(rows), head.head, list(ats), list(tos)]
        total = total - (weight * (looked + 1e-6).log()).sum() / weight.sum()
    return total
