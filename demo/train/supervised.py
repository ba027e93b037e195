"""Stage 3: the decoder learns to reason and answer in MedVLM-R1's form.

The vision encoder rests from here on, so each scan is encoded once for the whole stage.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ..questions import Facts, Question, ask, response
from ..scans.canvas import Rng
from .batch import Encoder, embed
from .pool import Sample

# The letter is one token among forty and the last to be learned: with its natural weight, after a thousand steps the
# reasoning named the right option and the letter was still guessed.
_LETTER_WEIGHT = 10.0


@dataclass(frozen=True)
class Lesson:
    """A question about a scan with `facts`, and the ids of its prompt and of its answer.

    grids: (height, width) in visual tokens of each scan in the prompt. seen: their features [visual tokens, hidden].
    """

    facts: Facts
    grids: list[tuple[int, int]]
    seen: torch.Tensor
    question: Question
    prompt: NDArray[np.int64]
    answer: NDArray[np.int64]


def make_lesson(encoder: Encoder, rng: Rng, sample: Sample, seen: torch.Tensor) -> Lesson:
    """A new wording, new options and a new answer for a sample."""
    question = ask(rng, sample.facts, sample.question_type)
    answer = encoder.response(response(rng, sample.facts, question))
    return Lesson(sample.facts, [sample.grid], seen, question, encoder.prompt(question, sample.grid), answer)


def supervised_loss(model: Any, encoder: Encoder, lessons: list[Lesson]) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted cross-entropy of the answers' tokens, and the shares of tokens and of letters that are the likeliest."""
    predicted, targets = answer_logits(model, encoder, lessons)
    ends = torch.tensor([len(lesson.answer) for lesson in lessons]).cumsum(0)
    letters = ends - encoder.after_letter - 1
    weights = torch.ones(len(targets)).index_fill(0, letters, _LETTER_WEIGHT)
    loss = (weights * functional.cross_entropy(predicted, targets, reduction="none")).sum() / weights.sum()
    right = predicted.argmax(1) == targets
    return loss, {"token": float(right.float().mean()), "letter": float(right[letters].float().mean())}


def answer_logits(model: Any, encoder: Encoder, lessons: list[Lesson]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [answer tokens, vocabulary] for every token of the answers, one after another, and the tokens' ids.

    Padding is on the right, where no token looks, so there is no mask.
    """
    rows = [np.concatenate([lesson.prompt, lesson.answer]) for lesson in lessons]
    sequences = encoder.sequences(rows, [lesson.grids for lesson in lessons])
    embedded = embed(model, sequences, torch.cat([lesson.seen for lesson in lessons]), encoder.image_id)
    output = model.model.language_model(
        inputs_embeds=embedded, position_ids=sequences.positions, attention_mask=None, use_cache=False
    )
    answered = torch.zeros_like(sequences.real)
    for i, lesson in enumerate(lessons):
        answered[i, len(lesson.prompt) : len(rows[i])] = True
    return model.lm_head(output.last_hidden_state[:, :-1][answered[:, 1:]]), sequences.ids[answered]
