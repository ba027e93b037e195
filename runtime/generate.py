"""Greedy decoding: token by token until an end is reached."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .detokenize import TextStream
from .errors import MedVLMError

FinishReason = Literal["end", "answer", "length", "context"]
"""Why decoding stopped: an end token, a closed answer, --max-new-tokens, or a full context."""

STOP_TEXT = "</answer>"

Step = Callable[[int], NDArray[np.float32]]
"""Appends a token and returns the logits [vocab_size] after it."""


@dataclass(frozen=True)
class Token:
    """One new token: its id, the text that it completes, and why decoding ends with it, if it does.

    The texts of all tokens add up to the decoding of all ids.
    """

    id: int
    text: str
    finish_reason: FinishReason | None


def greedy(
    logits: NDArray[np.float32],
    step: Step,
    *,
    tokenizer: Tokenizer,
    end_ids: Collection[int],
    max_new_tokens: int,
    free_slots: int,
) -> Iterator[Token]:
    """Yield the most likely token, again and again.

    logits: [vocab_size] after the prompt. free_slots: how many tokens the cache still takes; the last token of an
    answer needs none. Raises `MedVLMError` where the logits hold NaN, which argmax finds before any number.
    """
    stream = TextStream(tokenizer)
    tail = ""
    for count in range(1, max_new_tokens + 1):
        token_id = int(np.argmax(logits))
        if np.isnan(logits[token_id]):
            raise MedVLMError("the decoder computed NaN instead of numbers; verify the bundle or export it again")
        text = stream.feed(token_id)
        tail = (tail + text)[-len(STOP_TEXT) - len(text) :]
        reason = _finish_reason(token_id in end_ids, STOP_TEXT in tail, count == max_new_tokens, count > free_slots)
        yield Token(token_id, text + stream.flush() if reason else text, reason)
        if reason:
            return
        logits = step(token_id)


def _finish_reason(ended: bool, answered: bool, long: bool, full: bool) -> FinishReason | None:
    if ended:
        return "end"
    if answered:
        return "answer"
    if long:
        return "length"
    return "context" if full else None
