"""Training: every stage runs, goes on after an interruption as if there had been none, and measures what it says."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medvlm.demo.dataset import make_item
from medvlm.demo.train import loop
from medvlm.demo.train.batch import Encoder, images
from medvlm.demo.train.loop import Run, Stage
from medvlm.demo.train.model import new_model, write_checkpoint
from medvlm.demo.train.pool import SIGHTS, load_pool
from medvlm.demo.train.sample import generate
from medvlm.demo.train.stages import Plan, train
from medvlm.demo.train.supervised import Lesson, answer_logits, make_lesson
from medvlm.demo.train.tokenizer import train_tokenizer
from medvlm.demo.train.vision import encode
from medvlm.export.convert import export
from medvlm.export.recipe import make_recipe
from medvlm.runtime import MedVLM
from medvlm.runtime.decoding import Decoding
from medvlm.runtime.errors import InputError
from PIL import Image

TINY = Plan(
    train_scans=6,
    held_out_scans=5,
    reading_steps=2,
    reading_batch=2,
    vision_steps=2,
    supervised_steps=2,
    batch=2,
    micro=1,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train(out, TINY)
    return out


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_training_goes_through_its_stages_and_leaves_a_checkpoint_that_exports(trained: Path, tmp_path: Path) -> None:
    stages = [entry["stage"] for entry in logged(trained) if "stage" in entry]
    assert list(dict.fromkeys(stages)) == ["vision", "reading", "supervised"]
    assert [entry for entry in logged(trained) if "held_out" in entry]
    export(trained / "checkpoint", tmp_path / "bundle", make_recipe("int4"))
    assert not (trained / "state.partial").exists()


def test_training_that_is_finished_does_nothing_more(trained: Path) -> None:
    before = (trained / "checkpoint" / "model.safetensors").read_bytes()
    train(trained, TINY)
    assert (trained / "checkpoint" / "model.safetensors").read_bytes() == before


def test_training_refuses_a_directory_of_something_else(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="other settings"):
        train(trained, dataclasses.replace(TINY, seed=1))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not empty"):
        train(tmp_path, TINY)
    with pytest.raises(InputError, match="cannot be used"):
        train(tmp_path / "file", TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class Line(torch.nn.Module):
    """A parameter that each step pulls towards the step's number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))


def line_stage(line: Line, stop_at: int | None = None) -> Stage:
    def losses(step: int) -> Any:
        if step == stop_at:
            raise KeyboardInterrupt
        yield ((line.weight - step) ** 2).sum(), {"size": float(line.weight.detach().abs().sum())}

    return Stage("line", 30, [([line.weight], 0.1)], losses)


def test_an_interrupted_stage_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_SAVE_EVERY_S", -1)
    whole, broken, resumed = Line(), Line(), Line()
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    Run(tmp_path / "whole", {"line": whole}).train(line_stage(whole))
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path / "broken", {"line": broken}).train(line_stage(broken, stop_at=17))
    run = Run(tmp_path / "broken", {"line": resumed})
    run.train(line_stage(resumed))
    assert torch.equal(whole.weight, resumed.weight)
    assert not torch.equal(whole.weight, broken.weight)
    # Finished: a third run starts nothing.
    again = Line()
    Run(tmp_path / "broken", {"line": again}).train(line_stage(again, stop_at=0))
    assert torch.equal(again.weight, whole.weight)


def test_learning_rate_rises_and_falls_along_a_cosine() -> None:
    assert loop._schedule(0.02) == pytest.approx(0.5)
    assert loop._schedule(0.04) == pytest.approx(1.0)
    # Half way down: 0.05 + 0.95 / 2.
    assert loop._schedule(0.52) == pytest.approx(0.525)
    assert loop._schedule(1.0) == pytest.approx(0.05)


def drawn_lessons(encoder: Encoder, model: Any, count: int, folder: Path) -> list[Lesson]:
    samples = load_pool("validate", count, folder / "pool.npz")
    pairs = zip(samples, encode(model, samples), strict=True)
    return [make_lesson(encoder, np.random.default_rng(i), sample, seen) for i, (sample, seen) in enumerate(pairs)]


def test_pool_keeps_what_was_drawn_as_the_runtime_resizes_it(tmp_path: Path) -> None:
    samples = load_pool("validate", 6, tmp_path / "pool.npz")
    again = load_pool("validate", 6, tmp_path / "pool.npz")
    for index, (sample, same) in enumerate(zip(samples, again, strict=True)):
        item = make_item("validate", index)
        assert sample.facts == item.facts
        assert np.array_equal(sample.pixels, same.pixels)
        height, width = sample.grid
        assert sample.pixels.shape == (28 * height, 28 * width)
        if item.scan.pixels.shape == sample.pixels.shape:
            assert np.array_equal(sample.pixels, item.scan.pixels)
        sight = (item.facts.finding, item.facts.place)
        shown = set(sample.labels.tolist()) - {0}
        assert shown <= ({1 + SIGHTS.index(sight)} if item.facts.finding else set())


def test_generation_in_training_is_what_the_runtime_generates(tmp_path: Path) -> None:
    """Left padding, positions, the cache and the patches of training against the exported model, two grids at once."""
    tokenizer = train_tokenizer(200)
    encoder, model = Encoder(tokenizer), new_model(tokenizer, 0)
    with torch.no_grad():
        # Larger weights: with the first ones every token is nearly as likely as any other.
        for parameter in model.parameters():
            parameter.copy_((parameter * 3).bfloat16().float())
    lessons = drawn_lessons(encoder, model, 6, tmp_path)
    samples = load_pool("validate", 6, tmp_path / "pool.npz")
    assert len({len(lesson.prompt) for lesson in lessons}) > 1
    answers = generate(model, encoder, lessons)
    write_checkpoint(model, tokenizer, tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "bundle", make_recipe("fp32"))
    runtime = MedVLM.load(tmp_path / "bundle", threads=1)
    for sample, lesson, ids in zip(samples, lessons, answers, strict=True):
        image = Image.fromarray(sample.pixels)
        request = runtime.processor.prepare([image], lesson.question.problem)
        assert request.token_ids.tolist() == lesson.prompt.tolist()
        assert np.array_equal(request.images[0].patches().pixel_values, images([sample]).patches.numpy())
        answer = runtime.ask(image, lesson.question.problem, Decoding(len(ids), constrained=False))
        length = min(len(answer.token_ids), 24)
        assert list(answer.token_ids)[:length] == ids.tolist()[:length]


def test_logits_of_answers_are_those_of_transformers(tmp_path: Path) -> None:
    """Right padding without a mask, against transformers' own whole forward pass of each row alone."""
    tokenizer = train_tokenizer(200)
    encoder, model = Encoder(tokenizer), new_model(tokenizer, 0)
    lessons = drawn_lessons(encoder, model, 3, tmp_path)
    samples = load_pool("validate", 3, tmp_path / "pool.npz")
    logits, ids, _ = answer_logits(model, encoder, lessons)
    assert ids.tolist() == np.concatenate([lesson.answer for lesson in lessons]).tolist()
    start = 0
    for sample, lesson in zip(samples, lessons, strict=True):
        row = torch.from_numpy(np.concatenate([lesson.prompt, lesson.answer]))[None]
        batch = images([sample])
        whole = model(
            input_ids=row,
            pixel_values=batch.patches,
            image_grid_thw=batch.grids,
            mm_token_type_ids=(row == encoder.image_id).int(),
        ).logits
        expected = whole[0, len(lesson.prompt) - 1 : -1]
        assert torch.allclose(logits[start : start + len(lesson.answer)], expected, atol=1e-4)
        start += len(lesson.answer)
