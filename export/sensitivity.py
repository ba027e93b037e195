"""Which products of the decoder deserve 8 bits: what 4 bits in each alone do to the output distribution."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..quant.blockwise import dequantize
from ..runtime.manifest import TextDims
from ..runtime.statistics import kl_divergence
from .decoder import build_head, build_layer
from .layers import ReadTensor
from .layerwise import LayerRunner, layer_of
from .packing import pack_blocks, without_calibration
from .passing import Stream, layer_feeds
from .recipe import HEAD_SCOPE, Blockwise, Recipe
from .samples import Progress, Sample

# All streams together may take so many bytes; fewer samples are looked at where they would take more.
_STREAM_BYTES = 2_000_000_000
_PRODUCTS = 5


@dataclass(frozen=True)
class Sensitivity:
    """kl: mean KL divergence from fp32, in nats, with this product alone at 4 bits. extra_bytes: what 8 would add."""

    kl: float
    extra_bytes: int


def sensitivities(
    dims: TextDims,
    read: ReadTensor,
    recipe: Recipe,
    samples: Sequence[Sample],
    threads: int | None = None,
    progress: Progress = lambda what: None,
) -> dict[str, Sensitivity]:
    """The sensitivity of every product of the decoder, and of the head where it has blocks of 4 bits, by scope.

    One pass over the layers: each product of a layer starts a stream of its own, which goes on in float32 beside the
    others. Blocks are made from weights alone: see `without_calibration`.
    """
    samples = samples[: _affordable(samples, dims)]
    exact = [sample.embeddings[None] for sample in samples]
    tried: dict[str, list[Stream]] = {}
    extra: dict[str, int] = {}
    layer = LayerRunner(partial(build_layer, dims=dims), "residual", threads)
    for i in range(dims.layers):
        layer.load(layer_of(read, "model.layers", i))
        run = partial(_run, layer, samples, dims)
        tried = {scope: run(streams) for scope, streams in tried.items()}
        for product in layer.products:
            scope = product.replace("layers.0/", f"layers.{i}/")
            weight = layer.weight(product)
            extra[scope] = _round(layer, product, weight, recipe.precision_of(scope))
            tried[scope] = run(exact)
            layer.restore(product)
        exact = run(exact)
        progress(f"sensitivity, layer {i + 1} of {dims.layers}")
    head = LayerRunner(partial(build_head, dims=dims), "logits", threads)
    head.load(read)
    logits = _logits(head, samples, exact)
    kl = {scope: kl_divergence(logits, _logits(head, samples, streams)) for scope, streams in tried.items()}
    if isinstance(recipe.head, Blockwise) and recipe.head.bits == 4:
        extra[HEAD_SCOPE] = _round(head, HEAD_SCOPE, head.weight(HEAD_SCOPE), recipe.head)
        kl[HEAD_SCOPE] = kl_divergence(logits, _logits(head, samples, exact))
    progress("sensitivity, head")
    return {scope: Sensitivity(float(kl[scope].mean()), extra[scope]) for scope in kl}


def choose_eight_bits(found: Mapping[str, Sensitivity], budget: float) -> tuple[str, ...]:
    """The products that 8 bits serve best: by KL divergence saved for each byte, while the budget of bytes lasts.

    Divergences of single products are taken to add up; what is left at 8 bits, about 1/256, is neglected.
    """
    chosen, left = [], budget
    for scope in sorted(found, key=lambda scope: -found[scope].kl / found[scope].extra_bytes):
        if found[scope].kl > 0 and found[scope].extra_bytes <= left:
            chosen.append(scope)
            left -= found[scope].extra_bytes
    return tuple(sorted(chosen))


def _affordable(samples: Sequence[Sample], dims: TextDims) -> int:
    """How many samples' streams fit in `_STREAM_BYTES`; at least one."""
    streams = dims.layers * _PRODUCTS + 1
    sizes = np.cumsum([sample.embeddings.nbytes * streams for sample in samples])
    return max(1, int((sizes <= _STREAM_BYTES).sum()))


def _run(layer: LayerRunner, samples: Sequence[Sample], dims: TextDims, streams: Sequence[Stream]) -> list[Stream]:
    pairs = zip(samples, streams, strict=True)
    return [layer.run(layer_feeds(sample, stream, dims)) for sample, stream in pairs]


def _round(layer: LayerRunner, product: str, weight: NDArray[np.float32], precision: object) -> int:
    """Let the product multiply by its weight in blocks; how many more bytes it would take at 8 bits."""
    if not isinstance(precision, Blockwise):
        raise TypeError(f"{product} has no blocks")
    layer.replace(product, dequantize(pack_blocks(product, weight, without_calibration(precision))))
    eight = dataclasses.replace(precision, bits=8)
    return eight.weight_bytes(*weight.shape) - precision.weight_bytes(*weight.shape)


def _logits(head: LayerRunner, samples: Sequence[Sample], streams: Sequence[Stream]) -> NDArray[np.float32]:
    """The logits at every token of the answers, [tokens, vocab_size]."""
    rows = [stream[:, sample.start : -1] for sample, stream in zip(samples, streams, strict=True)]
    return np.concatenate([head.run({"inputs_embeds": x})[0] for x in rows])
