"""Greedy answers of the model in training, many at once."""

import inspect
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextModel

from .batch import Encoder, embed
from .supervised import Lesson

MAX_NEW_TOKENS = 96
# The argument was renamed in transformers 5.24.
_CACHE = "cache" if "cache" in inspect.signature(Qwen2VLTextModel.forward).parameters else "past_key_values"


@torch.no_grad()
def generate(model: Any, encoder: Encoder, lessons: list[Lesson]) -> list[NDArray[np.int64]]:
    """The likeliest ids that follow each lesson's prompt, one at a time, end token included."""
    prompts, grids = [lesson.prompt for lesson in lessons], [lesson.grids for lesson in lessons]
    left = encoder.sequences(prompts, grids, left=True)
    seen = torch.cat([lesson.seen for lesson in lessons])
    embedded, positions, real = embed(model, left, seen, encoder.image_id), left.positions, left.real
    following = positions.amax((0, 2)) + 1
    cache = DynamicCache(config=model.model.language_model.config)
    chosen: list[torch.Tensor] = []
    ended = torch.zeros(len(real), dtype=torch.bool)
    for step in range(MAX_NEW_TOKENS):
        output = model.model.language_model(
            inputs_embeds=embedded, position_ids=positions, attention_mask=real, use_cache=True, **{_CACHE: cache}
        )
        token = _logits(model, encoder, output.last_hidden_state[:, -1]).argmax(-1)
        token = torch.where(ended, encoder.end_id, token)
        chosen.append(token)
        ended |= token == encoder.end_id
        if ended.all():
            break
        embedded = model.get_input_embeddings()(token[:, None])
        positions = (following + step)[None, :, None].expand(3, -1, 1)
        real = torch.cat([real, torch.ones_like(real[:, :1])], 1)
    return [_until_end(row, encoder.end_id) for row in torch.stack(chosen, 1).numpy()]


def _logits(model: Any, encoder: Encoder, hidden: torch.Tensor) -> torch.Tensor:
    """Logits without the image token, which an answer cannot hold: nothing stands behind it."""
    logits = model.lm_head(hidden)
    logits[:, encoder.image_id] = -torch.inf
    return logits


def _until_end(row: NDArray[np.int64], end_id: int) -> NDArray[np.int64]:
    ends = np.flatnonzero(row == end_id)
    return row[: ends[0] + 1] if len(ends) else row
