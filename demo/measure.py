"""`python -m medvlm.demo.measure`: the tables of demo/README.md, on held-out questions through the runtime."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from ..export.cli import BLOCK_SIZES
from ..export.convert import export
from ..export.recipe import Recipe, make_recipe
from ..runtime.commands import ErrorCommand
from ..runtime.model import MedVLM
from .dataset import Item, make_item
from .evaluate import CHECKPOINT, Answered, answer_all, blank, chance, flips, majority, share
from .questions import TYPES

# Both widths at every block size, and what else the exporter offers, one at a time around its default.
PRECISIONS = {
    "fp32": make_recipe("fp32"),
    **{f"int8 block {size}": make_recipe("int8", int(size)) for size in BLOCK_SIZES},
    **{f"int4 block {size}": make_recipe("int4", int(size)) for size in BLOCK_SIZES},
    "int4 block 128, symmetric": make_recipe("int4", symmetric=True),
    "int4 block 128, accuracy level 0": make_recipe("int4", accuracy_level=0),
}


@click.command(cls=ErrorCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path), default=CHECKPOINT)
@click.option(
    "--before", type=click.Path(path_type=Path), help="The checkpoint of the supervised stage, for comparison."
)
@click.option("--questions", default=600, show_default=True, help="How many, from the first of the test split on.")
def main(checkpoint: Path, before: Path | None, questions: int) -> None:
    """Measure CHECKPOINT (by default the demo's own) and print the tables as Markdown."""
    with click.progressbar(range(questions), label=f"Drawing {questions} scans", file=sys.stderr) as bar:
        items = [make_item("test", index) for index in bar]
    final = _answers(checkpoint, PRECISIONS["fp32"], items, "fp32")
    supervised = _answers(before, PRECISIONS["fp32"], items, "supervised stage") if before else None
    grey = _answers(checkpoint, PRECISIONS["fp32"], items, "grey images", grey=True)
    click.echo(types_table(items, supervised, final, grey) + "\n")
    click.echo(forms_table(supervised, final, grey) + "\n")
    if supervised:
        click.echo(changes_table("stage", {"supervised": supervised, "GRPO": final}) + "\n")
    others = {name: _answers(checkpoint, recipe, items, name) for name, recipe in PRECISIONS.items() if name != "fp32"}
    click.echo(changes_table("precision", {"fp32": final, **others}))


def types_table(
    items: Sequence[Item], supervised: Sequence[Answered] | None, final: Sequence[Answered], grey: Sequence[Answered]
) -> str:
    """Accuracy per type of question: guessing, the commonest letter, each stage, and without the image."""
    rows = [
        "| question | number | guessing | commonest letter | supervised | GRPO | grey image |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (*TYPES, "all"):
        chosen = [i for i, item in enumerate(items) if name in (item.question.type, "all")]
        subset = [items[i] for i in chosen]
        shares = [
            "-" if answers is None else _percent(share([answers[i] for i in chosen], "correct"))
            for answers in (supervised, final, grey)
        ]
        cells = [name, str(len(chosen)), _percent(chance(subset)), _percent(majority(subset)), *shares]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def forms_table(supervised: Sequence[Answered] | None, final: Sequence[Answered], grey: Sequence[Answered]) -> str:
    """Form, agreement and truth of the reasoning."""
    rows = ["| | well formed | reasoning agrees with its letter | reasoning is true of the scan |", "|---|---|---|---|"]
    for name, answers in (("supervised", supervised), ("GRPO", final), ("grey image", grey)):
        if answers is not None:
            shares = [_percent(share(answers, field)) for field in ("well_formed", "agrees", "truthful")]
            rows.append(f"| {name} | {' | '.join(shares)} |")
    return "\n".join(rows)


def changes_table(heading: str, answers: dict[str, Sequence[Answered]]) -> str:
    """Each of the named `answers` against the first of them, on the same questions."""
    rows = [
        f"| {heading} | accuracy | well formed | letters changed | right to wrong | wrong to right | McNemar's p |",
        "|---|---|---|---|---|---|---|",
    ]
    reference = next(iter(answers.values()))
    for name, answered in answers.items():
        changed = flips(reference, answered)
        changes = [str(changed.letters), str(changed.lost), str(changed.won), f"{changed.p:.3g}"]
        cells = [name, _percent(share(answered, "correct")), _percent(share(answered, "well_formed"))]
        cells += ["-"] * len(changes) if answered is reference else changes
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _answers(
    checkpoint: Path, recipe: Recipe, items: Sequence[Item], label: str, *, grey: bool = False
) -> list[Answered]:
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory) / "bundle"
        export(checkpoint, bundle, recipe)
        model = MedVLM.load(bundle)
        with click.progressbar(items, label=f"Answering, {label}", file=sys.stderr) as bar:
            return answer_all(model, bar, blank) if grey else answer_all(model, bar)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


if __name__ == "__main__":
    main()
