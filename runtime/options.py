"""How likely each offered letter was: its probability, summed over the ways in which the vocabulary can write it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .errors import BundleError

Due = Literal[">", ""]
"""What `<answer` still lacks where a letter may come: its `>`, which one token may hold with the letter, or nothing."""

# Below this share of a step's mass the `>` that was not taken is not worth a step of the model.
_BRANCH_SHARE = 1e-3

END_ANSWER = "</answer>"


def beginning(tag: str) -> str:
    """The pattern of any beginning of `tag`, from nothing to the whole."""
    return "".join(f"(?:{character}" for character in tag) + ")?" * len(tag)


AFTER_LETTER = rf"\s*(?:{beginning(END_ANSWER)}|{END_ANSWER}(?:.*[^\ufffd])?)"
"""The pattern (with DOTALL) of what may follow the letter. U+FFFD is a character of which tokens are still to come."""

# On a vocabulary's own writing, where blanks are letters from U+0100 on; what it lets through is decoded and read.
_MAYBE_LETTER = re.compile(r">?[^!-~]*[A-Z](?:[^!-~]*(?:<.*)?)?", re.DOTALL)
_LETTER = re.compile(rf"(>?)\s*([A-Z]){AFTER_LETTER}", re.DOTALL)


@dataclass(frozen=True)
class Ways:
    """A vocabulary's ways of writing letters.

    `tokens`: what is due and a letter -> the tokens that write it (after a `>` if that is due, with blanks around it,
    with the beginning of `</answer>` behind it). `closer`: the token that is `>` alone.
    """

    tokens: Mapping[tuple[str, str], list[int]]
    closer: int


@lru_cache(maxsize=2)
def ways_of(tokenizer: Tokenizer) -> Ways:
    """Read the vocabulary for letters, once per tokenizer: a later `add_tokens` goes unnoticed.

    Raises `BundleError` for a vocabulary without `>`.
    """
    closer = tokenizer.token_to_id(">")
    if closer is None:
        raise BundleError("the tokenizer has no token '>', so answers cannot be constrained; export the bundle again")
    tokens: dict[tuple[str, str], list[int]] = {}
    # In the order of the ids, since the vocabulary comes in another one each time and equals must be settled alike.
    for symbols, token_id in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]):
        if _MAYBE_LETTER.fullmatch(symbols) and (way := _LETTER.fullmatch(tokenizer.decode([token_id]))):
            tokens.setdefault((way[1], way[2]), []).append(token_id)
    return Ways(tokens, closer)


class Ballot:
    r"""Counts the mass of each offered letter over the steps at which a letter may come.

    With p_t the softmax of step t's logits in float64 (the maximum subtracted, kept as logarithms) and w_1, w_2, ...
    the tokens before the letter that were taken (`>`, blanks):

        mass(X) = sum over t of p_1(w_1) ... p_(t-1)(w_(t-1)) * sum of p_t(k) over the tokens k that write X
        P(X) = mass(X) / sum of mass(Y) over the offered letters Y

    So both ways of writing `>A` count where the text goes by `>`. Where another token than `>` is taken, the way by `>`
    costs a step of its own: see `wants_branch`. Ways by blanks that were not taken are left out.
    """

    def __init__(self, ways: Ways, letters: Sequence[str]) -> None:
        self._letters = list(letters)
        self._closer = ways.closer
        self._tokens = {due: [ways.tokens.get((due, letter), []) for letter in self._letters] for due in (">", "")}
        self._mass = np.full(len(self._letters), -np.inf)
        self._path = 0.0
        self._branch: float | None = None
        self._decided = False

    def best(self, logits: NDArray[np.float32], due: Due) -> int:
        """The likeliest letter's likeliest token. Where a `>` is due, `>` alone if it is likelier than every letter."""
        mass = self._sums(logits.astype(np.float64), due)
        letter = int(np.argmax(mass))
        if due and logits[self._closer] >= mass[letter]:
            return self._closer
        return max(self._tokens[due][letter], key=lambda token_id: logits[token_id])

    def count(self, logits: NDArray[np.float32], due: Due, chosen: int) -> None:
        """Add a step at which a letter may come: its logits [vocab_size], and the token that was taken."""
        logs = _log_softmax(logits)
        mass = self._sums(logs, due)
        self._mass = np.logaddexp(self._mass, self._path + mass)
        if due and chosen != self._closer:
            others = np.logaddexp.reduce(mass)
            if logs[self._closer] > np.log(_BRANCH_SHARE) + np.logaddexp(logs[self._closer], others):
                self._branch = self._path + float(logs[self._closer])
        self._path += float(logs[chosen])
        self._decided = any(chosen in tokens for tokens in self._tokens[due])

    @property
    def wants_branch(self) -> list[int] | None:
        """Tokens not taken (`>`) whose logits the probabilities lack; None where they would change next to nothing.

        They belong behind the history that `count` last saw, without the token chosen there.
        """
        return None if self._branch is None else [self._closer]

    def give_branch(self, logits: NDArray[np.float32]) -> None:
        """The logits [vocab_size] after the tokens of `wants_branch`; without any wanted, nothing happens."""
        if self._branch is not None:
            self._mass = np.logaddexp(self._mass, self._branch + self._sums(_log_softmax(logits), ""))
            self._branch = None

    @property
    def probabilities(self) -> dict[str, float]:
        """Letter -> probability, in the order offered; they add up to 1. Empty before a letter was chosen."""
        if not self._decided:
            return {}
        largest = self._mass.max()
        # All -inf: the model excluded every letter, so it prefers none.
        mass = np.exp(self._mass - largest) if np.isfinite(largest) else np.ones_like(self._mass)
        return dict(zip(self._letters, (mass / mass.sum()).tolist(), strict=True))

    def _sums(self, logs: NDArray[np.float64], due: Due) -> NDArray[np.float64]:
        """The logarithm of each letter's mass at one step; -inf for a letter that no token writes."""
        return np.array([np.logaddexp.reduce(logs[tokens]) for tokens in self._tokens[due]])


def margin(probabilities: Mapping[str, float]) -> float:
    """The difference between the largest and the second largest probability; a lacking one counts as 0."""
    first, second = sorted((0.0, 0.0, *probabilities.values()), reverse=True)[:2]
    return first - second


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    return shifted - np.log(np.exp(shifted).sum())
