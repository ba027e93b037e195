"""The model: load a bundle once, ask as often as you like."""

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .bundle import DECODER, EMBEDDINGS, VISION, Bundle, open_bundle
from .decoder import Decoder
from .embeddings import EmbeddingTable
from .errors import InputError
from .generate import Token, greedy
from .images import ImageSource, LoadedImage
from .positions import mrope_tables
from .processor import Processor, Request
from .result import Answer
from .session import check_device, one_line_failures
from .stream import Clock, Stream
from .vision import VisionEncoder

DEFAULT_MAX_NEW_TOKENS = 512
# 5,000 visual tokens and a long conversation; the cache takes memory only as far as it is used.
DEFAULT_MAX_LENGTH = 8192

Images = ImageSource | LoadedImage | Sequence[ImageSource | LoadedImage] | None


class MedVLM:
    """A loaded bundle. It answers one question at a time: starting another ends the stream before it.

    Not safe for use from several threads at once: give each its own instance, or a lock.
    """

    def __init__(
        self,
        bundle: Bundle,
        processor: Processor | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        max_length: int | None = None,
    ) -> None:
        """Open the sessions of a checked bundle; see `load`."""
        check_device(device)
        started = time.perf_counter()
        dims = bundle.manifest.text
        self.manifest = bundle.manifest
        self.processor = processor or Processor(bundle)
        self.max_length = context_length(bundle, max_length)
        threads = _check_threads(threads)
        with one_line_failures("loading"):
            self._vision = VisionEncoder(bundle.path(VISION), bundle.manifest.vision, threads)
            self._decoder = Decoder(bundle.path(DECODER), dims, self.max_length, threads)
        self._embeddings = EmbeddingTable(
            bundle.path(EMBEDDINGS), bundle.manifest.embedding_dtype, dims.vocab_size, dims.hidden_size
        )
        self.load_s = time.perf_counter() - started
        self._stream: Stream | None = None

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str],
        device: str = "auto",
        threads: int | None = None,
        *,
        max_length: int | None = None,
        hash_files: bool = False,
    ) -> "MedVLM":
        """Load the bundle in a directory.

        device: "auto" or "cpu". threads: None takes one for each physical core. max_length: tokens that prompt and
        answer may have together, by default 8192 or what the model holds. hash_files: check every file's sha256 first.
        Raises `BundleError` for a bundle that is not sound, `InputError` for an argument that is not.
        """
        return cls(
            open_bundle(Path(bundle), hash_files=hash_files), device=device, threads=threads, max_length=max_length
        )

    def ask(
        self,
        image: Images,
        question: str,
        *,
        raw: bool = False,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> Answer:
        """Ask `question` of an image, of several in order, or of none (None or an empty list); wait for the answer.

        raw: send the question as it is, without the question template. min_pixels, max_pixels: override the
        checkpoint's limits on the resized image. Raises `InputError`, before any work, for an image, a question or a
        limit that will not do.
        """
        stream = self.stream(
            image, question, raw=raw, max_new_tokens=max_new_tokens, min_pixels=min_pixels, max_pixels=max_pixels
        )
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self,
        image: Images,
        question: str,
        *,
        raw: bool = False,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> Stream:
        """As `ask`, but yields the text as it comes; the stream's `answer` is there at its end."""
        started = time.perf_counter()
        request = self.processor.prepare(
            _as_list(image), question, raw=raw, min_pixels=min_pixels, max_pixels=max_pixels
        )
        return self.run(request, max_new_tokens, preprocess_s=time.perf_counter() - started)

    def run(
        self, request: Request, max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS, *, preprocess_s: float = 0.0
    ) -> Stream:
        """Answer a prepared request; `preprocess_s` is the time that preparing it took, for the timings."""
        check_fit(request, self.max_length, max_new_tokens)
        if self._stream is not None:
            self._stream.replace()
        self._stream = Stream(
            request, partial(self._generate, request, max_new_tokens), load_s=self.load_s, preprocess_s=preprocess_s
        )
        return self._stream

    def _generate(self, request: Request, max_new_tokens: int, clock: Clock) -> Iterator[Token]:
        """The tokens of an answer, each stage's time marked on `clock`."""
        with one_line_failures("the vision encoder"):
            features = [self._vision.encode(image) for image in request.images]
        clock.mark("vision")
        self._decoder.length = 0
        embeddings = self._embed(request, features)
        self._write_rotary(request, max_new_tokens)
        with one_line_failures("prefill"):
            logits = self._decoder.prefill(embeddings)
        clock.mark("prefill")
        yield from greedy(
            logits,
            self._step,
            tokenizer=self.processor.tokenizer,
            end_ids=self.manifest.generation.eos_token_ids,
            max_new_tokens=max_new_tokens,
            free_slots=self.max_length - len(request.token_ids),
        )

    def _step(self, token_id: int) -> NDArray[np.float32]:
        embedding = self._embeddings.rows(np.array([token_id]))[0]
        with one_line_failures("decode"):
            return self._decoder.step(embedding)

    def _embed(self, request: Request, features: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """The prompt's embeddings [tokens, hidden_size], the images' features in place of their tokens."""
        embeddings = self._embeddings.rows(request.token_ids)
        if features:
            embeddings[request.token_ids == self.manifest.image_token_id] = np.concatenate(features)
        return embeddings

    def _write_rotary(self, request: Request, new_tokens: int) -> None:
        """Rotary rows for the prompt and for what follows, whose positions count up on all three axes."""
        new_tokens = min(new_tokens, self.max_length - len(request.token_ids))
        following = request.positions.max() + 1 + np.arange(new_tokens)
        positions = np.concatenate([request.positions, np.broadcast_to(following, (3, new_tokens))], axis=1)
        self._decoder.write_rotary(0, *mrope_tables(positions, self.manifest.text))


def context_length(bundle: Bundle, max_length: int | None) -> int:
    """The cache's length in tokens. Raises `InputError` for one that the model does not hold."""
    limit = bundle.manifest.text.max_positions
    if max_length is None:
        return min(DEFAULT_MAX_LENGTH, limit)
    if not 2 <= max_length <= limit:
        raise InputError(f"max_length is {max_length}; this model takes 2 to {limit}")
    return max_length


def check_fit(request: Request, max_length: int, max_new_tokens: int) -> None:
    """Raise `InputError`, with the numbers, where the prompt leaves no room for an answer."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; at least 1 is needed")
    tokens = len(request.token_ids)
    if tokens >= max_length:
        raise InputError(
            f"the prompt has {tokens} tokens ({request.visual_tokens} of them visual) and the context holds "
            f"{max_length}; lower --max-pixels, give fewer images, or raise --max-length"
        )


def _check_threads(threads: int | None) -> int | None:
    if threads is not None and not 1 <= threads <= (os.cpu_count() or 1) * 4:
        raise InputError(f"threads is {threads}; give 1 to {(os.cpu_count() or 1) * 4}")
    return threads


def _as_list(image: Images) -> list[ImageSource | LoadedImage]:
    if image is None:
        return []
    return list(image) if isinstance(image, list | tuple) else [image]  # type: ignore[list-item]
