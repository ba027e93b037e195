"""What Prometheus is told: counts and times, and nothing of what was asked."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ..prefix import ImageSpan
from ..result import Answer
from .line import Line

_SECONDS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
_RATES = (1, 2, 5, 10, 15, 20, 30, 40, 60, 80, 120, 200, 400, 800)


class Metrics:
    """The server's own registry: two servers in one process do not mix."""

    CONTENT_TYPE = CONTENT_TYPE_LATEST

    def __init__(self, line: Line) -> None:  # type: ignore[type-arg]
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        waiting = Gauge("medvlm_queue_length", "Questions that wait.", registry=registry)
        waiting.set_function(lambda: line.length)
        self._requests = Counter(
            "medvlm_requests", "Requests by path and HTTP status.", ("path", "status"), registry=registry
        )
        self._waits = Histogram("medvlm_queue_seconds", "Time in the queue.", buckets=_SECONDS, registry=registry)
        self._first = Histogram(
            "medvlm_ttft_seconds", "Time to the first token, the queue left out.", buckets=_SECONDS, registry=registry
        )
        self._rates = Histogram(
            "medvlm_decode_tokens_per_second", "Tokens a second after the first.", buckets=_RATES, registry=registry
        )
        self._answers = Counter(
            "medvlm_answers", "Complete answers by what ended them.", ("finish_reason",), registry=registry
        )
        tokens = Counter("medvlm_tokens", "Tokens of complete answers.", ("kind",), registry=registry)
        self._tokens = {kind: tokens.labels(kind) for kind in ("prompt", "visual", "cached", "new")}
        self._hits = Counter("medvlm_prefix_hits", "Answers whose images were in the cache.", registry=registry)
        self._kept = Gauge("medvlm_prefix_bytes", "Memory that earlier questions take.", registry=registry)

    def requested(self, path: str, status: int) -> None:
        """A request was answered. path: of a route, never as the client wrote it."""
        self._requests.labels(path, str(status)).inc()

    def waited(self, seconds: float) -> None:
        """A request left the queue to be answered."""
        self._waits.observe(seconds)

    def answered(self, answer: Answer, images: Sequence[ImageSpan]) -> None:
        """An answer is complete. images: where those of its prompt stand."""
        self._first.observe(answer.timings.first_token_s)
        if answer.timings.decode_tokens_per_s:
            self._rates.observe(answer.timings.decode_tokens_per_s)
        self._answers.labels(answer.finish_reason).inc()
        self._tokens["prompt"].inc(answer.prompt_tokens)
        self._tokens["visual"].inc(answer.visual_tokens)
        self._tokens["cached"].inc(answer.cached_tokens)
        self._tokens["new"].inc(answer.new_tokens)
        if images and images[-1].end <= answer.cached_tokens:
            self._hits.inc()

    def kept(self, nbytes: int) -> None:
        """Bytes of the prefix cache now."""
        self._kept.set(nbytes)

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self._registry)
