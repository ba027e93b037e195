"""How well the model in training does on questions that it never trains on."""

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from ..grading import Grade, grade
from ..questions import TYPES
from .batch import Encoder
from .loop import Measures
from .pool import Sample
from .sample import generate
from .supervised import make_lesson

_BATCH = 50


def held_out_measures(model: Any, encoder: Encoder, samples: list[Sample], seen: list[torch.Tensor]) -> Measures:
    """Greedy answers to one question about each sample, `seen` so: shares of all, and the accuracy of each type."""
    rngs = [np.random.default_rng([99, i]) for i in range(len(samples))]
    lessons = [make_lesson(encoder, *one) for one in zip(rngs, samples, seen, strict=True)]
    grades: list[Grade] = []
    for start in range(0, len(lessons), _BATCH):
        batch = lessons[start : start + _BATCH]
        answers = generate(model, encoder, batch)
        for lesson, ids in zip(batch, answers, strict=True):
            text = encoder.tokenizer.decode(ids.tolist())
            grades.append(grade(text, lesson.question, lesson.facts))
    by_type = defaultdict(list)
    for sample, graded in zip(samples, grades, strict=True):
        by_type[sample.question_type].append(graded.correct)
    return {
        "accuracy": _mean([g.correct for g in grades]),
        "well formed": _mean([g.well_formed for g in grades]),
        "agrees": _mean([g.agrees for g in grades]),
        "truthful": _mean([g.truthful for g in grades]),
        **{name: _mean(by_type[name]) for name in TYPES},
    }


def _mean(values: list[bool]) -> float:
    return float(np.mean(values))
