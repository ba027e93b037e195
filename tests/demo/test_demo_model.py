"""The trained demo model: real questions, real answers, and the form that the hub's checkpoints have."""

import json
from typing import Any

import numpy as np
import pytest
from medvlm.demo.dataset import Item
from medvlm.demo.evaluate import CHECKPOINT, answer_all, blank, chance, share
from medvlm.demo.scans.catalog import draw_scan
from medvlm.runtime import MedVLM
from PIL import Image

QUESTIONS = 100


@pytest.fixture(scope="module")
def items(demo_items: list[Item]) -> list[Item]:
    return demo_items[:QUESTIONS]


def test_demo_model_answers_held_out_questions_in_the_models_form(demo_model: MedVLM, items: list[Item]) -> None:
    answered = answer_all(demo_model, items)
    # What 600 questions show (demo/README.md) is more; a hundred vary.
    assert share(answered, "correct") >= 0.9
    assert share(answered, "well_formed") >= 0.99
    assert share(answered, "agrees") >= 0.97
    assert all(one.answer.finish_reason == "answer" for one in answered if one.grade.well_formed)


def test_demo_model_without_the_image_guesses(demo_model: MedVLM, items: list[Item]) -> None:
    # Four standard deviations of a hundred guesses.
    assert share(answer_all(demo_model, items, blank), "correct") <= chance(items) + 0.2


def test_demo_model_sees_on_which_side_it_is(demo_model: MedVLM, items: list[Item]) -> None:
    """The same question about two drawings that differ in the finding's side alone."""
    sided = [item for item in items if item.facts.place in ("left", "right") and item.question.type == "place"]
    both = 0
    for seed, item in enumerate(sided):
        chosen = {}
        for side in ("left", "right"):
            scan = draw_scan(np.random.default_rng(seed), item.facts.kind, item.facts.finding, side)
            choice = demo_model.ask(Image.fromarray(scan.pixels), item.question.problem).choice
            chosen[side] = item.question.meanings["ABCD".index(choice or "A")]
        both += chosen == {"left": "left", "right": "right"}
    assert len(sided) >= 8
    # A model that ignored the image would have none; one that guessed, a quarter.
    assert both >= 0.7 * len(sided)


def test_checkpoint_is_small_and_has_the_hubs_files() -> None:
    files = {path.name: path.stat().st_size for path in CHECKPOINT.iterdir()}
    assert set(files) == {
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "chat_template.json",
        "tokenizer.json",
        "model.safetensors",
    }
    assert sum(files.values()) <= 12_000_000


def test_checkpoint_loads_into_transformers_with_no_weight_missing() -> None:
    from transformers import Qwen2VLForConditionalGeneration

    # transformers' annotations do not hold with output_loading_info.
    loaded: Any = Qwen2VLForConditionalGeneration.from_pretrained(CHECKPOINT, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.lm_head.weight is model.get_input_embeddings().weight
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["model_type"] == "qwen2_vl"
    assert np.prod(model.get_input_embeddings().weight.shape) == config["vocab_size"] * config["hidden_size"]
