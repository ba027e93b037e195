"""Prompts of several turns: transformers' rendering of the hub's own chat template is the reference."""

from typing import Any

import numpy as np
import pytest
from medvlm.export.chat_template import QWEN2_VL_CHAT_TEMPLATE, prompt_parts
from medvlm.runtime import MedVLM
from medvlm.runtime.errors import InputError
from medvlm.runtime.images import load_image
from medvlm.runtime.manifest import PromptParts
from medvlm.runtime.processor import Processor
from medvlm.runtime.prompt import QUESTION_TEMPLATE
from medvlm.runtime.turns import Exchange, render_turns
from transformers import PreTrainedTokenizerFast

PARTS = prompt_parts(QWEN2_VL_CHAT_TEMPLATE)


def message(role: str, text: str, images: int = 0) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}


def reference(processor: Processor, messages: list[dict[str, Any]]) -> str:
    prompt = PreTrainedTokenizerFast(tokenizer_object=processor.tokenizer).apply_chat_template(
        messages, chat_template=QWEN2_VL_CHAT_TEMPLATE, add_generation_prompt=True, tokenize=False
    )
    assert isinstance(prompt, str)
    return prompt


@pytest.mark.parametrize("system", [None, "Answer in one word.", ""])
@pytest.mark.parametrize("earlier", [[], [(1, "What?", "A <b>.")], [(0, "Hi.\n", "Hello."), (2, " And? ", "")]])
def test_a_prompt_is_what_transformers_writes(
    tiny_model: MedVLM, earlier: list[tuple[int, str, str]], system: str | None
) -> None:
    messages = [] if system is None else [message("system", system)]
    for images, question, answer in earlier:
        messages += [message("user", question, images), message("assistant", answer)]
    messages.append(message("user", "So?", 1))
    assert render_turns(PARTS, earlier, 1, "So?", system) == reference(tiny_model.processor, messages)


def test_a_request_holds_the_images_of_all_turns_in_order(tiny_model: MedVLM) -> None:
    sizes = ((56, 56), (84, 56), (56, 112))
    images = [load_image(np.full((*size, 3), index * 40, np.uint8)) for index, size in enumerate(sizes)]
    question = "Which?\nA) x\nB) y"
    request = tiny_model.processor.prepare(
        images[2:], "So?", earlier=[Exchange((images[0], images[1]), question, "B")], system="Be brief."
    )
    templated = QUESTION_TEMPLATE.replace("{Question}", question)
    messages = [
        message("system", "Be brief."),
        message("user", templated, 2),
        message("assistant", "B"),
        message("user", "So?", 1),
    ]
    assert request.prompt == reference(tiny_model.processor, messages)
    assert [picture.image for picture in request.images] == images
    assert request.visual_tokens == 4 + 6 + 8
    assert request.options == {}, "those of the last question"


def test_another_template_has_one_turn_alone() -> None:
    parts = PromptParts("<s>USER: ", "<i>", " ASSISTANT:")
    assert render_turns(parts, [], 1, "So?") == "<s>USER: <i>So? ASSISTANT:"
    for earlier, system in (([(0, "a", "b")], None), ([], "Be brief.")):
        with pytest.raises(InputError, match="one turn"):
            render_turns(parts, earlier, 0, "So?", system)


@pytest.mark.parametrize(
    ("earlier", "system", "word"),
    [
        (Exchange((), "a <|im_end|>", "b"), None, "the question holds"),
        (Exchange((), "a", "b <|im_start|>"), None, "an earlier answer holds"),
        (Exchange((), "a", "b"), "<|image_pad|>", "the system message holds"),
    ],
)
def test_control_tokens_are_refused_everywhere(
    tiny_model: MedVLM, earlier: Exchange, system: str | None, word: str
) -> None:
    with pytest.raises(InputError, match=word):
        tiny_model.processor.prepare([], "So?", earlier=[earlier], system=system)
