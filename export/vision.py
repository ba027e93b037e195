"""The vision encoder's graph: flattened patches to the rows that stand for visual tokens."""

import numpy as np

from ..runtime.manifest import VisionDims
from .graph import MICROSOFT
from .layers import Layers
from .recipe import Float32

# Qwen2VLVisionBlock and PatchMerger build their LayerNorms with this; no configuration names it.
_EPSILON = 1e-6
# transformers' QuickGELUActivation: x * sigmoid(1.702 x).
_QUICK_GELU_ALPHA = 1.702
# t * sigmoid(t) is nowhere below -0.27847.
_QUICK_GELU_LOWEST = -0.27847 / _QUICK_GELU_ALPHA


def build_vision(layers: Layers, dims: VisionDims) -> None:
    """Build the graph of one image.

    pixel_values [patches, patch_dim] -> patch embedding -> blocks -> LayerNorm -> merger -> image_features
    cos, sin [patches, head_size / 2]: rotary angles of each patch, for `RotaryEmbedding`
    image_features [patches / merge_size^2, out_dim]
    """
    _declare_tables(layers, dims)
    x = _patch_embedding(layers, dims)
    normed = layers.layer_norm(x, "visual.blocks.0.norm1", "blocks.0/norm1", _EPSILON)
    for i in range(dims.depth):
        following = f"visual.blocks.{i + 1}.norm1" if i + 1 < dims.depth else "visual.merger.ln_q"
        x = _block(layers, dims, i, x, normed)
        normed = layers.layer_norm(x, following, f"blocks.{i}/next_norm", _EPSILON)
    _merger(layers, dims, normed)


def build_patch_embedding(layers: Layers, dims: VisionDims) -> None:
    """Build the graph of the encoder's beginning alone: pixel_values [patches, patch_dim] -> residual."""
    _name_output(layers, _patch_embedding(layers, dims), "residual", dims.embed_dim)


def build_block(layers: Layers, dims: VisionDims) -> None:
    """Build the graph of block 0 alone: hidden [1, patches, embed_dim] -> residual, of the same shape; cos, sin."""
    _declare_tables(layers, dims)
    x = layers.graph.add_input("hidden", [1, "patches", dims.embed_dim])
    normed = layers.layer_norm(x, "visual.blocks.0.norm1", "blocks.0/norm1", _EPSILON)
    _name_output(layers, _block(layers, dims, 0, x, normed), "residual", dims.embed_dim)


def build_merger(layers: Layers, dims: VisionDims) -> None:
    """Build the graph of the encoder's end alone: hidden [1, patches, embed_dim] -> image_features."""
    x = layers.graph.add_input("hidden", [1, "patches", dims.embed_dim])
    _merger(layers, dims, layers.layer_norm(x, "visual.merger.ln_q", "merger/ln_q", _EPSILON))


def _declare_tables(layers: Layers, dims: VisionDims) -> None:
    for table in ("cos", "sin"):
        layers.graph.add_input(table, ["patches", dims.head_size // 2])


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


def _block(layers: Layers, dims: VisionDims, i: int, x: str, normed: str) -> str:
    """One block; `x` is the residual stream and `normed` its norm1. Returns the stream behind the block.

    normed -> attention -> Add(x) -> LayerNormalization -> fc1 -> QuickGelu -> fc2 -> Add
                               `------------------------------------------------------^
    SkipLayerNormalization would be one operator for two, and on a CPU takes six times as long as they do.
    """
    block, scope = f"visual.blocks.{i}", f"blocks.{i}"
    attended = _attention(layers, dims, normed, f"{block}.attn", f"{scope}/attn")
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


def _attention(layers: Layers, dims: VisionDims, x: str, module: str, scope: str) -> str:
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
            "RotaryEmbedding", [y, "first_position", "cos", "sin"], f"{scope}/{name}", domain=MICROSOFT, interleaved=0
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
    output = graph.add_output("image_features", ["visual_tokens", dims.out_dim])
    graph.add_node("Identity", [features], "merger", [output])
