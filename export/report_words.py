"""The figures of a whole model with what each means, for a reader who has not met them before."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..runtime.comparison import Comparison

# The usual bound below which a difference is called unlikely to be chance.
_UNLIKELY = 0.05
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Figure:
    """A figure with its name and, in a plain sentence or two, what it says."""

    name: str
    value: str
    meaning: str


def figures(found: Comparison) -> Iterator[Figure]:
    """What `found` says of the bundle (its B) against the checkpoint in fp32 (its A), what matters most first."""
    yield Figure(
        "Right answers in full precision",
        percent(found.accuracy_a),
        f"The share of the {found.questions} questions that the checkpoint answers with the right letter when nothing "
        "is quantized (fp32: 32 bits for each number).",
    )
    yield Figure("Right answers of this bundle", percent(found.accuracy_b), "The same for the bundle.")
    yield Figure(
        "Changed letters (flips)",
        f"{found.flips} of {found.questions}",
        "Questions to which the two give different letters, be they right or wrong. All of them are shown below.",
    )
    yield Figure(
        "Right answers lost / won",
        f"{found.lost} / {found.won}",
        "Right in full precision and wrong in the bundle, and the reverse. Where they are equal, accuracy hides both.",
    )
    yield Figure("Chance of that (McNemar's exact p)", number(found.mcnemar_p), _chance(found))
    yield Figure(
        "Same next word (top-1 agreement)",
        percent(found.top1_agreement, 2),
        f"At each of the {found.tokens} tokens (words and pieces of words) of full precision's answers: how often the "
        "bundle finds the same token the likeliest to come next.",
    )
    yield Figure("Distance of the probabilities (KL divergence), mean", number(found.kl), _distance(found.kl))
    yield Figure(
        "KL divergence, 95th percentile",
        number(found.kl_p95),
        "At 95 of 100 tokens the two are no further apart than this: what the mean hides.",
    )
    yield Figure("KL divergence, largest", number(found.kl_max), "At the one token where the two are furthest apart.")


def _chance(found: Comparison) -> str:
    if found.lost == found.won == 0:
        return "No right answer was lost or won, so there is nothing that could be chance."
    rule = (
        "How likely a split of lost and won at least so uneven would be if each were a coin's toss. The smaller, the "
        "less it looks like chance."
    )
    if found.mcnemar_p >= _UNLIKELY:
        return f"{rule} Here chance is enough to explain it; a small loss would take more questions to be seen."
    verdict = "gives fewer right answers" if found.lost > found.won else "gives more right answers"
    return f"{rule} Here it is below {_UNLIKELY}: the bundle most likely {verdict} than full precision."


def _distance(kl: float) -> str:
    """KL(A || B) is the mean of log(p_A / p_B) under A: B gives a token exp(-KL) of A's probability, on average."""
    kept = 100 * math.exp(-kl)
    share = "more than 99.99" if kept > 99.99 else f"{kept:.3g}" if kept < 99 else f"{kept:.2f}"
    if kl == 0:
        return "How far apart the two are in how likely they find each token to come next, in nats. 0: not at all."
    return (
        "How far apart the two are in how likely they find each token to come next, in nats; 0 would be not at all. "
        f"Here the bundle gives what full precision would write {share} % of the probability that full precision gives "
        "it (geometric mean)."
    )


def percent(share: float, digits: int = 1) -> str:
    """A share, 0 to 1, in percent."""
    return f"{100 * share:.{digits}f} %"


def number(value: float) -> str:
    """Three digits of a number, 0 or more; with a power of ten where it is small (or very large)."""
    digits, is_small, power = f"{value:.3g}".partition("e")
    if not is_small:
        return digits
    ten = f"10{str(int(power)).translate(_SUPERSCRIPTS)}"
    return ten if digits == "1" else f"{digits} \u00d7 {ten}"
