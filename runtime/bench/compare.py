"""Two models in turns, A B A B: the ratio of each pair, so that what slows the machine slows both."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from .requests import noise_image
from .summary import Summary, aligned, ratio_of_pairs, summarize


class Contender(Protocol):
    """A model that answers a question about an image of noise and tells how long each stage took."""

    name: str

    def ask(self, image: bytes, number: int) -> Mapping[str, float]:
        """Seconds by stage: vision, prefill, first token; and decode, tokens a second."""
        ...


def compare(
    a: Contender, b: Contender, side: int, repetitions: int, tick: Callable[[str], None] = lambda what: None
) -> dict[str, dict[str, Summary]]:
    """Ask both about the same images in turns, after one that is thrown away.

    By stage: the summaries of "a" and of "b", and "ratio", how many times faster a is than b.
    """
    taken: list[tuple[Mapping[str, float], Mapping[str, float]]] = []
    for number in range(repetitions + 1):
        image = noise_image(side, np.random.default_rng(number))
        pair = a.ask(image, number), b.ask(image, number)
        tick(f"{a.name} and {b.name}")
        taken += [pair] if number else []
    stages = [stage for stage in taken[0][0] if stage in taken[0][1]]
    return {stage: _stage(stage, taken) for stage in stages}


def _stage(stage: str, taken: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> dict[str, Summary]:
    a, b = ([pair[i][stage] for pair in taken] for i in (0, 1))
    # Of times the smaller is the better, of rates the larger.
    ratio = ratio_of_pairs(a, b) if stage == "decode" else ratio_of_pairs(b, a)
    return {"a": summarize(a), "b": summarize(b), "ratio": ratio}


def comparison_table(a: str, b: str, stages: Mapping[str, Mapping[str, Summary]]) -> str:
    """For people: each stage of both, and how many times faster `a` is, pair by pair."""
    rows = [("", a, b, "faster by")]
    for stage, found in stages.items():
        quantity = "tokens" if stage == "decode" else "time"
        rows.append((stage, found["a"].text(quantity), found["b"].text(quantity), found["ratio"].text("ratio")))
    return "\n".join(aligned(rows))
