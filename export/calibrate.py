"""Calibrated quantization of the decoder: layer by layer, on what the layers before, quantized, really give.

    stream -> layer i in float32, its inputs watched -> Gram matrices -> AWQ's scales -> GPTQ or rounding -> blocks
           -> layer i with those blocks -> the stream of layer i + 1

One layer's weights are in memory at a time. After each layer its blocks and the streams are saved, so that an
interrupted calibration goes on from there.
"""

from collections.abc import Iterable, Mapping, Sequence
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
from .layerwise import LayerRunner, layer_of
from .packing import pack_calibrated
from .recipe import HEAD_SCOPE, Blockwise, Recipe
from .samples import Progress, Sample
from .workdir import Calibrated, Workdir

Stream = NDArray[np.float32]


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
        layer = self._layer
        layer.load(layer_of(self._read, "model.layers", i))
        feeds = [layer_feeds(sample, stream, self._dims) for sample, stream in zip(samples, streams, strict=True)]
        calibrated = self._quantize(layer, feeds, layer_sites(self._dims, i), i)
        return calibrated, [layer.run(feed) for feed in feeds]

    def _quantize_head(self, samples: Sequence[Sample], streams: Sequence[Stream]) -> Calibrated:
        # Only the rows that say something are ever multiplied by the head.
        rows = [stream[:, sample.start : -1] for sample, stream in zip(samples, streams, strict=True)]
        self._head.load(self._read)
        return self._quantize(self._head, [{"inputs_embeds": x} for x in rows], [head_site(self._dims)], 0)

    def _quantize(
        self, runner: LayerRunner, feeds: Iterable[Mapping[str, Any]], sites: Sequence[FoldSite], i: int
    ) -> Calibrated:
        """Choose scales, then blocks; `runner` goes on with the values that the blocks stand for.

        The runner knows layer `i` under the names of layer 0.
        """
        own, local = f"layers.{i}/", "layers.0/"
        grams = _Grams({site.scope.replace(own, local): site.scope for site in sites})
        for feed in feeds:
            runner.run(feed, grams.add)
        scales = {
            site.name: awq_scales(site, self._read, self._precision_of(site.scope), grams[site.scope])
            for site in sites
            if "awq" in self._precision_of(site.scope).method
        }
        runner.load(layer_of(FoldedReader(self._read, sites, scales), "model.layers", i))
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


def layer_feeds(sample: Sample, stream: Stream, dims: TextDims) -> dict[str, NDArray[Any]]:
    """What one layer reads but its weights, for a whole sample in one call: stream [1, tokens, hidden_size]."""
    tokens = stream.shape[1]
    past = np.zeros((1, dims.num_kv_heads, tokens, dims.head_size), np.float32)
    return {
        "inputs_embeds": stream,
        "seqlens_k": np.array([tokens - 1], np.int32),
        "total_sequence_length": np.array(tokens, np.int32),
        "cos_cache": sample.cos,
        "sin_cache": sample.sin,
        "past_key_values.0.key": past,
        "past_key_values.0.value": past,
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
