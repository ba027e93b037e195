"""Calibrated quantization of the decoder: product by product, on what those before, quantized, really give.

    exact stream, quantized stream -> what a product multiplies in either -> AWQ's scales -> GPTQ or rounding -> blocks
           -> the next product, with those blocks before it ... -> both streams behind the layer

GPTQ aims at the outputs of the exact stream, and so makes up for what the products before lost. One layer's weights are
in memory at a time. After each layer its blocks and the streams are saved, so that an interrupted calibration goes on
from there.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

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
from .passing import Inputs, Passing, Saying, Streams
from .recipe import HEAD_SCOPE, Blockwise, Recipe
from .samples import Progress, Sample
from .workdir import Calibrated, Workdir

# A token of an answer counts as so many of a prompt that goes through in float32: no block ever multiplies the latter,
# and it is there so that few answers do not decide by chance.
_ANSWER_WEIGHT = 10
# Rows of inputs that are multiplied at once, 73 MB of the widest.
_ROWS = 2048


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
        done, streams = workdir.streams() or (0, Streams.begin(samples))
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

    def _quantize_layer(self, i: int, samples: Sequence[Sample], streams: Streams) -> tuple[Calibrated, Streams]:
        self._layer.load(layer_of(self._read, "model.layers", i))
        exact_prompts = self._recipe.prefill is not None
        passing = Passing(self._layer, self._dims, samples, streams, exact_prompts=exact_prompts)
        calibrated = self._quantize(self._layer, passing, layer_sites(self._dims, i), i)
        return calibrated, passing.finish()

    def _quantize_head(self, samples: Sequence[Sample], streams: Streams) -> Calibrated:
        self._head.load(self._read)
        return self._quantize(self._head, Saying(self._head, samples, streams), [head_site(self._dims)], 0)

    def _quantize(
        self, runner: LayerRunner, passing: Passing | Saying, sites: Sequence[FoldSite], i: int
    ) -> Calibrated:
        """Choose scales, then blocks; `passing` goes on with the values that the blocks stand for.

        The runner knows layer `i` under the names of layer 0.
        """
        own, local = f"layers.{i}/", "layers.0/"
        scopes = {site.scope.replace(own, local): site for site in sites}
        grams = _Grams(scopes)
        passing.pass_prompts(grams.add)
        scales = {}
        if "awq" in self._precision_of(sites[0].scope).method:
            passing.watch(partial(grams.add, weight=_ANSWER_WEIGHT))
            for scope, site in scopes.items():
                scales[site.name] = awq_scales(site, self._read, self._precision_of(site.scope), grams[scope])
            runner.load(layer_of(FoldedReader(self._read, sites, scales), "model.layers", i))
            grams.clear()
            passing.pass_prompts(grams.add)
        blocks = {}
        for scope in scopes:
            drift = grams.add_pairs(scope, passing.inputs_of(scope), _ANSWER_WEIGHT)
            gram = grams.pop(scope)
            for product in runner.products_beside(scope):
                name = product.replace(local, own)
                try:
                    packed = pack_calibrated(runner.weight(product), self._precision_of(name), gram, drift)
                except ValueError as error:
                    raise MedVLMError(f"{name} cannot be calibrated: {error}; give more or other questions") from error
                blocks[name] = packed
                passing.quantize(product, packed)
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


class _Grams(dict[str, NDArray[np.float32]]):
    """X^T X [in, in] of what products multiply, by the scope that is in `scopes`; others are left out."""

    def __init__(self, scopes: Iterable[str]) -> None:
        super().__init__()
        self._scopes = frozenset(scopes)

    def add(self, scope: str, x: Inputs, weight: float = 1) -> None:
        """Add the inputs x [tokens, in] of a product, each as `weight` of them."""
        if scope in self._scopes:
            if weight != 1:
                x = x * np.float32(np.sqrt(weight))
            # A matrix by its own transpose: half the work of any other product.
            self[scope] = _sum(self.get(scope), x.T @ x)

    def add_pairs(self, scope: str, pairs: Iterable[tuple[Inputs, Inputs]], weight: float) -> NDArray[np.float32]:
        """Add the second of each pair, X; the sum of (first - X)^T X [in, in] in the same weight."""
        drift: NDArray[np.float32] | None = None
        for exact, x in _joined(pairs):
            self.add(scope, x, weight)
            exact -= x
            exact *= np.float32(weight)
            drift = _sum(drift, exact.T @ x)
        assert drift is not None, "there is a sample"  # noqa: S101
        return drift


def _sum(total: NDArray[np.float32] | None, more: NDArray[np.float32]) -> NDArray[np.float32]:
    return more if total is None else np.add(total, more, out=total)


def _joined(pairs: Iterable[tuple[Inputs, Inputs]]) -> Iterator[tuple[Inputs, Inputs]]:
    """The same rows in fewer pairs: what is added up is larger than most samples."""
    waiting: list[tuple[Inputs, Inputs]] = []
    for pair in pairs:
        waiting.append(pair)
        if sum(len(x) for _, x in waiting) >= _ROWS:
            yield _join(waiting)
            waiting = []
    if waiting:
        yield _join(waiting)


def _join(pairs: Sequence[tuple[Inputs, Inputs]]) -> tuple[Inputs, Inputs]:
    first, second = zip(*pairs, strict=True)
    return np.concatenate(first), np.concatenate(second)
