"""Several sampled answers to one question, and what most of them say."""

from collections import Counter
from dataclasses import dataclass

from .batch import answer_batch
from .decoding import Decoding
from .errors import InputError
from .model import MedVLM
from .processor import Request
from .result import Answer


@dataclass(frozen=True)
class Vote:
    """The answers in the order in which they were sampled.

    counts: how many chose each letter, most votes first; answers without a choice are left out. choice: the letter
    with most votes; of equals the one with more probability over all answers; None where no answer has a choice.
    options: the probability of each letter, averaged over the answers that have probabilities.
    """

    answers: tuple[Answer, ...]
    counts: dict[str, int]
    choice: str | None
    options: dict[str, float]

    @property
    def choice_text(self) -> str | None:
        """The text of the chosen option."""
        return next((answer.choice_text for answer in self.answers if answer.choice == self.choice), None)


def vote(model: MedVLM, request: Request, decoding: Decoding, votes: int) -> Vote:
    """Sample `votes` answers to one request; all share one prefill, and several are decoded together.

    Raises `InputError` where fewer than one is asked for, or more than one of greedy decoding, which all are the same.
    """
    check_votes(votes, decoding)
    return count_votes(answer_batch(model, [request] * votes, decoding, range(votes)))


def check_votes(votes: int, decoding: Decoding) -> None:
    """Raise `InputError` as `vote` does."""
    if votes < 1:
        raise InputError(f"votes is {votes}; give at least 1")
    if votes > 1 and decoding.sampling.temperature == 0:
        raise InputError("votes at temperature 0 are all the same; give a temperature, 0.7 say")


def count_votes(answers: list[Answer]) -> Vote:
    """What most of `answers` say."""
    counts = Counter(answer.choice for answer in answers if answer.choice)
    weighed = [answer.options for answer in answers if answer.options]
    options = {letter: sum(one[letter] for one in weighed) / len(weighed) for letter in (weighed or [{}])[0]}
    order = sorted(counts, key=lambda letter: (-counts[letter], -options.get(letter, 0.0), letter))
    return Vote(tuple(answers), {letter: counts[letter] for letter in order}, order[0] if order else None, options)
