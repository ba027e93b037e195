"""`python -m medvlm.demo.measure`: the tables of demo/README.md, on held-out questions through the runtime."""

import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from ..export.cli_options import BLOCK_SIZES
from ..export.convert import export
from ..export.recipe import Recipe, make_recipe
from ..runtime.commands import ErrorCommand
from ..runtime.model import MedVLM
from .dataset import Item, make_item
from .evaluate import CHECKPOINT, Answered, answer_all, blank, chance, flips, majority, share
from .questions import TYPES

# Both widths at every block size, rounded to the nearest, and what else the exporter offers, one at a time around its
# default. The int8 and int4 rows have W8A8 vision and prefill, as the exporter's default is, unless they say otherwise.
# What methods cost is measured by medvlm.demo.quantization.
_ROUNDED = partial(make_recipe, method="rtn", smooth=False)
PRECISIONS = {
    "fp32": make_recipe("fp32"),
    "fp32, vision w8a8": make_recipe("fp32", vision="w8a8"),
    "fp32, vision w8": make_recipe("fp32", vision="w8"),
    "fp32, prefill w8a8": make_recipe("fp32", prefill="w8a8"),
    **{f"int8 block {size}": _ROUNDED("int8", int(size)) for size in BLOCK_SIZES},
    **{f"int4 block {size}": _ROUNDED("int4", int(size)) for size in BLOCK_SIZES},
    "int4 block 128, vision w8": _ROUNDED("int4", vision="w8"),
    "int4 block 128, vision fp32": _ROUNDED("int4", vision="fp32"),
    "int4 block 128, prefill same": _ROUNDED("int4", prefill="same"),
    "int4 block 128, symmetric": _ROUNDED("int4", symmetric=True),
    "int4 block 128, accuracy level 0": _ROUNDED("int4", accuracy_level=0),
    "int4, the default": make_recipe("int4"),
    "int4, the default, vision w4": make_recipe("int4", vision="w4"),
    "nf4": make_recipe("nf4"),
}


@click.command(cls=ErrorCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path), default=CHECKPOINT)
@click.option("--questions", default=600, show_default=True, help="How many, from the first of the test split on.")
def main(checkpoint: Path, questions: int) -> None:
    """Measure CHECKPOINT (by default the demo's own) and print the tables as Markdown."""
    with click.progressbar(range(questions), label=f"Drawing {questions} scans", file=sys.stderr) as bar:
        items = [make_item("test", index) for index in bar]
    exact = _answers(checkpoint, PRECISIONS["fp32"], items, "fp32")
    grey = _answers(checkpoint, PRECISIONS["fp32"], items, "grey images", grey=True)
    click.echo(types_table(items, exact, grey) + "\n")
    click.echo(forms_table(exact, grey) + "\n")
    others = {name: _answers(checkpoint, recipe, items, name) for name, recipe in PRECISIONS.items() if name != "fp32"}
    click.echo(changes_table({"fp32": exact, **others}))


def types_table(items: Sequence[Item], answers: Sequence[Answered], grey: Sequence[Answered]) -> str:
    """Accuracy per type of question: guessing, the commonest letter, the model, and the model without the image."""
    rows = ["| question | number | guessing | commonest letter | accuracy | grey image |", "|---|---|---|---|---|---|"]
    for name in (*TYPES, "all"):
        chosen = [i for i, item in enumerate(items) if name in (item.question.type, "all")]
        subset = [items[i] for i in chosen]
        shares = [_percent(share([graded[i] for i in chosen], "correct")) for graded in (answers, grey)]
        cells = [name, str(len(chosen)), _percent(chance(subset)), _percent(majority(subset)), *shares]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def forms_table(answers: Sequence[Answered], grey: Sequence[Answered]) -> str:
    """Form, agreement and truth of the reasoning."""
    rows = ["| | well formed | reasoning agrees with its letter | reasoning is true of the scan |", "|---|---|---|---|"]
    for name, graded in (("the scan", answers), ("grey image", grey)):
        shares = [_percent(share(graded, field)) for field in ("well_formed", "agrees", "truthful")]
        rows.append(f"| {name} | {' | '.join(shares)} |")
    return "\n".join(rows)


def changes_table(answers: dict[str, Sequence[Answered]]) -> str:
    """Each precision's answers against those of the first, on the same questions."""
    rows = [
        "| precision | accuracy | well formed | letters changed | right to wrong | wrong to right | McNemar's p |",
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
