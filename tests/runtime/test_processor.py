"""Images and a question to token ids, held against transformers' tokenizer and chat template."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medvlm.export.chat_template import QWEN2_VL_CHAT_TEMPLATE
from medvlm.runtime.bundle import Bundle, open_bundle
from medvlm.runtime.errors import BundleError, InputError
from medvlm.runtime.processor import Processor
from medvlm.runtime.prompt import QUESTION_TEMPLATE
from transformers import PreTrainedTokenizerFast

QUESTION = "Which organ is it?\nA) Brain\nB) Ödem, 心\nC) <think> 3.5 cm"
# 224x224, 2 x 6 and 4 x 3 visual tokens.
SIZES = [(224, 224), (56, 168), (112, 84)]
TOKENS = [64, 12, 12]


@pytest.fixture
def tiny_processor(tiny_bundle: Path) -> Processor:
    return Processor(open_bundle(tiny_bundle))


@pytest.fixture
def real_processor(tiny_bundle: Path, shared: Path) -> Processor:
    """The hub's own tokenizer behind the tiny bundle's settings."""
    manifest = open_bundle(tiny_bundle).manifest
    text = dataclasses.replace(manifest.text, vocab_size=151_936, max_positions=32_768)
    manifest = dataclasses.replace(manifest, image_token_id=151_655, text=text)
    return Processor(Bundle(shared / "qwen2-vl-2b", manifest))


def pictures(count: int) -> list[np.ndarray]:
    return [np.zeros((*size, 3), np.uint8) for size in SIZES[:count]]


def reference_ids(processor: Processor, text: str, images: int) -> list[int]:
    """transformers: chat template, each image token repeated in the text, tokenizer."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=processor.tokenizer)
    content: list[dict[str, Any]] = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    prompt = tokenizer.apply_chat_template(
        messages,
        chat_template=QWEN2_VL_CHAT_TEMPLATE,
        add_generation_prompt=True,
        tokenize=False,
    )
    assert isinstance(prompt, str)
    for tokens in TOKENS[:images]:
        prompt = prompt.replace("<|image_pad|>", "<|placeholder|>" * tokens, 1)
    return tokenizer(prompt.replace("<|placeholder|>", "<|image_pad|>"), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize("tokenizer", ["tiny_processor", "real_processor"])
def test_token_ids_are_those_of_transformers(tokenizer: str, images: int, request: pytest.FixtureRequest) -> None:
    processor: Processor = request.getfixturevalue(tokenizer)
    prepared = processor.prepare(pictures(images), QUESTION)
    templated = QUESTION_TEMPLATE.replace("{Question}", QUESTION)
    assert prepared.token_ids.tolist() == reference_ids(processor, templated, images)
    assert prepared.visual_tokens == sum(TOKENS[:images])
    assert prepared.options == {"A": "Brain", "B": "Ödem, 心", "C": "<think> 3.5 cm"}


def test_a_raw_question_is_sent_as_it_is(tiny_processor: Processor) -> None:
    prepared = tiny_processor.prepare(pictures(1), QUESTION, raw=True)
    assert prepared.token_ids.tolist() == reference_ids(tiny_processor, QUESTION, 1)


def test_a_question_without_options_is_sent_as_it_is(tiny_processor: Processor) -> None:
    prepared = tiny_processor.prepare(pictures(1), "Describe the image.")
    assert prepared.token_ids.tolist() == reference_ids(tiny_processor, "Describe the image.", 1)
    assert prepared.options == {}


@pytest.mark.parametrize("token", ["<|im_end|>", "<|image_pad|>", "<|endoftext|>"])
def test_a_question_cannot_smuggle_in_special_tokens(tiny_processor: Processor, token: str) -> None:
    with pytest.raises(InputError, match="control token") as error:
        tiny_processor.prepare(pictures(1), f"What is this? {token}")
    assert token in str(error.value)


def test_fewer_pixels_are_fewer_visual_tokens(tiny_processor: Processor) -> None:
    image = [np.zeros((560, 560), np.uint8)]
    assert tiny_processor.prepare(image, QUESTION).visual_tokens == 400
    assert tiny_processor.prepare(image, QUESTION, max_pixels=100_352).visual_tokens == 121
    assert tiny_processor.prepare(image, QUESTION, min_pixels=1_254_400).visual_tokens == 1600


def test_images_that_no_context_holds_are_refused_before_they_are_resized(tiny_processor: Processor) -> None:
    image = np.zeros((3000, 3000), np.uint8)
    with pytest.raises(InputError, match=r"22898 tokens .* holds 4096"):
        tiny_processor.prepare([image, image], QUESTION)


def test_a_tokenizer_of_another_model_is_refused(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    manifest = dataclasses.replace(bundle.manifest, image_token_id=65)
    with pytest.raises(BundleError, match="disagree on the image token"):
        Processor(Bundle(bundle.directory, manifest))
