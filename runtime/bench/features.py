"""What each part of the engine is worth: the same questions with it on and off, in turns."""

import dataclasses
import time
from dataclasses import dataclass

import numpy as np

from ..decoding import DEFAULT_DECODING, Decoding
from ..model import MedVLM
from ..result import Answer
from ..sampling import Sampling
from .requests import make_request, noise_image
from .stages import Plan
from .summary import Summary, ratio_of_pairs

BATCHES = (2, 4, 8)
_OPTIONS = {"A": "Nothing", "B": "A finding", "C": "An artefact"}


@dataclass(frozen=True)
class Feature:
    """A part of the engine. speed: tokens a second with it over without it, pair by pair. note: what else to know."""

    name: str
    speed: Summary
    note: str = ""


def measure_features(model: MedVLM, plan: Plan) -> list[Feature]:
    """Prompt lookup, constrained answers and sampling against plain greedy decoding, about the first image size."""
    # Neither drafts nor batches are taken on a GPU.
    if model.gpu is not None:
        return []
    plain = plan.plain
    features = []
    for name, decoding, describe in (
        ("prompt lookup", dataclasses.replace(plain, max_draft=DEFAULT_DECODING.max_draft), _acceptance),
        ("constrained answer", dataclasses.replace(plain, constrained=True), None),
        ("sampling, top-k 50, top-p 0.9", dataclasses.replace(plain, sampling=Sampling(0.7, 50, 0.9)), None),
    ):
        with_it, without = [], []
        for number in range(plan.repetitions):
            image = noise_image(plan.sizes[0], np.random.default_rng(number))
            with_it.append(_ask(model, image, decoding, plan))
            without.append(_ask(model, image, plain, plan))
        note = describe(with_it) if describe else ""
        features.append(Feature(name, ratio_of_pairs(_rates(with_it), _rates(without)), note))
    return [*features, *(_batch(model, plan, size) for size in BATCHES)]


def _batch(model: MedVLM, plan: Plan, size: int) -> Feature:
    """Decode steps of `size` sequences against steps of one, in turns, behind as many tokens as a prompt has."""
    length = plan.text_tokens + 64
    capacity = length + plan.new_tokens
    one, several = [], []
    batch, single = (model.batch_decoder(sequences, capacity, 0) for sequences in (size, 1))
    for decoder in (batch, single):
        decoder.pretend(length)
    for number in range(plan.new_tokens):
        for decoder, times in ((single, one), (batch, several)):
            started = time.perf_counter()
            decoder.step([number] * len(decoder.lengths))
            times.append(time.perf_counter() - started)
    # The first makes the binding.
    speed = ratio_of_pairs([size / s for s in several[1:]], [1 / s for s in one[1:]])
    return Feature(f"batch of {size}", speed, "tokens of all sequences together")


def _ask(model: MedVLM, image: bytes, decoding: Decoding, plan: Plan) -> Answer:
    request = make_request(model, image, plan.text_tokens, np.random.default_rng(0))
    return model.run(dataclasses.replace(request, options=_OPTIONS), decoding).finish()


def _rates(answers: list[Answer]) -> list[float]:
    """Tokens after the first, a second; 0 where there is none."""
    return [answer.timings.decode_tokens_per_s or 0.0 for answer in answers]


def _acceptance(answers: list[Answer]) -> str:
    drafted, accepted = (sum(getattr(answer, f"{n}_tokens") for answer in answers) for n in ("drafted", "accepted"))
    new = sum(answer.new_tokens for answer in answers)
    return f"{accepted} of {drafted} drafted tokens right, {accepted / new:.0%} of the text"
