"""The `medvlm bench` command."""

import contextlib
import gc
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from ..bundle import Bundle, open_bundle
from ..commands import ErrorCommand, shown_item
from ..errors import InputError
from ..model import MedVLM
from ..session import DEVICES, check_device
from ..threads import usable_cores
from .compare import Contender, compare, comparison_table
from .contenders import BASELINES, BundleContender, TransformersContender, check_baseline
from .features import measure_features
from .machine import reset_peak, versions
from .plot import check_picture, plot
from .report import features_json, make_report, table
from .stages import Plan, measure_memory, measure_rounds
from .summary import Summary

_LOADS = 3
_SYNTHETIC = "medvlm.synthetic"


class _Numbers(click.ParamType):
    """Whole numbers, separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers as a tuple."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 224,504", param, ctx)
        if min(numbers) < 1:
            self.fail(f"{value!r} holds a number below 1", param, ctx)
        return numbers


@click.command(cls=ErrorCommand)
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--synthetic", type=click.Choice(["2b"]), help="Make a bundle of this size with random weights first.")
@click.option("--sizes", type=_Numbers(), default=Plan.sizes, show_default=True, help="Sides of square images.")
@click.option("--contexts", type=_Numbers(), default=Plan.contexts, show_default=True, help="Tokens to decode at.")
@click.option("--text-tokens", default=Plan.text_tokens, show_default=True, help="Tokens of text in each prompt.")
@click.option("--new-tokens", default=Plan.new_tokens, show_default=True, help="Tokens to decode after each prompt.")
@click.option(
    "--repetitions", default=Plan.repetitions, show_default=True, help="Rounds, after one that is thrown away."
)
@click.option("--threads", type=int, help="Threads to compute with  [default: one for each core that may be used]")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to compute.")
@click.option("--compare", "other", type=click.Path(path_type=Path), help="Another bundle, measured in turns.")
@click.option("--baseline", type=click.Choice(["transformers"]), help="Another runtime, measured in turns.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The bundle's checkpoint, for --baseline.")
@click.option("--precision", type=click.Choice(BASELINES), default="bf16", show_default=True, help="Of the baseline.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw the report as a picture.")
def bench(
    bundle: Path | None,
    synthetic: str | None,
    sizes: tuple[int, ...],
    contexts: tuple[int, ...],
    text_tokens: int,
    new_tokens: int,
    repetitions: int,
    threads: int | None,
    device: str,
    other: Path | None,
    baseline: str | None,
    checkpoint: Path | None,
    precision: str,
    as_json: bool,
    picture: Path | None,
) -> None:
    """Measure every stage of BUNDLE against what the machine can do.

    Every figure is a median with the 5th and 95th percentiles, and every ratio is of values taken side by side. With
    --synthetic, BUNDLE is where the random bundle is left; without BUNDLE it is removed again.
    """
    check_device(device)
    for name, value, least in (
        ("new-tokens", new_tokens, 2),
        ("repetitions", repetitions, 1),
        ("text-tokens", text_tokens, 1),
    ):
        if value < least:
            raise InputError(f"--{name} is {value}; give at least {least}")
    if picture is not None:
        check_picture(picture)
    if baseline:
        checkpoint = check_baseline(checkpoint, precision)
    plan = Plan(sizes, contexts, text_tokens, new_tokens, repetitions, threads or usable_cores())
    with _opened(bundle, synthetic, device) as opened:
        contested = open_bundle(other) if other else None
        report, model = _measure(opened, plan, device)
        if contested is not None:
            rival: Contender = BundleContender(
                contested.directory.name, MedVLM(contested, device=device, threads=threads), plan
            )
            report["compare"] = _compare(opened, model, rival, plan)
        if checkpoint is not None and baseline:
            rival = TransformersContender(checkpoint, precision, model, plan)
            report["baseline"] = _compare(opened, model, rival, plan)
    if picture is not None:
        plot(report, picture)
    click.echo(json.dumps(report) if as_json else _shown(report))


@contextlib.contextmanager
def _opened(bundle: Path | None, synthetic: str | None, device: str) -> Iterator[Bundle]:
    """The bundle to measure, made first where it is synthetic: for CUDA if that was asked for, else for CPUs."""
    if synthetic is None:
        if bundle is None:
            raise InputError("give a bundle, or --synthetic 2b to make one with random weights")
        yield open_bundle(bundle)
        return
    makers = metadata.entry_points(group=_SYNTHETIC)
    if synthetic not in makers.names:
        raise InputError("this installation cannot make synthetic bundles; install medvlm anew")
    with contextlib.ExitStack() as stack:
        if bundle is None:
            directory = Path(tempfile.mkdtemp(prefix="medvlm-bench-"))
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            bundle = directory / "synthetic"
        try:
            make = makers[synthetic].load()
        except ModuleNotFoundError as error:
            raise InputError(f"{error.name} is not installed; pip install 'medvlm[export]'") from None
        made_for = {"device": "cuda"} if device == "cuda" else {}
        make(bundle, lambda line: click.echo(f"{line} ...", err=True), **made_for)
        yield open_bundle(bundle)


def _measure(opened: Bundle, plan: Plan, device: str) -> tuple[dict[str, Any], MedVLM]:
    """The report of a bundle, and the model that it was loaded to.

    Memory is looked at first, while nothing but the model takes any, and loading is timed last, with a warm page cache.
    """
    # Making a synthetic bundle takes more than running it.
    reset_peak()
    model = MedVLM(opened, device=device, threads=plan.threads)
    if model.device_note:
        click.echo(f"Note: {model.device_note}", err=True)
    memory = measure_memory(model, plan)
    steps = (plan.repetitions + 1) * (2 + len(plan.sizes) + len(plan.contexts))
    with click.progressbar(length=steps, label="Measuring", file=sys.stderr, item_show_func=shown_item) as bar:
        measured = measure_rounds(model, plan, lambda what: bar.update(1, what))
    features = features_json(measure_features(model, plan))
    load_s = []
    for _ in range(_LOADS):
        # No two are ever held.
        del model
        gc.collect()
        model = MedVLM(opened, device=device, threads=plan.threads)
        load_s.append(model.load_s)
    weights = model.decoder_bytes
    report = make_report(opened.manifest, plan, measured, load_s, memory, weights, device=model.device)
    found = {**versions(), **(model.gpu.versions() if model.gpu is not None else {})}
    return {**report, "versions": found, "features": features}, model


def _compare(opened: Bundle, model: MedVLM, rival: Contender, plan: Plan) -> dict[str, Any]:
    """Both in turns at the main image size."""
    ours = BundleContender(opened.directory.name, model, plan)
    side = plan.main_size
    with click.progressbar(length=plan.repetitions + 1, label="Comparing", file=sys.stderr) as bar:
        stages = compare(ours, rival, side, plan.repetitions, lambda what: bar.update(1))
    plain = {stage: {name: vars(summary) for name, summary in found.items()} for stage, found in stages.items()}
    return {"a": ours.name, "b": rival.name, "image": f"{side}x{side}", "stages": plain}


def _shown(report: dict[str, Any]) -> str:
    """The report and its comparisons for people."""
    parts = [table(report)]
    for found in (report[name] for name in ("compare", "baseline") if name in report):
        stages = {
            stage: {name: Summary(**numbers) for name, numbers in three.items()}
            for stage, three in found["stages"].items()
        }
        parts.append(f"In turns, {found['image']}:\n" + comparison_table(found["a"], found["b"], stages))
    return "\n\n".join(parts)
