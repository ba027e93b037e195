"""One stage of training: steps under a progress bar, a log, and a state on the disk from which it goes on."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch

_LOG_EVERY = 20
_EVALUATE_EVERY = 500
_SAVE_EVERY_S = 60
_WARMUP = 0.04
_CLIP = 1.0

Measures = dict[str, float]


@dataclass(frozen=True)
class Stage:
    """What to do.

    learning_rates: the peak of each group of parameters; it rises over the first 4 % of the steps and falls to a
    twentieth along a cosine. losses: step -> the losses of its micro-batches, one at a time, with what they measured.
    evaluate: what to log now and then, and at the end.
    """

    name: str
    steps: int
    learning_rates: list[tuple[list[torch.nn.Parameter], float]]
    losses: Callable[[int], Iterator[tuple[torch.Tensor, Measures]]]
    evaluate: Callable[[], Measures] | None = None


@dataclass
class Run:
    """The directory of one training, and the modules whose weights its state holds."""

    directory: Path
    modules: dict[str, torch.nn.Module]
    finished: list[str] = field(default_factory=list)
    _resumed: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self._state_path.exists():
            state = torch.load(self._state_path, weights_only=True)
            for name, module in self.modules.items():
                module.load_state_dict(state["modules"][name])
            self.finished = state["finished"]
            self._resumed = state

    @property
    def _state_path(self) -> Path:
        return self.directory / "state.pt"

    def train(self, stage: Stage) -> None:
        """Run the stage, or what is left of it. An interruption loses the steps since the state was last saved."""
        if stage.name in self.finished:
            return
        groups = [{"params": parameters, "lr": rate, "peak": rate} for parameters, rate in stage.learning_rates]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.05, betas=(0.9, 0.98))
        step = self._resume(stage, optimizer)
        with click.progressbar(length=stage.steps, label=stage.name, item_show_func=_shown) as bar:
            bar.update(step)
            for step in range(step, stage.steps):  # noqa: B020 - goes on from where it was
                measures = _step(stage, optimizer, step)
                self._after(stage, step, measures)
                bar.update(1, measures)
                if time.monotonic() - self._saved > _SAVE_EVERY_S:
                    self._save(stage, optimizer, step + 1)
        self.finished.append(stage.name)
        self._save(stage, optimizer, 0)

    def log(self, **values: Any) -> None:
        """Append one line to log.jsonl."""
        with (self.directory / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 1), **values}) + "\n")

    def _after(self, stage: Stage, step: int, measures: Measures) -> None:
        last = step + 1 == stage.steps
        if step % _LOG_EVERY == 0 or last:
            self.log(stage=stage.name, step=step, **{name: round(value, 4) for name, value in measures.items()})
        if stage.evaluate and (last or (step + 1) % _EVALUATE_EVERY == 0):
            found = stage.evaluate()
            self.log(stage=stage.name, step=step, held_out=found)
            click.echo(f"\n{stage.name} {step + 1}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()))

    def _resume(self, stage: Stage, optimizer: torch.optim.Optimizer) -> int:
        self._saved = time.monotonic()
        state, self._resumed = self._resumed, None
        if state is None or state["stage"] != stage.name:
            return 0
        optimizer.load_state_dict(state["optimizer"])
        return state["step"]

    def _save(self, stage: Stage, optimizer: torch.optim.Optimizer, step: int) -> None:
        partial = self._state_path.with_suffix(".partial")
        state = {
            "stage": stage.name,
            "step": step,
            "finished": self.finished,
            "optimizer": optimizer.state_dict(),
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
        }
        torch.save(state, partial)
        partial.replace(self._state_path)
        self._saved = time.monotonic()


def _step(stage: Stage, optimizer: torch.optim.Optimizer, step: int) -> Measures:
    """One update from the mean of the micro-batches' losses; returns the mean of what they measured."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * _schedule((step + 1) / stage.steps)
    optimizer.zero_grad()
    measured: list[Measures] = []
    for loss, measures in stage.losses(step):
        loss.backward()
        measured.append({"loss": float(loss.detach()), **measures})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad /= len(measured)
    torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
    optimizer.step()
    return {name: sum(m[name] for m in measured) / len(measured) for name in measured[0]}


def _schedule(done: float) -> float:
    """The share of the peak learning rate at this part, 0 to 1, of the stage."""
    if done < _WARMUP:
        return done / _WARMUP
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (done - _WARMUP) / (1 - _WARMUP)))


def _shown(measures: Measures | None) -> str:
    return "" if measures is None else " ".join(f"{name} {value:.3f}" for name, value in measures.items())
