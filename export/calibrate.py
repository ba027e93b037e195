"""Calibrated quantization of the decoder: layer by layer, on what the layers before, quantized, really give.

    stream -> layer i in float32, its inputs watched -> Gram matrices -> AWQ's scales -> GPTQ or rounding -> blocks
           -> layer i with those blocks -> the stream of layer i + 1

Where prompts are read by a graph of their own, they go through in float32: the blocks are chosen for answers that read
exact keys and values, as they will. One layer's weights are in memory at a time. After each layer its blocks and the
streams are saved, so that an interrupted calibration goes on from there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..quant.blockwise import dequantize, quantize
from ..quant.scaling import search_scales
from ..runtime.errors import MedVLMError
from ..runtime.manifest import TextDims
from .decoder import build_head, build_layer
from .folds import FoldedReader, FoldSite, head_site, layer_sites
from .layers import ReadTensor
from .layerwise import LayerRunner, Watch, layer_of
from .packing import pack_calibrated
from .recipe import HEAD_SCOPE, Blockwise, Recipe
from .samples import Progress, Sample
from .workdir import Calibrated, Workdir

Stream = NDArray[np.float32]

# The cache's outputs and inputs in the graph of one layer.
_CACHE = ("present.0.key", "present.0.value")
_PAST = ("past_key_values.0.key", "past_key_values.0.value")


class Calibrator:
    """Quantizes the decoder's layers and its head one after the other."""

    def __init__(self, dims: TextDims, read: ReadTensor, recipe: Recipe, threads: int | None = None) -> None:
        """Every product of `recipe`'s decoder has blocks; its head may have other precisions, and is then left out."""
        self._dims, self._read, self._recipe = dims, read, recipe
        self._wants_head = isinstance(recipe.head, Blockwise)
        self._layer = LayerRunner(partial(build_layer, dims=dims), "residual", threads)
        self._head = LayerRunner(partial(build_head, dims=dims), "logits", threads)

    def run(self, samples: Sequence[Sample], workdir: Workdir, progress: Progress = lambda what: None) -> None:
        """Quantize everything for `samples`; the results are in `workdir`, which may hold some already."""
        done, streams = workdir.streams() or (0, [sample.embeddings[None] for sample in samples])
        for i in range(self._dims.layers):
            if i >= done:
                calibrated, streams = self._quantize_layer(i, samples, streams)
                workdir.save(f"layers.{i}", calibrated)
                workdir.save_streams(i + 1, streams)
            progress(f"layer {i + 1} of {self._dims.layers}")
        if self._wants_head and not workdir.holds(HEAD_SCOPE):
            workdir.save(HEAD_SCOPE, self._quantize_head(samples, streams))
        progress("head")

    def _precision_of(self, scope: str) -> Blockwise:
        precision = self._recipe.precision_of(scope)
        if not isinstance(precision, Blockwise):
            raise TypeError(f"{scope} has no blocks to calibrate")
        return precision

    def _quantize_layer(
        self, i: int, samples: Sequence[Sample], streams: Sequence[Stream]
    ) -> tuple[Calibrated, list[Stream]]:
        self._layer.load(layer_of(self._read, "model.layers", i))
        passing = _Passing(self._layer, self._dims, samples, streams, exact_prompts=self._recipe.prefill is not None)
        calibrated = self._quantize(self._layer, passing, layer_sites(self._dims, i), i)
        return calibrated, passing.finish()

    def _quantize_head(self, samples: Sequence[Sample], streams: Sequence[Stream]) -> Calibrated:
        self._head.load(self._read)
        return self._quantize(self._head, _Saying(self._head, samples, streams), [head_site(self._dims)], 0)

    def _quantize(
        self, runner: LayerRunner, passing: "_Passing | _Saying", sites: Sequence[FoldSite], i: int
    ) -> Calibrated:
        """Choose scales, then blocks; `runner` goes on with the values that the blocks stand for.

        The runner knows layer `i` under the names of layer 0.
        """
        own, local = f"layers.{i}/", "layers.0/"
        grams = _Grams({site.scope.replace(own, local): site.scope for site in sites})
        passing.watch(grams.add)
        scales = {
            site.name: awq_scales(site, self._read, self._precision_of(site.scope), grams[site.scope])
            for site in sites
            if "awq" in self._precision_of(site.scope).method
        }
        if scales:
            runner.load(layer_of(FoldedReader(self._read, sites, scales), "model.layers", i))
            passing.folded()
        blocks = {}
        for site in sites:
            gram = grams.pop(site.scope)
            if site.name in scales:
                factors = scales[site.name][site.columns]
                gram /= factors[:, None] * factors
            for product in runner.products_beside(site.scope.replace(own, local)):
                name = product.replace(local, own)
                try:
                    packed = pack_calibrated(runner.weight(product), self._precision_of(name), gram)
                except ValueError as error:
                    raise MedVLMError(f"{name} cannot be calibrated: {error}; give more or other questions") from error
                blocks[name] = packed
                runner.replace(product, dequantize(packed))
        return Calibrated(scales, blocks)


def awq_scales(
    site: FoldSite, read: ReadTensor, precision: Blockwise, gram: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The scales [channels] of a site under which the products that read it lose least, for inputs of this Gram matrix.

    gram: [columns, columns], or its diagonal [columns].
    """

    def rounded(weight: NDArray[np.float32]) -> NDArray[np.float32]:
        return dequantize(quantize(weight, precision.bits, precision.block_size, symmetric=precision.symmetric))

    found = search_scales([read(name) for name in site.read], gram, rounded, groups=site.columns).scales
    scales = np.empty(site.channels, np.float32)
    scales[site.columns] = found
    return scales


class _Passing:
    """Samples on their way through one layer.

    exact_prompts: prompts go through in float32 whatever the blocks are, as they do where another graph reads them, and
    answers read their keys and values; else both go through together.
    """

    def __init__(
        self,
        layer: LayerRunner,
        dims: TextDims,
        samples: Sequence[Sample],
        streams: Sequence[Stream],
        *,
        exact_prompts: bool,
    ) -> None:
        self._layer, self._dims = layer, dims
        self._pairs = list(zip(samples, streams, strict=True))
        self._exact_prompts = exact_prompts
        self._prompts: list[_Prompt | None] = []

    def watch(self, watch: Watch) -> None:
        """Show what every product multiplies, prompts and answers alike; the layer is in float32."""
        for sample, stream in self._pairs:
            self._prompts.append(self._prompt(sample, stream, watch))
            self._answer(sample, stream, self._prompts[-1], watch)

    def folded(self) -> None:
        """Pass the prompts again: scales were folded into the layer, and its values are others."""
        self._prompts = [self._prompt(sample, stream) for sample, stream in self._pairs]

    def finish(self) -> list[Stream]:
        """Pass the answers; the streams [1, tokens, hidden_size] behind the layer."""
        return [
            self._answer(sample, stream, prompt)
            for (sample, stream), prompt in zip(self._pairs, self._prompts, strict=True)
        ]

    def _prompt(self, sample: Sample, stream: Stream, watch: Watch | None = None) -> "_Prompt | None":
        if not self._exact_prompts:
            return None
        feeds = layer_feeds(sample, stream[:, : sample.start], self._dims)
        return _Prompt(*self._layer.run_all(feeds, _CACHE, watch))

    def _answer(self, sample: Sample, stream: Stream, prompt: "_Prompt | None", watch: Watch | None = None) -> Stream:
        if prompt is None:
            return self._layer.run(layer_feeds(sample, stream, self._dims), watch)
        feeds = layer_feeds(sample, stream[:, sample.start :], self._dims, sample.start)
        cache = dict(zip(_PAST, (prompt.keys, prompt.values), strict=True))
        return np.concatenate([prompt.stream, self._layer.run({**feeds, **cache}, watch)], axis=1)


@dataclass(frozen=True)
class _Prompt:
    """A prompt behind one layer: its stream [1, tokens, hidden_size], and the cache with its keys and values."""

    stream: Stream
    keys: NDArray[np.float32]
    values: NDArray[np.float32]


class _Saying:
    """The rows of samples that say something: no other is ever multiplied by the head."""

    def __init__(self, head: LayerRunner, samples: Sequence[Sample], streams: Sequence[Stream]) -> None:
        self._head = head
        self._rows = [stream[:, sample.start : -1] for sample, stream in zip(samples, streams, strict=True)]

    def watch(self, watch: Watch) -> None:
        """Show what the head multiplies."""
        for rows in self._rows:
            self._head.run({"inputs_embeds": rows}, watch)

    def folded(self) -> None:
        """Nothing follows the head."""


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


class _Grams(dict[str, NDArray[np.float32]]):
    """X^T X [in, in] of what products multiply, by scope; only of those whose local name is in `scopes`."""

    def __init__(self, scopes: Mapping[str, str]) -> None:
        super().__init__()
        self._scopes = scopes

    def add(self, scope: str, x: NDArray[np.float32]) -> None:
        """Add the inputs x [tokens, in] of a product."""
        if scope in self._scopes:
            name, gram = self._scopes[scope], x.T @ x
            if name in self:
                self[name] += gram
            else:
                self[name] = gram
