"""Samples on their way through the decoder, in float32 and behind what is quantized so far, side by side.

Where prompts are read by a graph of their own, they go through in float32 on both ways: answers read exact keys and
values, as they will.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quant.blockwise import Blockwise, dequantize
from ..runtime.manifest import TextDims
from .layerwise import LayerRunner, Watch
from .samples import Sample

Stream = NDArray[np.float32]
Inputs = NDArray[np.float32]

# The cache's outputs and inputs in the graph of one layer.
_CACHE = ("present.0.key", "present.0.value")
_PAST = ("past_key_values.0.key", "past_key_values.0.value")


@dataclass(frozen=True)
class Streams:
    """What samples are between two layers, [1, tokens, hidden_size] each: in float32, and behind quantized layers."""

    exact: list[Stream]
    quantized: list[Stream]

    @classmethod
    def begin(cls, samples: Sequence[Sample]) -> "Streams":
        """Before the first layer, where they are the same."""
        embeddings = [sample.embeddings[None] for sample in samples]
        return cls(embeddings, embeddings)


class Passing:
    """Samples on their way through one layer."""

    def __init__(
        self,
        layer: LayerRunner,
        dims: TextDims,
        samples: Sequence[Sample],
        streams: Streams,
        *,
        exact_prompts: bool,
    ) -> None:
        """exact_prompts: prompts go through in float32 by themselves; else prompts and answers go through together."""
        self._layer, self._dims = layer, dims
        self._samples, self._streams = samples, streams
        self._exact_prompts = exact_prompts
        self._prompts: list[_Prompt] = []

    def pass_prompts(self, watch: Watch) -> None:
        """Pass the prompts, if they go by themselves, and show what every product multiplies. Comes first.

        Also whenever the layer was loaded anew: its keys and values are others.
        """
        self._prompts = []
        if self._exact_prompts:
            for sample, stream in zip(self._samples, self._streams.exact, strict=True):
                feeds = layer_feeds(sample, stream[:, : sample.start], self._dims)
                self._prompts.append(_Prompt(*self._layer.run_all(feeds, _CACHE, watch, exact=True)))

    def watch(self, watch: Watch) -> None:
        """Show what every product multiplies of what `pass_prompts` left."""
        for feeds in self._feeds(self._streams.quantized):
            self._layer.run(feeds, watch)

    def inputs_of(self, scope: str) -> Iterator[tuple[Inputs, Inputs]]:
        """What a product multiplies of what `pass_prompts` left, [tokens, in] for each sample: exactly, and now."""
        ways = (self._feeds(self._streams.exact), self._feeds(self._streams.quantized))
        for exact, quantized in zip(*ways, strict=True):
            yield self._layer.input_of(scope, exact, exact=True), self._layer.input_of(scope, quantized)

    def quantize(self, scope: str, blocks: Blockwise) -> None:
        """Let a product multiply by what its blocks stand for from now on."""
        self._layer.replace(scope, dequantize(blocks))

    def finish(self) -> Streams:
        """The streams behind the layer."""
        return Streams(self._behind(self._streams.exact, exact=True), self._behind(self._streams.quantized))

    def _feeds(self, streams: Sequence[Stream]) -> Iterator[dict[str, NDArray[Any]]]:
        for i, (sample, stream) in enumerate(zip(self._samples, streams, strict=True)):
            if self._exact_prompts:
                feeds = layer_feeds(sample, stream[:, sample.start :], self._dims, sample.start)
                cache = dict(zip(_PAST, (self._prompts[i].keys, self._prompts[i].values), strict=True))
                yield {**feeds, **cache}
            else:
                yield layer_feeds(sample, stream, self._dims)

    def _behind(self, streams: Sequence[Stream], *, exact: bool = False) -> list[Stream]:
        passed = [self._layer.run(feeds, exact=exact) for feeds in self._feeds(streams)]
        if not self._exact_prompts:
            return passed
        pairs = zip(self._prompts, passed, strict=True)
        return [np.concatenate([prompt.stream, answer], axis=1) for prompt, answer in pairs]


@dataclass(frozen=True)
class _Prompt:
    """A prompt behind one layer: its stream [1, tokens, hidden_size], and the cache with its keys and values."""

    stream: Stream
    keys: NDArray[np.float32]
    values: NDArray[np.float32]


class Saying:
    """What says something of samples behind the last layer: no other row is ever multiplied by the head."""

    def __init__(self, head: LayerRunner, samples: Sequence[Sample], streams: Streams) -> None:
        self._head, self._samples, self._streams = head, samples, streams

    def pass_prompts(self, watch: Watch) -> None:
        """Prompts say nothing."""

    def watch(self, watch: Watch) -> None:
        """Show what the head multiplies."""
        for rows in self._rows(self._streams.quantized):
            self._head.run(rows, watch)

    def inputs_of(self, scope: str) -> Iterator[tuple[Inputs, Inputs]]:
        """What the head multiplies, [tokens, in] for each sample: exactly, and behind the quantized layers."""
        for exact, quantized in zip(self._rows(self._streams.exact), self._rows(self._streams.quantized), strict=True):
            yield self._head.input_of(scope, exact), self._head.input_of(scope, quantized)

    def quantize(self, scope: str, blocks: Blockwise) -> None:
        """Nothing follows the head."""

    def _rows(self, streams: Sequence[Stream]) -> Iterator[dict[str, Stream]]:
        for sample, stream in zip(self._samples, streams, strict=True):
            yield {"inputs_embeds": stream[:, sample.start : -1]}


def layer_feeds(sample: Sample, stream: Stream, dims: TextDims, start: int = 0) -> dict[str, NDArray[Any]]:
    """What one layer reads but its weights: stream [1, tokens, hidden_size], the tokens of a sample from `start` on.

    The cache has room for the whole sample and is empty; another may take its place.
    """
    total = start + stream.shape[1]
    past = np.zeros((1, dims.num_kv_heads, len(sample.cos), dims.head_size), np.float32)
    return {
        "inputs_embeds": stream,
        "seqlens_k": np.array([total - 1], np.int32),
        "total_sequence_length": np.array(total, np.int32),
        "cos_cache": sample.cos,
        "sin_cache": sample.sin,
        **dict.fromkeys(_PAST, past),
    }
