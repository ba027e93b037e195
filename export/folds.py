"""Where per-channel scales fold into a checkpoint, so that it stays the same function with other weights.

A channel that one module makes and the next reads can be divided where it is made and multiplied where it is read. That
moves the difficulty of rounding between weights and activations (SmoothQuant, Xiao et al. 2022) and between a weight's
own columns (AWQ, Lin et al. 2023). In Qwen2-VL it goes through a norm's weight, through the gated MLP's linear half (up
to down), through attention's values (v to o, equal for all query heads that share a value head), and through the norm
before the merger (equal for the four patches that it joins). It does not go through the vision MLP's and the merger's
GELU, which is not linear; not through queries and keys, which the rotation mixes; and not along the residual stream,
whose RMS norm would see other magnitudes.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..runtime.manifest import TextDims, VisionDims
from .layers import ReadTensor
from .tensors import HEAD

Scales = Mapping[str, NDArray[np.float32]]
"""Scales [channels] by the name of their site; 1 where nothing is folded."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a tensor: `start` to `stop` - 1 of its first axis, to its end where `stop` is None."""

    tensor: str
    start: int = 0
    stop: int | None = None

    @property
    def slice(self) -> slice:
        """The rows."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class FoldSite:
    """Channels that can be scaled.

    scope: the product whose input they are, as `Layers.inputs` names it.
    made: what makes them, [channels, ...]; divided by the scales. read: weights [out, columns]; their columns are
    multiplied. columns: [columns], the channel that each column reads.
    moments: [channels], E[x^2] up to a factor as the weights alone let it be expected: see `_norm_moments` and others.
    """

    name: str
    scope: str
    made: tuple[Rows, ...]
    read: tuple[str, ...]
    columns: NDArray[np.intp]
    moments: Callable[[ReadTensor], NDArray[np.float32]]

    @property
    def channels(self) -> int:
        """How many scales there are."""
        return int(self.columns.max()) + 1


class FoldedReader:
    """Reads a checkpoint's tensors with scales folded in."""

    def __init__(self, read: ReadTensor, sites: Sequence[FoldSite], scales: Scales) -> None:
        self._read = read
        self._rows: defaultdict[str, list[tuple[slice, NDArray[np.float32]]]] = defaultdict(list)
        self._columns: defaultdict[str, list[NDArray[np.float32]]] = defaultdict(list)
        for site in sites:
            if site.name in scales:
                for rows in site.made:
                    self._rows[rows.tensor].append((rows.slice, scales[site.name]))
                for name in site.read:
                    self._columns[name].append(scales[site.name][site.columns])

    def __call__(self, name: str) -> NDArray[np.float32]:
        """The tensor `name`, folded."""
        tensor = self._read(name)
        for rows, scales in self._rows[name]:
            tensor[rows] /= scales.reshape(-1, *[1] * (tensor.ndim - 1))
        for scales in self._columns[name]:
            tensor *= scales
        return tensor


def layer_sites(text: TextDims, i: int) -> list[FoldSite]:
    """The sites of decoder layer `i`, in the order in which their products come."""
    layer, scope = f"model.layers.{i}", f"layers.{i}"
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    first, second = (Rows(f"{layer}.{name}_layernorm.weight") for name in ("input", "post_attention"))
    hidden = np.arange(text.hidden_size)
    return [
        FoldSite(
            name=f"{scope}/input_layernorm",
            scope=f"{scope}/attn/qkv_proj",
            made=(first,),
            read=tuple(f"{attention}.{kind}_proj.weight" for kind in "qkv"),
            columns=hidden,
            moments=_norm_moments(first),
        ),
        FoldSite(
            name=f"{scope}/attn/v_proj",
            scope=f"{scope}/attn/o_proj",
            made=(Rows(f"{attention}.v_proj.weight"), Rows(f"{attention}.v_proj.bias")),
            read=(f"{attention}.o_proj.weight",),
            columns=_value_channels(text),
            moments=_product_moments(Rows(f"{attention}.v_proj.weight"), Rows(f"{attention}.v_proj.bias"), first),
        ),
        FoldSite(
            name=f"{scope}/post_attention_layernorm",
            scope=f"{scope}/mlp/gate_proj",
            made=(second,),
            read=tuple(f"{mlp}.{kind}_proj.weight" for kind in ("gate", "up")),
            columns=hidden,
            moments=_norm_moments(second),
        ),
        FoldSite(
            name=f"{scope}/mlp/up_proj",
            scope=f"{scope}/mlp/down_proj",
            made=(Rows(f"{mlp}.up_proj.weight"),),
            read=(f"{mlp}.down_proj.weight",),
            columns=np.arange(text.intermediate_size),
            moments=_gated_moments(f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight", second),
        ),
    ]


def head_site(text: TextDims) -> FoldSite:
    """The final norm's channels, which the head reads."""
    norm = Rows("model.norm.weight")
    return FoldSite("norm", "lm_head", (norm,), (HEAD,), np.arange(text.hidden_size), _norm_moments(norm))


def text_sites(text: TextDims) -> list[FoldSite]:
    """All sites of the decoder and its head."""
    return [site for i in range(text.layers) for site in layer_sites(text, i)] + [head_site(text)]


def vision_sites(vision: VisionDims) -> list[FoldSite]:
    """All sites of the vision encoder."""
    sites = [site for i in range(vision.depth) for site in _block_sites(vision, i)]
    ln_q, ln_q_bias = Rows("visual.merger.ln_q.weight"), Rows("visual.merger.ln_q.bias")
    joined = np.tile(np.arange(vision.embed_dim), vision.merge_size**2)
    moments = _norm_moments(ln_q, ln_q_bias)
    read = ("visual.merger.mlp.0.weight",)
    return [*sites, FoldSite("merger/ln_q", "merger/mlp.0", (ln_q, ln_q_bias), read, joined, moments)]


def _block_sites(vision: VisionDims, i: int) -> list[FoldSite]:
    block, scope, width = f"visual.blocks.{i}", f"blocks.{i}", vision.embed_dim
    norms = [(Rows(f"{block}.norm{n}.weight"), Rows(f"{block}.norm{n}.bias")) for n in (1, 2)]
    qkv, channels = f"{block}.attn.qkv", np.arange(width)
    values = Rows(f"{qkv}.weight", 2 * width), Rows(f"{qkv}.bias", 2 * width)
    return [
        FoldSite(f"{scope}/norm1", f"{scope}/attn/q", norms[0], (f"{qkv}.weight",), channels, _norm_moments(*norms[0])),
        FoldSite(
            name=f"{scope}/attn/v",
            scope=f"{scope}/attn/proj",
            made=values,
            read=(f"{block}.attn.proj.weight",),
            columns=channels,
            moments=_product_moments(*values, *norms[0]),
        ),
        FoldSite(
            name=f"{scope}/norm2",
            scope=f"{scope}/mlp/fc1",
            made=norms[1],
            read=(f"{block}.mlp.fc1.weight",),
            columns=channels,
            moments=_norm_moments(*norms[1]),
        ),
    ]


def _value_channels(text: TextDims) -> NDArray[np.intp]:
    """[heads * head_size]: the value channel that each column of o_proj reads."""
    values = np.arange(text.num_kv_heads * text.head_size).reshape(text.num_kv_heads, 1, text.head_size)
    return np.broadcast_to(values, (text.num_kv_heads, text.num_heads // text.num_kv_heads, text.head_size)).ravel()


def _norm_moments(weight: Rows, bias: Rows | None = None) -> Callable[[ReadTensor], NDArray[np.float32]]:
    """What leaves a norm: its normalized channels have a mean square of 1 on average, so w^2 + b^2."""

    def moments(read: ReadTensor) -> NDArray[np.float32]:
        square = np.square(read(weight.tensor))
        return square if bias is None else np.asarray(square + np.square(read(bias.tensor)), np.float32)

    return moments


def _product_moments(weight: Rows, bias: Rows, *norm: Rows) -> Callable[[ReadTensor], NDArray[np.float32]]:
    """What a product of a norm's output is, were its channels independent: sum of w_ij^2 m_j, + b_i^2."""

    def moments(read: ReadTensor) -> NDArray[np.float32]:
        inputs = _norm_moments(*norm)(read)
        rows, offsets = read(weight.tensor)[weight.slice], read(bias.tensor)[bias.slice]
        return np.asarray(np.square(rows) @ inputs + np.square(offsets), np.float32)

    return moments


def _gated_moments(gate: str, up: str, norm: Rows) -> Callable[[ReadTensor], NDArray[np.float32]]:
    """silu(gate) * up, were the two independent, and silu the half of its input."""

    def moments(read: ReadTensor) -> NDArray[np.float32]:
        inputs = _norm_moments(norm)(read)
        return np.asarray((np.square(read(gate)) @ inputs) * (np.square(read(up)) @ inputs) / 4, np.float32)

    return moments
