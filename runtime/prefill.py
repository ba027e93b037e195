"""Prompts into caches: images are encoded, embeddings looked up, and only what no earlier question left is computed."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from .accelerator import Accelerator
from .device_decoder import AnyDecoder
from .embeddings import EmbeddingTable
from .logits import Logits
from .manifest import TextDims
from .positions import followed, mrope_tables
from .prefix import PrefixCache
from .processor import Picture, Request
from .session import one_line_failures
from .stream import Progress
from .vision import VisionEncoder


class Prefill:
    """Fills decoders with prompts. `prefixes` owns the decoders, and what images look like to the model."""

    def __init__(
        self,
        table: EmbeddingTable,
        vision: VisionEncoder,
        prefixes: PrefixCache,
        dims: TextDims,
        gpu: Accelerator | None = None,
    ) -> None:
        """gpu: where the graphs compute, if that is one."""
        self.prefixes, self._gpu = prefixes, gpu
        self._table, self._vision, self._dims = table, vision, dims

    def fill(self, request: Request, new_tokens: int, progress: Progress) -> tuple[AnyDecoder, Logits]:
        """A decoder that holds the prompt and has room for `new_tokens`, and the logits [vocab_size] after the prompt.

        Both are good until the next prefill. How long it took and what was there already is noted in `progress`.
        """
        decoder = self.prefixes.sequence(request.contents, len(request.token_ids) + new_tokens)
        progress.cached_tokens = decoder.length
        try:
            embeddings = self.embed(request, decoder.length, progress)
            progress.clock.mark("vision")
            self.write_rotary(request, decoder, new_tokens)
            with one_line_failures("prefill", self._gpu):
                logits = decoder.prefill(embeddings)
        except BaseException:
            self.prefixes.forget(decoder)
            raise
        progress.clock.mark("prefill")
        return decoder, logits

    def embed(self, request: Request, start: int, progress: Progress) -> NDArray[np.float32]:
        """The embeddings [tokens, hidden_size] of the prompt from slot `start` on, images' features among them."""
        embeddings = self._table.rows(request.token_ids[start:])
        for picture, span in zip(request.images, request.contents.images, strict=True):
            if span.end > start:
                features = self.prefixes.features(span.digest, partial(self._encode, picture, progress))
                first = max(span.start, start)
                embeddings[first - start : span.end - start] = features[first - span.start :]
        return embeddings

    def _encode(self, picture: Picture, progress: Progress) -> NDArray[np.float32]:
        """The features [visual tokens, out_dim] of an image."""
        progress.clock.mark("vision")
        patches = picture.patches()
        progress.clock.mark("preprocess")
        with one_line_failures("the vision encoder", self._gpu):
            return self._vision.encode(patches)

    def write_rotary(self, request: Request, decoder: AnyDecoder, new_tokens: int) -> None:
        """Rotary rows for what is left of the prompt and for what follows, whose positions count up on all axes."""
        start = decoder.length
        positions = followed(request.positions, new_tokens)[:, start:]
        decoder.write_rotary(start, *mrope_tables(positions, self._dims))
