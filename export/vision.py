"""The vision encoder's graph: flattened patches to the rows that stand for visual tokens."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..runtime.manifest import VisionDims
from .graph import MICROSOFT
from .layers import Floats, Layers
from .recipe import Float32

# Qwen2VLVisionBlock and PatchMerger build their LayerNorms with this; no configuration names it.
_EPSILON = 1e-6
# transformers' QuickGELUActivation: x * sigmoid(1.702 x).
_QUICK_GELU_ALPHA = 1.702
# t * sigmoid(t) is nowhere below -0.27847.
_QUICK_GELU_LOWEST = -0.27847 / _QUICK_GELU_ALPHA


_FLOAT32: Floats = "float32"
_Tables = Mapping[Floats, Sequence[str]]
"""The names of the rotary angles' cosines and sines, by their type."""


def build_vision(layers: Layers, dims: VisionDims) -> None:
    """Build the graph of one image.

    pixel_values [patches, patch_dim] -> patch embedding -> blocks -> LayerNorm -> merger -> image_features
    cos, sin [patches, head_size / 2]: rotary angles of each patch, for `RotaryEmbedding`
    image_features [patches / merge_size^2, out_dim]
    All of these are float32 in half floats too: the encoder runs once an image, and its casts cost next to nothing.
    """
    tables = _declare_tables(layers, dims)
    x, floats = _patch_embedding(layers, dims), _FLOAT32
    for i in range(dims.depth):
        inner, scope = layers.within(f"blocks.{i}"), "blocks.0/norm1" if i == 0 else f"blocks.{i - 1}/next_norm"
        x = inner.taken(x, floats, scope)
        normed = inner.layer_norm(x, f"visual.blocks.{i}.norm1", scope, _EPSILON)
        x, floats = _block(inner, dims, i, x, normed, tables), inner.floats
    inner, scope = layers.within("merger"), f"blocks.{dims.depth - 1}/next_norm"
    x = inner.taken(x, floats, scope)
    _merger(inner, dims, inner.layer_norm(x, "visual.merger.ln_q", scope, _EPSILON))


def build_patch_embedding(layers: Layers, dims: VisionDims) -> None:
    """Build the graph of the encoder's beginning alone: pixel_values [patches, patch_dim] -> residual."""
    _name_output(layers, _patch_embedding(layers, dims), "residual", dims.embed_dim)


def build_block(layers: Layers, dims: VisionDims) -> None:
    """Build the graph of block 0 alone: hidden [1, patches, embed_dim] -> residual, of the same shape; cos, sin."""
    tables = _declare_tables(layers, dims)
    x = layers.graph.add_input("hidden", [1, "patches", dims.embed_dim])
    normed = layers.layer_norm(x, "visual.blocks.0.norm1", "blocks.0/norm1", _EPSILON)
    _name_output(layers, _block(layers, dims, 0, x, normed, tables), "residual", dims.embed_dim)


def build_merger(layers: Layers, dims: VisionDims) -> None:
    """Build the graph of the encoder's end alone: hidden [1, patches, embed_dim] -> image_features."""
    x = layers.graph.add_input("hidden", [1, "patches", dims.embed_dim])
    _merger(layers, dims, layers.layer_norm(x, "visual.merger.ln_q", "merger/ln_q", _EPSILON))


def _declare_tables(layers: Layers, dims: VisionDims) -> _Tables:
    inputs = [layers.graph.add_input(table, ["patches", dims.head_size // 2]) for table in ("cos", "sin")]
    return {_FLOAT32: inputs, layers.floats: [layers.taken(table, _FLOAT32, table) for table in inputs]}


def _name_output(layers: Layers, x: str, name: str, width: int) -> None:
    output = layers.graph.add_output(name, [1, "patches", width])
    layers.graph.add_node("Identity", [x], name, [output])


def _patch_embedding(layers: Layers, dims: VisionDims) -> str:
    """The residual stream at its beginning, with the batch axis that attention wants: [1, patches, embed_dim]."""
    graph = layers.graph
    pixels = graph.add_input("pixel_values", ["patches", dims.patch_dim])
    exact = Layers(graph, layers.read, Float32())
    embedded = exact.linear(pixels, ["visual.patch_embed.proj"], "patch_embed", bias=False)
    return graph.add_node("Unsqueeze", [embedded, layers.constant("batch_axis", [0])], "patch_embed")


def _block(layers: Layers, dims: VisionDims, i: int, x: str, normed: str, tables: _Tables) -> str:
    """One block; `x` is the residual stream and `normed` its norm1. Returns the stream behind the block.

    normed -> attention -> Add(x) -> LayerNormalization -> fc1 -> QuickGelu -> fc2 -> Add
                               `------------------------------------------------------^
    SkipLayerNormalization would be one operator for two, and on a CPU takes six times as long as they do.
    """
    block, scope = f"visual.blocks.{i}", f"blocks.{i}"
    attended = _attention(layers, dims, normed, f"{block}.attn", f"{scope}/attn", tables)
    x = layers.graph.add_node("Add", [attended, x], f"{scope}/attn/residual")
    normed = layers.layer_norm(x, f"{block}.norm2", f"{scope}/norm2", _EPSILON)
    down = _mlp(layers, normed, f"{block}.mlp", f"{scope}/mlp")
    return layers.graph.add_node("Add", [down, x], f"{scope}/mlp/residual")


def _mlp(layers: Layers, x: str, module: str, scope: str) -> str:
    """The MLP: x -> fc1 -> QuickGelu -> fc2."""
    weight, bias = layers.read(f"{module}.fc1.weight"), layers.read(f"{module}.fc1.bias")

    def hidden(piece: slice, inner: str) -> str:
        up = layers.product(x, weight[piece], f"{inner}/fc1", layers.precision, bias[piece])
        return layers.graph.add_node("QuickGelu", [up], inner, domain=MICROSOFT, alpha=_QUICK_GELU_ALPHA)

    down, down_bias = layers.read(f"{module}.fc2.weight"), layers.read(f"{module}.fc2.bias")
    return layers.summed_products(hidden, down, scope, "fc2", down_bias, lowest=_QUICK_GELU_LOWEST)


def _attention(layers: Layers, dims: VisionDims, x: str, module: str, scope: str, tables: _Tables) -> str:
    """Full attention over one image's patches.

    x -> q, k -> RotaryEmbedding -> MultiHeadAttention -> proj
      -> v ----------------------------^
    """
    graph = layers.graph
    layers.constant("first_position", [0])
    # The checkpoint packs the three weights; apart, their outputs need no splitting.
    weights = np.split(layers.read(f"{module}.qkv.weight"), 3)
    biases = np.split(layers.read(f"{module}.qkv.bias"), 3)
    q, k, v = (
        layers.product(x, weight, f"{scope}/{name}", layers.precision, bias)
        for name, weight, bias in zip("qkv", weights, biases, strict=True)
    )
    rotated = [
        graph.add_node(
            "RotaryEmbedding",
            [y, "first_position", *tables[layers.floats]],
            f"{scope}/{name}",
            domain=MICROSOFT,
            interleaved=0,
        )
        for name, y in (("q", q), ("k", k))
    ]
    attended = graph.add_node("MultiHeadAttention", [*rotated, v], scope, domain=MICROSOFT, num_heads=dims.num_heads)
    return layers.linear(attended, [f"{module}.proj"], f"{scope}/proj", bias=True)


def _merger(layers: Layers, dims: VisionDims, normed: str) -> None:
    """Join each `merge_size`^2 patches into one row and project it to the decoder's width.

    normed -> Reshape [visual tokens, merged_dim] -> mlp.0 -> Gelu -> mlp.2 -> image_features
    """
    graph = layers.graph
    shape = layers.constant("merged_shape", [-1, dims.merged_dim])
    rows = graph.add_node("Reshape", [normed, shape], "merger")
    hidden = layers.linear(rows, ["visual.merger.mlp.0"], "merger/mlp.0", bias=True)
    act = graph.add_node("Gelu", [hidden], "merger", domain=MICROSOFT)
    features = layers.linear(act, ["visual.merger.mlp.2"], "merger/mlp.2", bias=True)
    features = layers.in_float32().taken(features, layers.floats, "merger")
    output = graph.add_output("image_features", ["visual_tokens", dims.out_dim])
    graph.add_node("Identity", [features], "merger", [output])
