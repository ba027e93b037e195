"""The one thread that touches the model: it takes requests out of the line and answers them one after the other."""

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from ..model import MedVLM
from ..result import Answer
from ..stream import Stream
from .errors import let_go
from .job import Begun, Ended, Failed, Job, Piece
from .line import Line
from .logprobs import measure
from .splitting import StopFilter

if TYPE_CHECKING:
    from .metrics import Metrics


class Worker(threading.Thread):
    """Runs until the line is closed and the answer begun is given."""

    def __init__(self, model: MedVLM, line: Line[Job], metrics: "Metrics") -> None:
        super().__init__(name="medvlm-worker", daemon=True)
        self._model, self._line, self._metrics = model, line, metrics
        self._changing = threading.Lock()
        # What is being answered now.
        self.running: Job | None = None

    def run(self) -> None:
        """Answer what is in the line."""
        for job in iter(self._line.take, None):
            self._metrics.waited(time.monotonic() - job.entered)
            self._turn_to(job)
            complete = False
            try:
                complete = self._answer(job)
            # The thread lives on whatever happens to one request, a panic of Rust included; its reader is told.
            except BaseException as error:  # noqa: BLE001
                let_go(error)
                job.emit(Failed(error if isinstance(error, Exception) else RuntimeError(type(error).__name__)))
            finally:
                # Its images go now, and not when the next one comes.
                del job
                self._turn_to(None)
                self._line.finished(counts=complete)
                self._metrics.kept(self._model.prefill.prefixes.nbytes)

    def interrupt(self, job: Job) -> None:
        """End what is computed for a job whose reader has left: an image, a prompt or a token. From any thread."""
        with self._changing:
            if self.running is job:
                self._model.interruption.set()

    def _turn_to(self, job: Job | None) -> None:
        # Together: what was meant for the job before must not end this one.
        with self._changing:
            self.running = job
            self._model.interruption.clear()

    def _answer(self, job: Job) -> bool:
        """Give all answers of a job; False where its client went away before."""
        job.emit(Begun())
        for index in range(job.answers):
            if job.cancelled.is_set():
                return False
            stream = self._model.run(job.request, job.decoding, preprocess_s=job.preprocess_s, vote=index)
            # Closed at once where it is given up, for the audit log.
            with contextlib.closing(stream):
                answer = _read(stream, job, index)
            if answer is None:
                return False
            self._metrics.answered(answer, job.request.contents.images)
            likelihoods = None
            if job.top_logprobs is not None and not job.cancelled.is_set():
                likelihoods = measure(self._model, job.request, answer, job.top_logprobs)
            job.emit(Ended(index, answer, likelihoods))
        return True


def _read(stream: Stream, job: Job, index: int) -> Answer | None:
    """The answer, told piece by piece up to a word that stops it; None where the client went away."""
    stops = StopFilter(job.stops)
    for piece in stream:
        if job.cancelled.is_set():
            return None
        text, stopped = stops.feed(piece)
        if text:
            job.emit(Piece(index, text))
        if stopped:
            return stream.stop()
    if rest := stops.flush():
        job.emit(Piece(index, rest))
    return stream.answer
