"""Which token comes next: the most likely one, or one drawn as transformers' `generate` draws it.

The order is transformers': repetition penalty, temperature, top-k, top-p, a draw. Scores stay float32 as they are
there, so that the same tokens tie; probabilities are float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, MedVLMError
from .logits import DeviceLogits, Logits


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the defaults take the most likely one.

    temperature: 0 takes the most likely token, or 0.001 to 1000. top_k: draw among this many tokens and what ties with
    the last; 0 is off. top_p: draw among the fewest most likely tokens with this share of the probability; 1 is off.
    repetition_penalty: 0.01 to 100; above 1 makes what was said before less likely; 1 is off. seed: of the draws.
    The outer bounds keep float32 scores from overflowing. Raises `InputError` for any other value.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (_is_number(self.temperature) and (self.temperature == 0 or 0.001 <= self.temperature <= 1000)):
            raise InputError(
                f"temperature is {self.temperature!r}; give 0 to take the most likely token, or 0.001 to 1000 to draw"
            )
        if not (is_whole(self.top_k) and self.top_k >= 0):
            raise InputError(f"top_k is {self.top_k!r}; give a number of tokens, or 0 to draw among all")
        if not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise InputError(f"top_p is {self.top_p!r}; give a share above 0, up to 1 to draw among all")
        if not (_is_number(self.repetition_penalty) and 0.01 <= self.repetition_penalty <= 100):
            raise InputError(f"repetition_penalty is {self.repetition_penalty!r}; give 0.01 to 100; 1 is no penalty")
        if not (is_whole(self.seed) and self.seed >= 0):
            raise InputError(f"seed is {self.seed!r}; give a whole number, 0 or more")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """Whether a value is a whole number: of type int, and not True or False."""
    return isinstance(value, int) and not isinstance(value, bool)


class Sampler:
    """Chooses the tokens of one answer. It owns the random numbers: one for each token that is drawn."""

    def __init__(self, sampling: Sampling, prompt_ids: NDArray[np.int64], stream: int = 0) -> None:
        """Start an answer to a prompt.

        prompt_ids: [tokens], what the repetition penalty counts as said. stream: 0 or more; two streams of one seed are
        independent, as votes on one question have to be.
        """
        self._sampling = sampling
        self._prompt_ids = np.unique(prompt_ids)
        # A spawn key, because the entropies [seed, stream] of a large seed and a small one can be the same words.
        self._random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(sampling.seed, spawn_key=(stream,))))

    def __call__(self, logits: Logits, new_ids: Sequence[int]) -> int:
        """The token after the prompt and `new_ids`, the answer so far. logits: [vocab_size], left as they are.

        Raises `MedVLMError` where the logits are no numbers.
        """
        if isinstance(logits, DeviceLogits):
            if self._sampling.temperature == 0 and self._sampling.repetition_penalty == 1:
                _check_largest(np.float32(logits.largest))
                return logits.likeliest
            logits = np.asarray(logits)
        if self._sampling.repetition_penalty != 1:
            said = np.concatenate([self._prompt_ids, np.asarray(new_ids, np.int64)])
            logits = penalized(logits, said, self._sampling.repetition_penalty)
        if self._sampling.temperature == 0:
            return most_likely(logits)
        ids, shares = probabilities(logits, self._sampling)
        return int(ids[_draw(shares, self._random.random())])


def most_likely(logits: NDArray[np.float32]) -> int:
    """The token of the largest of `logits` [vocab_size], the first of equals.

    Raises `MedVLMError` where the logits are no numbers.
    """
    token_id = int(np.argmax(logits))
    _check_largest(logits[token_id])
    return token_id


def penalized(logits: NDArray[np.float32], said: NDArray[np.int64], penalty: float) -> NDArray[np.float32]:
    """A copy of `logits` [vocab_size] in which the tokens of `said` are less likely for a `penalty` above 1.

    A positive logit is divided by the penalty and a negative one multiplied, once however often the token was said
    (section 4.1 of CTRL, https://arxiv.org/abs/1909.05858, and transformers' RepetitionPenaltyLogitsProcessor).
    """
    said = said[said < logits.size]
    scores = logits.copy()
    before = logits[said]
    scores[said] = np.where(before < 0, before * np.float32(penalty), before / np.float32(penalty))
    return scores


def probabilities(logits: NDArray[np.float32], sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens [n] that may be drawn, in ascending order, and their probabilities [n].

    logits: [vocab_size]. Temperature (not 0), top-k and top-p are applied, in this order; the penalty is not.
    Raises `MedVLMError` where the logits are no numbers.
    """
    scores: NDArray[np.float32] = np.divide(logits, sampling.temperature, dtype=np.float32)
    _check_largest(scores.max())
    ids = _top_k(scores, sampling.top_k)
    scores = scores[ids]
    shares = _softmax(scores)
    if sampling.top_p < 1:
        kept = _top_p(scores, shares, sampling.top_p)
        ids, shares = ids[kept], shares[kept]
        shares /= shares.sum()
    return ids, shares


def _check_largest(score: np.float32) -> None:
    """Raise `MedVLMError` where the largest score is none; argmax and max find NaN before any number."""
    if not np.isfinite(score):
        what = "NaN" if np.isnan(score) else "infinity"
        raise MedVLMError(f"the decoder computed {what} instead of numbers; verify the bundle or export it again")


def _top_k(scores: NDArray[np.float32], top_k: int) -> NDArray[np.int64]:
    """The tokens that score no less than the `top_k`-th; ties make them more, as in transformers' TopKLogitsWarper."""
    if not 0 < top_k < scores.size:
        return np.arange(scores.size)
    rank = scores.size - top_k
    return np.flatnonzero(scores >= np.partition(scores, rank)[rank])


def _softmax(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    shares = scores.astype(np.float64)
    shares -= shares.max()
    np.exp(shares, out=shares)
    shares /= shares.sum()
    return shares


def _top_p(scores: NDArray[np.float32], shares: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Where the fewest tokens stand whose shares add up to `top_p`, as in transformers' TopPLogitsWarper.

    Of equals the first stay, so that the smallest top-p is greedy; transformers' sort leaves open which. Tokens with
    less than (1 - top_p) / 2n each have less than 1 - top_p together: none is kept, and only the others are sorted.
    """
    likely = np.flatnonzero(shares > (1 - top_p) / (2 * shares.size))
    # By score: shares as small as rounding are equal where their scores are not.
    order = likely[np.argsort(-scores[likely], kind="stable")]
    count = int(np.searchsorted(np.cumsum(shares[order]), top_p)) + 1
    return np.sort(order[:count])


def _draw(shares: NDArray[np.float64], uniform: float) -> int:
    """The inverse of the cumulative distribution at `uniform`, in [0, 1): never a token of share 0."""
    cumulative = np.cumsum(shares)
    # Rounding leaves the sum beside 1; divided by itself it is 1, which no uniform number reaches.
    cumulative /= cumulative[-1]
    return int(np.searchsorted(cumulative, uniform, side="right"))
