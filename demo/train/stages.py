"""The whole training: its plan, its three stages, and the checkpoint that it leaves."""

import dataclasses
import functools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from ...runtime.errors import InputError
from .batch import Encoder
from .held_out import held_out_measures
from .loop import Measures, Run, Stage
from .model import TEXT, new_model, write_checkpoint
from .pool import Sample, load_pool
from .reading import reading_lesson
from .supervised import make_lesson, supervised_loss
from .tokenizer import train_tokenizer
from .vision import Heads, encode, vision_loss


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    seed: int = 0
    train_scans: int = 30_000
    held_out_scans: int = 200
    vision_steps: int = 8_000
    reading_steps: int = 200
    supervised_steps: int = 2_400
    reading_batch: int = 16
    batch: int = 16
    micro: int = 8


def train(out: Path, plan: Plan) -> None:
    """All stages, or what is left of them. Raises `InputError` where `out` cannot be used, or is of another plan."""
    _claim(out, plan)
    started = time.monotonic()
    train_set = load_pool("train", plan.train_scans, out / "train.npz")
    held_out = load_pool("validate", plan.held_out_scans, out / "validate.npz")
    tokenizer = train_tokenizer()
    encoder = Encoder(tokenizer)
    model, heads = new_model(tokenizer, plan.seed), Heads(TEXT.hidden_size)
    run = Run(out, {"model": model, "heads": heads})
    run.log(event="start", finished=run.finished, drawing_s=round(time.monotonic() - started, 1))

    run.train(_vision_stage(model, heads, train_set, plan))
    run.train(_reading_stage(model, encoder, plan))
    held_out_seen = encode(model, held_out)

    def evaluate() -> Measures:
        return held_out_measures(model, encoder, held_out, held_out_seen)

    run.train(_supervised_stage(model, encoder, train_set, plan, evaluate))
    write_checkpoint(model, tokenizer, out / "checkpoint")
    minutes = (time.monotonic() - started) / 60
    run.log(event="end", minutes=round(minutes, 1))
    click.echo(f"Wrote {out / 'checkpoint'} after {minutes:.1f} minutes")


def _claim(out: Path, plan: Plan) -> None:
    """Make `out` the directory of a training with this plan, so that no other goes on in it."""
    path, ours = out / "plan.json", json.dumps(dataclasses.asdict(plan), indent=1)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists() and any(out.iterdir()):
            raise InputError(f"{out} is not empty; choose another OUT")
        if path.exists() and path.read_text(encoding="utf-8") != ours:
            raise InputError(f"{out} holds a training with other settings; choose another OUT, or the same --seed")
        path.write_text(ours, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out} cannot be used ({error.strerror}); choose another OUT") from None


def _reading_stage(model: Any, encoder: Encoder, plan: Plan) -> Stage:
    def losses(step: int) -> Iterator[tuple[torch.Tensor, Measures]]:
        rng = np.random.default_rng([plan.seed, 4, step])
        yield supervised_loss(model, encoder, [reading_lesson(encoder, rng) for _ in range(plan.reading_batch)])

    return Stage("reading", plan.reading_steps, [(_decoder(model), 1e-3)], losses)


def _vision_stage(model: Any, heads: Heads, samples: list[Sample], plan: Plan) -> Stage:
    def losses(step: int) -> Iterator[tuple[torch.Tensor, Measures]]:
        for batch in _batches(len(samples), plan, 0, step):
            yield vision_loss(model, heads, [samples[i] for i in batch])

    parameters = [*model.model.visual.parameters(), *heads.parameters()]
    return Stage("vision", plan.vision_steps, [(parameters, 1e-3)], losses)


def _supervised_stage(model: Any, encoder: Encoder, samples: list[Sample], plan: Plan, evaluate: Any) -> Stage:
    @functools.cache
    def seen() -> list[torch.Tensor]:
        return encode(model, samples)

    def losses(step: int) -> Iterator[tuple[torch.Tensor, Measures]]:
        rng = np.random.default_rng([plan.seed, 1, step])
        for batch in _batches(len(samples), plan, 1, step):
            yield supervised_loss(model, encoder, [make_lesson(encoder, rng, samples[i], seen()[i]) for i in batch])

    return Stage("supervised", plan.supervised_steps, [(_decoder(model), 1e-3)], losses, evaluate)


def _decoder(model: Any) -> list[torch.nn.Parameter]:
    """All parameters but the vision encoder's."""
    return [parameter for name, parameter in model.named_parameters() if "visual" not in name]


def _batches(count: int, plan: Plan, stage: int, step: int) -> Iterator[list[int]]:
    """The samples of each micro-batch of a step: every one once an epoch, in an order of the epoch's own."""
    per_epoch = count // plan.batch
    order = np.random.default_rng([plan.seed, 3, stage, step // per_epoch]).permutation(count)
    start = step % per_epoch * plan.batch
    for first in range(start, start + plan.batch, plan.micro):
        yield order[first : first + plan.micro].tolist()
