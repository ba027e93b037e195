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
from .looking import Look, answer_letters, answer_looks, looking_loss
from .pool import Sample

# Tokens that decide an answer are few among the many that only carry it, and weigh more for it.
_LETTER_WEIGHT = 5.0
_LOOKING_WEIGHT = 0.3


@dataclass(frozen=True)
class Lesson:
    """A question about a scan with `facts`, and the ids of its prompt and of its answer.

    grids: (height, width) in visual tokens of each scan in the prompt. seen: their features [visual tokens, hidden].
    letters: which tokens of the answer are letters of options. looks: where heads should look.
    """

    facts: Facts
    grids: list[tuple[int, int]]
    seen: torch.Tensor
    question: Question
    prompt: NDArray[np.int64]
    answer: NDArray[np.int64]
    letters: tuple[int, ...]
    looks: list[Look]


def make_lesson(encoder: Encoder, rng: Rng, sample: Sample, seen: torch.Tensor) -> Lesson:
    """A new wording, new options and a new answer for a sample."""
    question = ask(rng, sample.facts, sample.question_type)
    prompt = encoder.prompt(question, sample.grid)
    answer = encoder.response(response(rng, sample.facts, question), len(prompt.ids))
    image = prompt.ids.tolist().index(encoder.image_id)
    looks = answer_looks(
        prompt, answer, question, sample.facts, tuple((image + np.flatnonzero(sample.labels)).tolist())
    )
    letters = tuple(place - len(prompt.ids) for place in answer_letters(answer, question))
    return Lesson(sample.facts, [sample.grid], seen, question, prompt.ids, answer.ids, letters, looks)


def supervised_loss(model: Any, encoder: Encoder, lessons: list[Lesson]) -> tuple[torch.Tensor, dict[str, float]]:
    """The answers' weighted cross-entropy and that of the attention, with shares of tokens and letters predicted."""
    predicted, targets, attentions = answer_logits(model, encoder, lessons)
    starts = np.cumsum([0] + [len(lesson.answer) for lesson in lessons[:-1]])
    letters = torch.tensor([s + i for s, lesson in zip(starts, lessons, strict=True) for i in lesson.letters])
    weights = torch.ones(len(targets)).index_fill(0, letters, _LETTER_WEIGHT)
    spoken = (weights * functional.cross_entropy(predicted, targets, reduction="none")).sum() / weights.sum()
    looked = looking_loss(attentions, [lesson.looks for lesson in lessons])
    right = predicted.argmax(1) == targets
    return spoken + _LOOKING_WEIGHT * looked, {
        "looking": float(looked.detach()),
        "token": float(right.float().mean()),
        "letter": float(right[letters].float().mean()),
    }


def answer_logits(
    model: Any, encoder: Encoder, lessons: list[Lesson]
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """Logits [answer tokens, vocabulary] for every token of the answers, one after another, and the tokens' ids.

    Then the attention [rows, heads, length, length] of each layer. Padding is on the right, where no token looks, so
    there is no mask.
    """
    rows = [np.concatenate([lesson.prompt, lesson.answer]) for lesson in lessons]
    sequences = encoder.sequences(rows, [lesson.grids for lesson in lessons])
    embedded = embed(model, sequences, torch.cat([lesson.seen for lesson in lessons]), encoder.image_id)
    # No other implementation tells its attention.
    model.set_attn_implementation("eager")
    output = model.model.language_model(
        inputs_embeds=embedded,
        position_ids=sequences.positions,
        attention_mask=None,
        use_cache=False,
        output_attentions=True,
    )
    answered = torch.zeros_like(sequences.real)
    for i, lesson in enumerate(lessons):
        answered[i, len(lesson.prompt) : len(rows[i])] = True
    logits = model.lm_head(output.last_hidden_state[:, :-1][answered[:, 1:]])
    return logits, sequences.ids[answered], output.attentions
