"""`python -m medvlm.demo.decoding`: what the engine does to the demo's answers, and what its probabilities mean."""

import dataclasses
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import numpy as np

from ..export.convert import export
from ..export.recipe import make_recipe
from ..runtime.commands import ErrorCommand
from ..runtime.decoding import Decoding
from ..runtime.model import MedVLM
from ..runtime.sampling import Sampling
from ..runtime.votes import vote
from .calibration import Bin, calibration_table, draw, expected_calibration_error, reliability
from .dataset import Item, make_item
from .evaluate import CHECKPOINT, DECODING, Answered, answer_all, share

VOTES = 8


@click.command(cls=ErrorCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path), default=CHECKPOINT)
@click.option("--questions", default=600, show_default=True, help="How many, from the first of the test split on.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw the reliability diagram.")
def main(checkpoint: Path, questions: int, picture: Path | None) -> None:
    """Measure prompt lookup, constrained answers and option probabilities on CHECKPOINT's int4 bundle."""
    with click.progressbar(range(questions), label=f"Drawing {questions} scans", file=sys.stderr) as bar:
        items = [make_item("test", index) for index in bar]
    plain = dataclasses.replace(DECODING, constrained=False, max_draft=0)
    ways = {
        "plain greedy decoding": plain,
        "prompt lookup": dataclasses.replace(plain, max_draft=DECODING.max_draft),
        "constrained": dataclasses.replace(plain, constrained=True),
        "both, the default": DECODING,
    }
    with tempfile.TemporaryDirectory() as directory:
        export(checkpoint, Path(directory) / "bundle", make_recipe("int4"))
        model = MedVLM.load(Path(directory) / "bundle")
        answers = {name: _answers(model, items, name, way) for name, way in ways.items()}
        voted = _reliability_of_votes(model, items)
    click.echo(ways_table(answers) + "\n")
    curves = {"one answer": _reliability_of_answers(answers["both, the default"]), f"{VOTES} votes": voted}
    for name, bins in curves.items():
        error = expected_calibration_error(bins)
        click.echo(f"{name}, expected calibration error {error:.4f}:\n\n{calibration_table(bins)}\n")
    if picture is not None:
        draw(curves, picture)


def ways_table(answers: Mapping[str, Sequence[Answered]]) -> str:
    """Each way of decoding against the first: tokens that differ, what lookup drafted, time for all answers."""
    rows = [
        "| decoding | accuracy | well formed | answers with other tokens | drafts right | of the text | speed |",
        "|---|---|---|---|---|---|---|",
    ]
    plain = next(iter(answers.values()))
    for name, answered in answers.items():
        others = sum(a.answer.token_ids != b.answer.token_ids for a, b in zip(plain, answered, strict=True))
        drafted, accepted, new = (
            sum(getattr(one.answer, f"{kind}_tokens") for one in answered) for kind in ("drafted", "accepted", "new")
        )
        right = f"{100 * accepted / drafted:.0f} %" if drafted else "-"
        cells = [name, _percent(share(answered, "correct")), _percent(share(answered, "well_formed")), str(others)]
        cells += [right, f"{100 * accepted / new:.0f} %", f"{_decode_s(plain) / _decode_s(answered):.2f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _reliability_of_answers(answered: Sequence[Answered]) -> list[Bin]:
    """The probability of the letter given the one reasoning that was written."""
    chosen = [one for one in answered if one.answer.choice in one.answer.options]
    confidence = np.array([one.answer.options[str(one.answer.choice)] for one in chosen])
    return reliability(confidence, np.array([one.grade.correct for one in chosen]))


def _reliability_of_votes(model: MedVLM, items: Sequence[Item]) -> list[Bin]:
    """The probability of the letter over several reasonings, drawn at temperature 1."""
    decoding = dataclasses.replace(DECODING, sampling=Sampling(temperature=1.0))
    confidence, right = [], []
    with click.progressbar(items, label=f"Answering, {VOTES} votes", file=sys.stderr) as bar:
        for item in bar:
            found = vote(model, model.processor.prepare([item.image], item.question.problem), decoding, VOTES)
            confidence.append(found.options.get(str(found.choice), 0.0))
            right.append(found.choice == item.question.solution)
    return reliability(np.array(confidence), np.array(right))


def _answers(model: MedVLM, items: Sequence[Item], label: str, decoding: Decoding) -> list[Answered]:
    with click.progressbar(items, label=f"Answering, {label}", file=sys.stderr) as bar:
        return answer_all(model, bar, decoding=decoding)


def _decode_s(answered: Sequence[Answered]) -> float:
    return sum(one.answer.timings.decode_s for one in answered)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


if __name__ == "__main__":
    main()
