"""The options of `medvlm-export`: a recipe, and what activations are collected and losses measured on."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..runtime.cli_options import THREADS, with_options
from ..runtime.errors import InputError
from .recipe import DeviceChoice, Method, make_recipe

BLOCK_SIZES = ("32", "64", "128", "256")
DEFAULT_DATASET = "demo"

Command = Callable[..., None]


@dataclass(frozen=True)
class Measuring:
    """What activations are collected on, and what the loss is measured on.

    calibrate: a dataset's JSON, or the name of one that is installed; None where it was not given. images: where its
    images' paths start. mixed: MB for tensors of 8 bits. report: where to. tried: reports of other bundles.
    """

    calibrate: str | None
    images: Path | None
    calibration_questions: int
    mixed: float | None
    report: Path | None
    report_questions: int
    tried: tuple[Path, ...]
    threads: int | None


_RECIPE = (
    click.option(
        "--int4", "precision", flag_value="int4", default=True, help="4-bit decoder, 8-bit vision (the default)."
    ),
    click.option("--int8", "precision", flag_value="int8", help="8-bit decoder and vision."),
    click.option(
        "--nf4",
        "precision",
        flag_value="nf4",
        help="4-bit decoder in bitsandbytes' NF4, which a CPU multiplies slowly.",
    ),
    click.option("--fp32", "precision", flag_value="fp32", help="No quantization."),
    click.option("--block-size", type=click.Choice(BLOCK_SIZES), help="Weights a scale  [default: 128; 64 with --nf4]"),
    click.option(
        "--symmetric/--asymmetric", default=False, help="Blocks without or with a zero point  [default: with]"
    ),
    click.option(
        "--method",
        type=click.Choice(["rtn", "hqq", "awq", "gptq", "awq+gptq"]),
        help="How codes are chosen: rounding to the nearest or HQQ, by weights alone; AWQ, GPTQ or both, by inputs on "
        "--calibrate  [default: rtn]",
    ),
    click.option(
        "--scale",
        type=click.Choice(["max", "search"]),
        help="With rtn: scales that span a block's range, or those of least squared error  [default: search; max with "
        "--int8]",
    ),
    click.option("--act-order", is_flag=True, help="With gptq: round the columns of largest inputs first."),
    click.option(
        "--smooth/--no-smooth",
        default=None,
        help="Fold scales into norms first, so that no channel is far larger than others  [default: where quantized]",
    ),
    click.option(
        "--accuracy-level",
        type=click.Choice(["0", "4"]),
        default="4",
        show_default=True,
        help="MatMulNBits' own: 4 rounds activations to int8 for speed, 0 multiplies in float32.",
    ),
    click.option(
        "--vision",
        type=click.Choice(["w8a8", "w8", "w4", "fp32"]),
        help="The vision encoder: int8 by int8, int8 or 4-bit weights in blocks, or float32  [default: w8a8; fp32 with "
        "--fp32]",
    ),
    click.option(
        "--prefill",
        type=click.Choice(["w8a8", "same"]),
        help="How prompts are read: by an int8 copy of the decoder's layers, or by the decoder  [default: w8a8; same "
        "with --fp32]",
    ),
    click.option(
        "--head", type=click.Choice(["int4", "int8", "nf4", "fp32"]), help="The head  [default: as the decoder]"
    ),
    click.option(
        "--device",
        type=click.Choice(["cpu", "cuda", "both"]),
        default="cpu",
        show_default=True,
        help="What the bundle is for: CPUs, a GPU with CUDA, or both, which share their 4-bit weights.",
    ),
    click.option(
        "--exact",
        multiple=True,
        metavar="LAYER",
        help="With --device cuda or both: keep a layer in float32 that leaves fp16's range, such as blocks.31 of the "
        "vision encoder, merger, or layers.3; may be given several times.",
    ),
    click.option(
        "--embedding",
        type=click.Choice(["float16", "float32"]),
        help="The embedding table  [default: float16; float32 with --fp32]",
    ),
)
_MEASURING = (
    click.option(
        "--calibrate",
        metavar="DATASET",
        help="Questions to collect activations and to measure on: a JSON file in the authors' form, or demo, drawings "
        f"that come along  [default: {DEFAULT_DATASET}]",
    ),
    click.option(
        "--images", type=click.Path(path_type=Path), help="Where its images' paths start  [default: beside it]"
    ),
    click.option("--calibration-questions", default=32, show_default=True, help="Its first so many calibrate."),
    click.option(
        "--mixed",
        type=float,
        metavar="BUDGET_MB",
        help="Keep the most sensitive tensors at 8 bits, as far as so many megabytes more go.",
    ),
    click.option(
        "--report",
        type=click.Path(path_type=Path),
        help="Measure what the bundle lost, on questions that do not calibrate: an .html page and a .json, or a .json.",
    ),
    click.option("--report-questions", default=60, show_default=True, help="On so many."),
    click.option(
        "--tried",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="REPORT.json",
        help="Show the size and loss of this other report in the page; may be given several times.",
    ),
    THREADS,
)


def recipe_options(command: Command) -> Command:
    """Add the options of precision, which reach the command as `recipe`."""

    @functools.wraps(command)
    def wrapped(
        *args: Any,
        precision: Any,
        block_size: str | None,
        symmetric: bool,
        method: Method | None,
        scale: str | None,
        act_order: bool,
        smooth: bool | None,
        accuracy_level: str,
        vision: Any,
        prefill: Any,
        head: Any,
        embedding: Any,
        device: DeviceChoice,
        exact: tuple[str, ...],
        **others: Any,
    ) -> None:
        if act_order and "gptq" not in (method or ""):
            raise InputError("--act-order belongs to --method gptq or awq+gptq; leave it out")
        recipe = make_recipe(
            precision,
            None if block_size is None else int(block_size),
            symmetric=symmetric,
            accuracy_level=int(accuracy_level),
            method=_method(precision, method, scale),
            act_order=act_order,
            smooth=smooth,
            vision=vision,
            prefill=prefill,
            head=head,
            embedding=embedding,
            device=device,
            exact=exact,
        )
        command(*args, recipe=recipe, **others)

    return with_options(wrapped, _RECIPE)


def measuring_options(command: Command) -> Command:
    """Add the options of calibration and of the report, which reach the command as `measuring`."""

    @functools.wraps(command)
    def wrapped(
        *args: Any,
        calibrate: str | None,
        images: Path | None,
        calibration_questions: int,
        mixed: float | None,
        report: Path | None,
        report_questions: int,
        tried: tuple[Path, ...],
        threads: int | None,
        **others: Any,
    ) -> None:
        measuring = Measuring(calibrate, images, calibration_questions, mixed, report, report_questions, tried, threads)
        command(*args, measuring=measuring, **others)

    return with_options(wrapped, _MEASURING)


def _method(precision: str, method: Method | None, scale: str | None) -> Method | None:
    """The method, with the scale's choice in it; None for the default of the precision."""
    if scale is not None and method not in (None, "rtn"):
        raise InputError(f"--scale {scale} belongs to --method rtn; leave one of them out")
    if precision not in ("int4", "int8") and (method or scale):
        raise InputError(f"--method belongs to --int4 and --int8; leave it out with --{precision}")
    if scale is not None:
        return "rtn-search" if scale == "search" else "rtn"
    return None if method == "rtn" else method
