"""The vision encoder's graph: flattened patches to the rows that stand for visual tokens."""

import dataclasses

from ..runtime.manifest import VisionDims
from .graph import MICROSOFT
from .layers import Layers
from .recipe import FLOAT32_BITS

# Qwen2VLVisionBlock and PatchMerger build their LayerNorms with this; no configuration names it.
_EPSILON = 1e-6
# transformers' QuickGELUActivation: x * sigmoid(1.702 x).
_QUICK_GELU_ALPHA = 1.702


def build_vision(layers: Layers, dims: VisionDims) -> None:
    """Build the graph of one image.

    pixel_values [patches, patch_dim] -> patch embedding -> blocks -> LayerNorm -> merger -> image_features
    cos, sin [patches, head_size / 2]: rotary angles of each patch, for `RotaryEmbedding`
    image_features [patches / merge_size^2, out_dim]
    """
    graph = layers.graph
    pixels = graph.add_input("pixel_values", ["patches", dims.patch_dim])
    for table in ("cos", "sin"):
        graph.add_input(table, ["patches", dims.head_size // 2])
    exact = Layers(graph, layers.read, dataclasses.replace(layers.precision, bits=FLOAT32_BITS))
    embedded = exact.linear(pixels, ["visual.patch_embed.proj"], "patch_embed", bias=False)
    # Attention wants a batch axis: [1, patches, embed_dim].
    x = graph.add_node("Unsqueeze", [embedded, layers.constant("batch_axis", [0])], "patch_embed")
    layers.constant("first_position", [0])
    layers.constant("qkv_split", [2 * dims.embed_dim, dims.embed_dim])
    normed = layers.layer_norm(x, "visual.blocks.0.norm1", "blocks.0/norm1", _EPSILON)
    for i in range(dims.depth):
        following = f"visual.blocks.{i + 1}.norm1" if i + 1 < dims.depth else "visual.merger.ln_q"
        x, normed = _block(layers, dims, i, x, normed, following)
    _merger(layers, dims, normed)


def _block(layers: Layers, dims: VisionDims, i: int, x: str, normed: str, following: str) -> tuple[str, str]:
    """One block; `x` is the residual stream and `normed` its norm1. Returns both for the module that follows.

    normed -> attention -> SkipLayerNormalization(x) -> fc1 -> QuickGelu -> fc2 -> SkipLayerNormalization
    """
    block, scope = f"visual.blocks.{i}", f"blocks.{i}"
    attended = _attention(layers, dims, normed, f"{block}.attn", f"{scope}/attn")
    normed, x = layers.skip_layer_norm(attended, x, f"{block}.norm2", f"{scope}/norm2", _EPSILON)
    up = layers.linear(normed, [f"{block}.mlp.fc1"], f"{scope}/mlp/fc1", bias=True)
    act = layers.graph.add_node("QuickGelu", [up], f"{scope}/mlp", domain=MICROSOFT, alpha=_QUICK_GELU_ALPHA)
    down = layers.linear(act, [f"{block}.mlp.fc2"], f"{scope}/mlp/fc2", bias=True)
    normed, x = layers.skip_layer_norm(down, x, following, f"{scope}/next_norm", _EPSILON)
    return x, normed


def _attention(layers: Layers, dims: VisionDims, x: str, module: str, scope: str) -> str:
    """Full attention over one image's patches.

    x -> qkv -> Split -> [q, k] -> RotaryEmbedding -> Split -> MultiHeadAttention -> proj
                     -> v --------------------------------^
    """
    graph = layers.graph
    qkv = layers.linear(x, [f"{module}.qkv"], f"{scope}/qkv", bias=True)
    qk, v, q, k = (f"/{scope}/{name}" for name in ("qk", "v", "q", "k"))
    graph.add_node("Split", [qkv, "qkv_split"], f"{scope}/qkv", [qk, v], axis=-1)
    # q and k are rotated in one call, as 2 * num_heads heads.
    rotated = graph.add_node(
        "RotaryEmbedding", [qk, "first_position", "cos", "sin"], scope, domain=MICROSOFT, interleaved=0
    )
    graph.add_node("Split", [rotated], f"{scope}/qk", [q, k], axis=-1, num_outputs=2)
    attended = graph.add_node("MultiHeadAttention", [q, k, v], scope, domain=MICROSOFT, num_heads=dims.num_heads)
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
