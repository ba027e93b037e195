"""How far two distributions lie apart, how sure a share is, and whether a difference may be chance."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def kl_divergence(logits_a: NDArray[np.float32], logits_b: NDArray[np.float32]) -> NDArray[np.float64]:
    """How far `b`'s distributions are from `a`'s: KL(a || b) = sum p_a (log p_a - log p_b), in nats.

    logits_a, logits_b: [n, vocab_size] float32, any constant added to a row. Returns [n] float64, 0 or more; infinite
    where `b` gives no probability at all (a logit of -inf) to what `a` may say. Computed in float64 and row by row, so
    that a large vocabulary takes no more memory than a few of its rows. (Kullback and Leibler, 1951)
    """
    if logits_a.shape != logits_b.shape:
        raise ValueError(f"logits of shapes {logits_a.shape} and {logits_b.shape} cannot be compared")
    return np.array([_divergence(a, b) for a, b in zip(logits_a, logits_b, strict=True)], np.float64)


def _divergence(logits_a: NDArray[np.float32], logits_b: NDArray[np.float32]) -> float:
    log_a, log_b = _log_softmax(logits_a), _log_softmax(logits_b)
    # What has no probability adds nothing, and 0 (-inf - x) would be no number.
    possible = log_a != -np.inf
    log_a, log_b = log_a[possible], log_b[possible]
    divergence = float(np.sum(np.exp(log_a) * (log_a - log_b)))
    # Of equal distributions rounding may leave something below 0. What is no number stays none.
    return 0.0 if divergence < 0 else divergence


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The logarithms of the probabilities [vocab_size]; the largest is taken off first, so that nothing overflows."""
    shifted = logits.astype(np.float64) - np.float64(logits.max())
    return shifted - np.log(np.sum(np.exp(shifted)))


# The quantile of the normal distribution that leaves 2.5 % above it.
_TWO_SIDED_95 = 1.959963984540054


def wilson_interval(successes: int, trials: int, z: float = _TWO_SIDED_95) -> tuple[float, float]:
    """The shares, 0 to 1, between which the true one lies with 95 % confidence, by Wilson's score interval.

    They are the two p for which the share that was seen is z standard errors sqrt(p (1 - p) / trials) away; unlike the
    textbook's interval it holds for few trials and for shares of 0 and 1, and never leaves 0 to 1. (Wilson, 1927)
    Raises `ValueError` where there were no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials} is no share")
    share, spread = successes / trials, z * z / trials
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    # At its ends rounding may leave something beyond 0 or 1, where the bounds are 0 and 1 exactly.
    low = 0.0 if successes == 0 else (middle - half) / (1 + spread)
    high = 1.0 if successes == trials else (middle + half) / (1 + spread)
    return low, high


def majority_share(letters: Sequence[str]) -> float:
    """The share, 0 to 1, of the commonest letter: the accuracy of always giving it. letters: at least one."""
    return Counter(letters).most_common(1)[0][1] / len(letters)


def mcnemar_exact(lost: int, won: int) -> float:
    """McNemar's exact test: the chance of a split at least so uneven if each change went either way with 1/2.

    lost, won: right answers that became wrong, and wrong ones that became right. Two-sided. (McNemar, 1947)
    """
    n, k = lost + won, min(lost, won)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
