"""What one running server consists of."""

import asyncio
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from ..bundle import Bundle, sha256
from ..cli_options import Asking
from ..manifest import MANIFEST, Manifest
from ..model import MedVLM
from .job import Job
from .line import Line
from .metrics import Metrics
from .prepare import Preparer
from .seats import Bodies, Seats
from .settings import Settings
from .worker import Worker

# Qwen2-VL's vocabulary has 151,936 tokens; the model of drawings that comes with the project has 1,088.
_LEAST_VOCABULARY = 10_000
# Previews that are decoded or wait for it, and when to try again.
_LOOKS, _LOOK_AGAIN_S = 8, 1.0
# Largest bodies at a time: a character of JSON may take four bytes for each of its own.
_BODIES = 2


@dataclass(frozen=True)
class Service:
    """bundle: the sha256 of its manifest. questions, looks: seats of who asks, and of who previews an image.

    draining: set once the server stops.
    """

    settings: Settings
    manifest: Manifest
    bundle: str
    line: Line[Job]
    questions: Seats
    looks: Seats
    preparer: Preparer
    metrics: Metrics
    worker: Worker
    tokenizer: Tokenizer
    bodies: Bodies
    draining: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def model(self) -> str:
        """What the model is called."""
        return self.manifest.source.name

    @property
    def demo(self) -> bool:
        """Whether it is far too small to be MedVLM-R1: the model that knows drawings alone."""
        return self.manifest.text.vocab_size < _LEAST_VOCABULARY

    def drain(self) -> None:
        """Take no more questions, and refuse those that wait; the answer begun is finished."""
        self.questions.closed = self.looks.closed = True
        self.draining.set()
        for job in self.line.close():
            job.refuse()

    def cut_off(self) -> None:
        """Refuse what is being answered, too."""
        job = self.worker.running
        if job is not None:
            job.refuse()


def start_service(model: MedVLM, bundle: Bundle, asking: Asking, settings: Settings) -> Service:
    """Everything but the network; the worker's thread runs."""
    line: Line[Job] = Line(settings.limits)
    metrics = Metrics(line)
    worker = Worker(model, line, metrics)
    preparer = Preparer(model.processor, model.max_length, asking, settings.limits)
    worker.start()
    return Service(
        settings=settings,
        manifest=model.manifest,
        bundle=sha256(bundle.path(MANIFEST)),
        line=line,
        # One is being answered, the others wait.
        questions=Seats(settings.limits.queue + 1, lambda: line.expected_s),
        looks=Seats(_LOOKS, lambda: _LOOK_AGAIN_S),
        preparer=preparer,
        metrics=metrics,
        worker=worker,
        tokenizer=model.processor.tokenizer,
        bodies=Bodies(_BODIES * settings.limits.body_bytes),
    )


def report_unexpected(error: BaseException) -> None:
    """One line for who runs the server: what was raised and where, but no message, which may quote what was asked."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" at {Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place is not None else ""
    print(f"Error: unexpected {type(error).__name__}{where}", file=sys.stderr, flush=True)  # noqa: T201
