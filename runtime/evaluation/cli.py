"""The `medvlm eval` command: a dataset's questions asked, and how many answers were right."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from ..cli_options import BUNDLE, Asking, Loading, asking_options, decoding_options, loading_options, viewing_options
from ..commands import ErrorCommand
from ..dataset import read_dataset
from ..decoding import Decoding
from ..dicom.view import View
from ..errors import InputError, plain
from ..files import write_whole
from ..processor import Processor
from .engines import Chosen, engine_options, progress_bar
from .evaluate import check_dataset, dataset_header, dataset_tasks
from .report import check_report, render_report
from .results import check_places, open_results
from .score import PUBLISHED, Tally, is_the_papers, score_all
from .table import score_table
from .tasks import Way, carry_out, check_some_image, kept, pending

OUT = click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The results: a JSON line an answer. Where it exists, the work goes on behind it.",
)
RETRY_ERRORS = click.option("--retry-errors", is_flag=True, help="Ask again what the results hold as an error.")


# The paper's accuracy is of what the model writes by itself.
@click.command("eval", cls=ErrorCommand, context_settings={"default_map": {"constrained": False}})
@BUNDLE
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--images", type=click.Path(path_type=Path), help="Where the paths of images start  [default: DATASET's]")
@OUT
@RETRY_ERRORS
@click.option("--questions", type=int, help="Ask only the first so many  [default: all]")
@click.option(
    "--blank-images", is_flag=True, help="Then ask all again about grey images: what is known without looking."
)
@click.option(
    "--report", type=click.Path(path_type=Path), help="Write a page (.html) with every wrong answer and its image."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@engine_options
@asking_options
@viewing_options
@decoding_options
@loading_options
def evaluate(
    bundle: Path,
    dataset: Path,
    images: Path | None,
    out: Path,
    retry_errors: bool,
    questions: int | None,
    blank_images: bool,
    report: Path | None,
    as_json: bool,
    chosen: Chosen,
    asking: Asking,
    view: View,
    decoding: Decoding,
    loading: Loading,
) -> None:
    """Ask every question of DATASET and count the right answers.

    DATASET is a JSON list, JSON lines or a CSV table of image, problem and solution (options and subset where they are
    known). Every answer is on the disk before the next question: stopped in whatever way, the same command goes on. A
    question that cannot be asked is recorded as an error.
    """
    if questions is not None and questions < 1:
        raise InputError(f"--questions is {questions}; give at least 1")
    chosen.check()
    check_places(bundle, {"--out": out, "--report": report, "--audit": loading.audit})
    if report is not None:
        check_report(report)
    check_dataset(dataset)
    folder, way = images or dataset.parent, Way(asking, decoding, view)
    items = read_dataset(dataset, images, find_images=False)[:questions]
    tasks = dataset_tasks(items, folder, blank_images=blank_images)
    check_some_image(tasks, folder)
    opened, length = loading.open(bundle)
    engine = chosen.make(opened, Processor(opened), loading, way)
    with open_results(out, dataset_header(opened, dataset, folder, way, length)) as results:
        left = pending(tasks, results, errors=retry_errors)
        if left:
            tally = Tally(items, kept(results, left))
            with progress_bar("Evaluating", len(left), len(tasks) - len(left), tally.add) as progress:
                carry_out(left, engine, results, progress)
        scores = score_all(items, results.outcomes)
        if report is not None:
            write_whole(report, render_report(opened, dataset, items, results.outcomes, scores, view))
    if as_json:
        click.echo(json.dumps({"bundle": str(bundle), "dataset": str(dataset), "scores": [*map(asdict, scores)]}))
        return
    click.echo(score_table(scores))
    if is_the_papers(items):
        click.echo(PUBLISHED)
    if report is not None:
        click.echo(f"report: {plain(str(report))}")
