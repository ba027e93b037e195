"""Prompts of several turns, and with another system message.

A bundle holds its chat template's form of one turn (`PromptParts`), which says how several are written only where it is
ChatML: `<|im_start|>ROLE`, a newline, the text, `<|im_end|>`, a newline. Every Qwen2-VL checkpoint's is. MedVLM-R1 was
trained on single questions: whatever follows an earlier answer is further from what it knows.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .errors import InputError
from .images import LoadedImage
from .manifest import PromptParts
from .prompt import render_prompt

_OPEN, _CLOSE = "<|im_start|>{role}\n", "<|im_end|>\n"
_SYSTEM, _USER, _ASSISTANT = (_OPEN.format(role=role) for role in ("system", "user", "assistant"))
_PREFIX = re.compile(f"(?:{re.escape(_SYSTEM)}.*?{re.escape(_CLOSE)})?{re.escape(_USER)}", re.DOTALL)

WrittenTurn: TypeAlias = tuple[int, str, str]
"""An earlier turn as it is written: the number of its images, its text, its answer."""


@dataclass(frozen=True)
class Exchange:
    """An earlier turn: the images that came with its question, in order, the question, and what was answered."""

    images: tuple[LoadedImage, ...]
    question: str
    answer: str


def render_turns(
    parts: PromptParts, earlier: Sequence[WrittenTurn], images: int, text: str, system: str | None = None
) -> str:
    """The whole prompt: earlier turns, then the one with `images` images before `text`.

    system: instead of the template's own system message; None leaves that. Raises `InputError` where the bundle's
    template is not ChatML and there is more to write than one turn.
    """
    prefix = parts.prefix
    if earlier or system is not None:
        _check_chatml(parts)
    if system is not None:
        prefix = _SYSTEM + system + _CLOSE + _USER
    written = "".join(
        parts.image * count + question + parts.suffix + answer + _CLOSE + _USER for count, question, answer in earlier
    )
    return render_prompt(dataclasses.replace(parts, prefix=prefix + written), text, images)


def _check_chatml(parts: PromptParts) -> None:
    if not _PREFIX.fullmatch(parts.prefix) or parts.suffix != _CLOSE + _ASSISTANT:
        raise InputError("this bundle's prompt has one turn and no system message of its own; ask a single question")
