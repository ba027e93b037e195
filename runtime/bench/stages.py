"""The measurements themselves: rounds in which the machine's limits and every stage take turns."""

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..decoding import Decoding
from ..model import MedVLM
from ..result import Answer
from .gpu import copy_bandwidth, gpu_gemm_rate
from .machine import Busy, current_rss, gemm_rate, peak_rss, read_bandwidth
from .requests import make_request, noise_image

# Far more than any last-level cache, and quickly read.
_READ_BYTES = 1 << 29
_STEPS = 24


@dataclass(frozen=True)
class Plan:
    """What to measure. sizes: sides of the square images, in pixels. contexts: lengths in tokens to decode at.

    text_tokens: tokens of text in each prompt. new_tokens: tokens to decode after each.
    """

    sizes: tuple[int, ...] = (224, 504, 1024)
    contexts: tuple[int, ...] = (128, 512, 1024, 2048, 4096)
    text_tokens: int = 110
    new_tokens: int = 128
    repetitions: int = 5
    threads: int = 1

    @property
    def main_size(self) -> int:
        """The size that comparisons and the report's plain numbers are of: the second, where there are several."""
        return self.sizes[min(1, len(self.sizes) - 1)]

    @property
    def plain(self) -> Decoding:
        """Greedy decoding with nothing to help it."""
        return Decoding(max_new_tokens=self.new_tokens, constrained=False, max_draft=0)


@dataclass
class Measured:
    """Everything that was measured, one value a round; times in seconds, rates a second.

    answers: by the image's side, of cold questions. warm: of a second question about the same image. steps: by
    context length, the time of single decode steps. token_s: by side, the time of each token after the first.
    """

    read_bandwidth: list[float] = field(default_factory=list)
    gemm_rate: list[float] = field(default_factory=list)
    answers: dict[int, list[Answer]] = field(default_factory=lambda: defaultdict(list))
    warm: dict[int, list[Answer]] = field(default_factory=lambda: defaultdict(list))
    token_s: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    steps: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    busy: list[float] = field(default_factory=list)


def measure_rounds(model: MedVLM, plan: Plan, tick: Callable[[str], None] = lambda what: None) -> Measured:
    """Measure `plan.repetitions` rounds after one that is thrown away; `tick` is told what was done."""
    measured = Measured()
    for number in range(plan.repetitions + 1):
        one = Measured() if number == 0 else measured
        rng = np.random.default_rng(number)
        busy = Busy()
        for what in _round(model, plan, rng, one):
            tick(what)
        if (share := busy.share()) is not None:
            one.busy.append(share)
    return measured


def _round(model: MedVLM, plan: Plan, rng: np.random.Generator, measured: Measured) -> Iterator[str]:
    measured.read_bandwidth.append(float(np.median(_bandwidth(model, plan))))
    yield "read bandwidth"
    rates = gemm_rate(plan.threads, repetitions=5) if model.gpu is None else gpu_gemm_rate(model.gpu, repetitions=5)
    measured.gemm_rate.append(float(np.median(rates)))
    yield "fp32 GEMM"
    for side in plan.sizes:
        image = noise_image(side, rng)
        ask_cold_and_warm(model, image, side, plan, rng, measured)
        yield f"{side}x{side}"
    for length in plan.contexts:
        measured.steps[length] += decode_steps(model, length, _STEPS)
        yield f"{length} tokens"


def _bandwidth(model: MedVLM, plan: Plan) -> list[float]:
    if model.gpu is not None:
        return copy_bandwidth(model.gpu, repetitions=3)
    return read_bandwidth(plan.threads, size=_READ_BYTES, repetitions=3)


def measure_memory(model: MedVLM, plan: Plan) -> dict[str, int | None]:
    """Bytes of memory once loaded, at the peak of loading and of all questions so far, and afterwards.

    To be called before anything else takes memory: the machine's read bandwidth wants a large buffer.
    """
    memory = {"loaded": current_rss(), **_gpu_memory(model, "loaded")}
    for side in plan.sizes:
        rng = np.random.default_rng(side)
        ask_cold_and_warm(model, noise_image(side, rng), side, plan, rng, Measured())
        memory[f"peak up to {side}x{side}"] = peak_rss()
        memory |= _gpu_memory(model, f"after {side}x{side}")
    memory["steady"] = current_rss()
    return memory


def _gpu_memory(model: MedVLM, when: str) -> dict[str, int | None]:
    """What is taken of the GPU's memory, by everything on it."""
    if model.gpu is None:
        return {}
    free, total = model.gpu.memory()
    return {f"GPU {when}": total - free}


def ask_cold_and_warm(
    model: MedVLM, image: bytes, side: int, plan: Plan, rng: np.random.Generator, measured: Measured
) -> None:
    """Ask about a new image, then another question about it, plainly decoded."""
    answer, moments = timed_answer(model, image, plan.text_tokens, plan.plain, rng)
    measured.answers[side].append(answer)
    measured.token_s[side] += np.diff(moments).tolist()
    short = dataclasses.replace(plan.plain, max_new_tokens=1)
    measured.warm[side].append(timed_answer(model, image, plan.text_tokens, short, rng)[0])


def timed_answer(
    model: MedVLM, image: bytes, text_tokens: int, decoding: Decoding, rng: np.random.Generator
) -> tuple[Answer, Sequence[float]]:
    """The answer to a random question about `image`, and when each of its tokens came, in seconds."""
    started = time.perf_counter()
    request = make_request(model, image, text_tokens, rng)
    stream = model.run(request, decoding, preprocess_s=time.perf_counter() - started)
    return stream.finish(), stream.moments


def decode_steps(model: MedVLM, length: int, steps: int) -> list[float]:
    """The times of `steps` decode steps behind `length` tokens; none where the model does not hold so many."""
    if length + steps > model.max_length:
        return []
    decoder = model.new_sequence()
    decoder.reserve(length + steps)
    decoder.pretend(length)
    dims = model.manifest.text
    half = np.ones((steps, dims.head_size // 2), np.float32)
    decoder.write_rotary(length, half, 0 * half)
    times = []
    for token_id in range(steps):
        started = time.perf_counter()
        decoder.extend([token_id])
        times.append(time.perf_counter() - started)
    # The first makes the binding.
    return times[1:]
