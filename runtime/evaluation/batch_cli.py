"""The `medvlm batch` command: one question about every image of a folder."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import click

from ..cli_options import BUNDLE, Asking, Loading, asking_options, decoding_options, loading_options, viewing_options
from ..commands import ErrorCommand
from ..decoding import Decoding
from ..dicom.view import View
from ..errors import plain
from ..processor import Processor
from ..prompt import parse_options
from .cli import OUT, RETRY_ERRORS
from .engines import Chosen, engine_options, progress_bar
from .evaluate import folder_header, folder_tasks
from .outcome import Outcome
from .results import check_places, open_results
from .score import Tally
from .tasks import Way, carry_out, kept, pending


@click.command(cls=ErrorCommand)
@BUNDLE
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-q", "--question", required=True, help="The question, its options included.")
@OUT
@RETRY_ERRORS
@engine_options
@asking_options
@viewing_options
@decoding_options
@loading_options
def batch(
    bundle: Path,
    folder: Path,
    question: str,
    out: Path,
    retry_errors: bool,
    chosen: Chosen,
    asking: Asking,
    view: View,
    decoding: Decoding,
    loading: Loading,
) -> None:
    """Ask one question about every file in FOLDER, and with --montage or --frame about every series' folder in it.

    Every answer is on the disk before the next question: stopped in whatever way, the same command goes on, and files
    that were added since are asked about too. A file that is no image is recorded as an error.
    """
    chosen.check()
    way = Way(asking, decoding, view)
    check_places(bundle, {"--out": out, "--audit": loading.audit})
    tasks = folder_tasks(folder, question, out, view)
    opened, length = loading.open(bundle)
    processor = Processor(opened)
    # A question that cannot be asked is wrong for every image.
    processor.prepare([], question)
    engine = chosen.make(opened, processor, loading, way)
    with open_results(out, folder_header(opened, question, folder, way, length)) as results:
        left = pending(tasks, results, errors=retry_errors)
        if left:
            label, before = f"Asking about {len(tasks)} files", len(tasks) - len(left)
            with progress_bar(label, len(left), before, Tally([], kept(results, left)).add) as progress:
                carry_out(left, engine, results, progress)
        click.echo(_summary(results.outcomes, parse_options(question)))
    click.echo(f"answers: {plain(str(out))}")


def _summary(outcomes: Mapping[str, Outcome], options: Mapping[str, str]) -> str:
    """How many files were asked about, each error, and how often each letter was the answer."""
    lines = [
        f"{plain(outcome.key)}: {plain(outcome.error)}" for outcome in outcomes.values() if outcome.error is not None
    ]
    answered = [outcome for outcome in outcomes.values() if outcome.error is None]
    counts = Counter(outcome.choice for outcome in answered)
    lines.append(f"{len(answered)} answered, errors: {len(outcomes) - len(answered)}")
    if options:
        lines += [f"{letter}) {plain(text)}: {counts[letter]}" for letter, text in options.items()]
        lines += [f"no letter: {counts[None]}"] if counts[None] else []
    return "\n".join(lines)
