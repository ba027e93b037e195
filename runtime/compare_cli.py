"""The `medvlm compare` command: what one bundle changes against another."""

import dataclasses
import json
import sys
from pathlib import Path

import click

from .cli_options import THREADS, viewing_options
from .commands import ErrorCommand, shown_item
from .compare import PLAIN, carry_out, plan
from .comparison import Comparison, Flip
from .dataset import read_dataset
from .decoding import DEFAULT_MAX_NEW_TOKENS
from .dicom.view import View
from .errors import InputError, plain
from .show import harmless


@click.command(cls=ErrorCommand)
@click.argument("bundle_a", type=click.Path(path_type=Path))
@click.argument("bundle_b", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Questions with solutions: the authors' JSON form."
)
@click.option(
    "--images", type=click.Path(path_type=Path), help="Where the paths of images start  [default: beside the JSON]"
)
@click.option("--questions", type=int, help="Ask only the first so many  [default: all]")
@click.option(
    "--max-new-tokens", default=DEFAULT_MAX_NEW_TOKENS, show_default=True, help="Stop an answer after this many tokens."
)
@viewing_options
@THREADS
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def compare(
    bundle_a: Path,
    bundle_b: Path,
    data: Path,
    images: Path | None,
    questions: int | None,
    max_new_tokens: int,
    threads: int | None,
    as_json: bool,
    view: View,
) -> None:
    """Ask two bundles the same questions: what does B change against A?

    Both answer by themselves, greedily, which gives accuracies and the letters that flipped. Then B reads A's answers:
    how far its next-token distributions are from A's (KL divergence), and how often the likeliest token is the same.
    Give the more exact bundle as A. One is loaded at a time.
    """
    if questions is not None and questions < 1:
        raise InputError(f"--questions is {questions}; give at least 1")
    decoding = dataclasses.replace(PLAIN, max_new_tokens=max_new_tokens)
    items = read_dataset(data, images)[:questions]
    # What is wrong is said before a bar is drawn.
    planned = plan(bundle_a, bundle_b, items, decoding=decoding, threads=threads, view=view)
    with click.progressbar(length=2 * len(items), label="Comparing", file=sys.stderr, item_show_func=shown_item) as bar:
        comparison = carry_out(planned, lambda what: bar.update(1, what))
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(comparison)))
    else:
        click.echo(f"A  {plain(str(bundle_a))}\nB  {plain(str(bundle_b))}\n\n{summary(comparison)}")


def summary(found: Comparison) -> str:
    """The figures, and each question that flipped with both reasonings."""
    lines = [
        f"{found.questions} questions, {found.tokens} tokens in A's answers",
        f"KL divergence     {found.kl:.4g} nats a token (95 % below {found.kl_p95:.4g}, largest {found.kl_max:.4g})",
        f"top-1 agreement   {found.top1_agreement:.2%}",
        f"accuracy          A {found.accuracy_a:.1%}, B {found.accuracy_b:.1%}",
        f"flips             {found.flips}: {found.lost} right answers lost, {found.won} won "
        f"(McNemar's exact p = {found.mcnemar_p:.3g})",
        *map(_flip_lines, found.flipped),
    ]
    return "\n".join(lines)


def _flip_lines(flip: Flip) -> str:
    sides = (
        ("A", flip.choice_a, flip.reasoning_a or flip.text_a),
        ("B", flip.choice_b, flip.reasoning_b or flip.text_b),
    )
    return "\n".join(
        [
            f"\n[{flip.index}] {', '.join(map(plain, flip.images))}",
            harmless(flip.problem),
            f"truth: {flip.solution}",
            *(f"{side}: {choice or 'no letter'}   {harmless(text.strip())}" for side, choice, text in sides),
        ]
    )
