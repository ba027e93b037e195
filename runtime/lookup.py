"""Drafts for speculative greedy decoding by prompt lookup: what followed the last tokens when they stood before."""

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

DECODE_COSTS = (1.0, 1.2, 1.45, 1.7, 2.0, 2.3, 2.6, 2.9)
"""The time of one decoder call of 1, 2, ... 8 tokens over that of a call of 1, as measured."""

# The n-grams looked up, longest first. Single tokens do not pay: what follows "the" or "," says little, and the trials
# that find this out use up the budget of longer matches. Simulated with the costs above, on random tokens as frequent
# as in prose of which 40 % are quoted from the prompt, 12 at a time, they take the speed-up from 1.20 down to 1.09;
# 4-grams add less than 0.01.
_SIZES = (3, 2)
# A draft is tried though it may not pay as long as the budget lasts. It is counted in calls of 1 token: it starts at
# _CREDIT, each new token adds _EARNED, and each draft adds what it saved or takes what it lost, up to _CREDIT again.
_CREDIT = 3.0
_EARNED = 0.01
# The estimate of the acceptance: where it starts, and how far each checked token moves it.
_FIRST_ESTIMATE = 0.5
_RATE = 0.15


def best_draft_length(acceptance: float, costs: Sequence[float]) -> int:
    """The length k, 0 to len(costs) - 1, of the draft that yields most tokens per time; the shortest of equals.

    acceptance: the probability p, 0 to 1, that the next token of a draft is right if those before it were.
    costs: the time of one call of 1, 2, ... tokens, in any unit.
    A draft of k tokens is checked by one call of k + 1. Of it come 1 + p + ... + p^k = (1 - p^(k+1)) / (1 - p) tokens
    on average, the call's own included: equation 1 of Leviathan, Kalman and Matias, "Fast Inference from Transformers
    via Speculative Decoding" (2023). They divide it by the time of the model that drafts; here drafts are free and
    the longer call is not, so it is divided by costs[k].
    """
    best, best_rate, expected, all_right = 0, 0.0, 0.0, 1.0
    for length, cost in enumerate(costs):
        expected += all_right
        all_right *= acceptance
        if expected / cost > best_rate:
            best, best_rate = length, expected / cost
    return best


class PromptLookup:
    """Drafts the next tokens from the history: the prompt, and the tokens fed since.

    The history's last 3 tokens, else its last 2, are looked up where they stood last, and what followed there is the
    draft (prompt lookup decoding, Saxena 2023). Where that runs into the history's end it goes on in the draft
    itself, so that a loop of any period is drafted at full length.

    Each n-gram size has its own running estimate of the acceptance, from which `best_draft_length` takes the length.
    A size that does not pay is still tried with 1 token, because text may begin to repeat. What drafts lose comes out
    of a budget; once it is spent, they back off to what 1 % of the new tokens' time allows. So whatever the text,
    decoding n tokens takes no longer than 1.01 n + 3 calls of 1 token. Time saved fills the budget up to where it
    started and no further: a good stretch does not pay for a long bad one.

    drafted, accepted: the tokens that `record` was told of so far.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int] | NDArray[np.int64],
        max_draft: int,
        *,
        ignored: int | None = None,
        costs: Sequence[float] = DECODE_COSTS,
    ) -> None:
        """prompt_ids: [tokens]. ignored: the token that stands for images, which says nothing of the text around it.

        costs: the time of one call of 1, 2, ... max_draft + 1 or more tokens, in any unit.
        Raises ValueError where max_draft is negative or costs are missing for it.
        """
        if not 0 <= max_draft < len(costs):
            raise ValueError(f"drafts of {max_draft} tokens need the costs of 1 to {max_draft + 1} tokens")
        self.drafted = 0
        self.accepted = 0
        self._ignored = ignored
        self._costs = [cost / costs[0] for cost in costs[: max_draft + 1]]
        self._budget = _CREDIT
        self._estimates: dict[int, float] = dict.fromkeys(_SIZES, _FIRST_ESTIMATE)
        # The n-gram size and the length of the draft that is not recorded yet.
        self._size, self._length = _SIZES[0], 0
        self._history: list[int] = []
        self._following: dict[tuple[int, ...], int] = {}
        for token_id in np.asarray(prompt_ids, np.int64).tolist():
            self._append(token_id)

    def feed(self, token_id: int) -> None:
        """Append a token that was decoded: an accepted one of a draft, or the model's own."""
        self._append(token_id)
        self._budget += _EARNED

    def draft(self) -> list[int]:
        """The tokens that may follow, at most `max_draft`; none without a match, or while trying does not pay."""
        self._length = 0
        affordable = list(takewhile(lambda cost: cost - 1 <= self._budget, self._costs))
        if len(affordable) < 2:
            return []
        for size in _SIZES:
            start = self._following.get(tuple(self._history[-size:]))
            if start is not None:
                draft = self._copy(start, max(best_draft_length(self._estimates[size], affordable), 1))
                self._size, self._length = size, len(draft)
                return draft
        return []

    def record(self, drafted: int, accepted: int) -> None:
        """Say that `drafted` tokens of the last draft were checked in one call, and the first `accepted` were right.

        Raises ValueError unless 0 <= accepted <= drafted <= the length of the last draft, which counts once.
        """
        if not 0 <= accepted <= drafted <= self._length:
            raise ValueError(f"{accepted} of {drafted} tokens cannot be right of a draft of {self._length}")
        self._length = 0
        self.drafted += drafted
        self.accepted += accepted
        self._budget = min(self._budget + 1 + accepted - self._costs[drafted], _CREDIT)
        # Each right token moves the estimate towards 1, and the first wrong one towards 0; those after it say nothing.
        estimate = 1 - (1 - self._estimates[self._size]) * (1 - _RATE) ** accepted
        self._estimates[self._size] = estimate if accepted == drafted else estimate * (1 - _RATE)

    def _append(self, token_id: int) -> None:
        """Index the n-grams that `token_id` follows, then append it: the history's own end is thus never found."""
        if token_id != self._ignored:
            for size in _SIZES:
                gram = tuple(self._history[-size:])
                if len(gram) == size and self._ignored not in gram:
                    self._following[gram] = len(self._history)
        self._history.append(token_id)

    def _copy(self, start: int, length: int) -> list[int]:
        """The `length` tokens of the history from `start` on, as far as the first ignored one."""
        draft: list[int] = []
        for place in range(start, start + length):
            beyond = place - len(self._history)
            token_id = self._history[place] if beyond < 0 else draft[beyond]
            if token_id == self._ignored:
                break
            draft.append(token_id)
        return draft
