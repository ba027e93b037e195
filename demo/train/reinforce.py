"""Stage 4: GRPO (Shao et al. 2024, arXiv 2402.03300), as MedVLM-R1 itself was made, on questions not seen before.

Of each question the model writes a group of answers. An answer earns 1 for the right letter and 1 for MedVLM-R1's
form; its advantage is its reward against its group's mean, over the group's deviation. A group whose rewards are all
equal teaches nothing and is left out. Every other answer is used for one update, so the ratio of new to old probability
is 1 and needs no clipping. A penalty keeps the model near the supervised one: the KL divergence is estimated as
r - log r - 1, r the supervised model's probability over this one's.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..grading import grade
from .batch import Encoder
from .pool import Sample
from .sample import generate
from .supervised import Lesson, answer_logits, make_lesson

QUESTIONS = 16
GROUP = 8
TEMPERATURE = 1.0
_KL_WEIGHT = 0.04
_MICRO = 16


@dataclass(frozen=True)
class Rollout:
    """One answer that was sampled, its rewards, and its advantage over its group."""

    lesson: Lesson
    answer: NDArray[np.int64]
    accuracy: float
    format: float
    advantage: float = 0.0


def grpo_losses(
    model: Any, reference: Any, encoder: Encoder, samples: list[Sample], seen: list[torch.Tensor], seed: int, step: int
) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
    """The losses of one step's micro-batches."""
    rng = np.random.default_rng([seed, 2, step])
    chosen = rng.choice(len(samples), QUESTIONS, replace=False)
    lessons = [make_lesson(encoder, rng, samples[i], seen[i]) for i in chosen]
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    rollouts = _rollouts(model, encoder, lessons, generator)
    rewards = {
        "accuracy": float(np.mean([r.accuracy for r in rollouts])),
        "format": float(np.mean([r.format for r in rollouts])),
    }
    # Where every group is even, a few answers still hold the model to the supervised one.
    telling = [r for r in rollouts if r.advantage] or rollouts[:_MICRO]
    for part in np.array_split(np.arange(len(telling)), -(-len(telling) // _MICRO)):
        loss, kl = _policy_loss(model, reference, encoder, [telling[i] for i in part])
        yield loss, {**rewards, "telling": len(telling) / len(rollouts), "kl": kl}


def advantages(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """[questions, group] rewards -> each one's distance from its group's mean, in the group's standard deviations."""
    deviation = rewards.std(1, keepdims=True)
    return (rewards - rewards.mean(1, keepdims=True)) / (deviation + 1e-4)


def _rollouts(model: Any, encoder: Encoder, lessons: list[Lesson], generator: torch.Generator) -> list[Rollout]:
    answers = generate(model, encoder, lessons, repeats=GROUP, temperature=TEMPERATURE, generator=generator)
    repeated = [lesson for lesson in lessons for _ in range(GROUP)]
    grades = [
        grade(encoder.tokenizer.decode(ids.tolist()), lesson.question, lesson.facts)
        for lesson, ids in zip(repeated, answers, strict=True)
    ]
    rewards = np.array([float(g.correct) + float(g.well_formed) for g in grades]).reshape(len(lessons), GROUP)
    return [
        Rollout(lesson, ids, float(g.correct), float(g.well_formed), float(advantage))
        for lesson, ids, g, advantage in zip(repeated, answers, grades, advantages(rewards).ravel(), strict=True)
    ]


def _policy_loss(model: Any, reference: Any, encoder: Encoder, rollouts: list[Rollout]) -> tuple[torch.Tensor, float]:
    """-advantage x probability ratio + weighted KL, averaged over each answer's tokens and over answers; and the KL."""
    logs, lengths = _log_probabilities(model, encoder, rollouts)
    with torch.no_grad():
        reference_logs, _ = _log_probabilities(reference, encoder, rollouts)
    advantage = torch.tensor([r.advantage for r in rollouts], dtype=torch.float32).repeat_interleave(lengths)
    weight = (1 / lengths).repeat_interleave(lengths) / len(rollouts)
    difference = reference_logs - logs
    kl = difference.exp() - difference - 1
    ratio = (logs - logs.detach()).exp()
    return (weight * (_KL_WEIGHT * kl - advantage * ratio)).sum(), float((weight * kl).sum().detach())


def _log_probabilities(model: Any, encoder: Encoder, rollouts: list[Rollout]) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of every token of the answers, one answer after another, and the answers' lengths."""
    lessons = [dataclasses.replace(r.lesson, answer=r.answer) for r in rollouts]
    logits, ids, _ = answer_logits(model, encoder, lessons)
    logs = (logits / TEMPERATURE).log_softmax(-1)
    return logs.gather(1, ids[:, None])[:, 0], torch.tensor([len(r.answer) for r in rollouts])
