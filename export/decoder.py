"""The language decoder's graphs: the decoder itself, and the one that only fills its cache.

In half floats, for CUDA, values are cast wherever a layer stays float32; the cache and attention never do.
"""

import dataclasses
from dataclasses import dataclass

from onnx import TensorProto

from ..runtime.manifest import TextDims
from .graph import MICROSOFT
from .layers import Floats, Layers
from .recipe import HEAD_SCOPE, Float16, Float32, Precision
from .tensors import HEAD


def build_decoder(layers: Layers, dims: TextDims, head: Precision) -> None:
    """Build the graph of the decoder, which appends any number of tokens to each sequence's cache.

    inputs_embeds [batch, sequence, hidden_size] -> layers -> norm -> lm_head -> logits [batch, rows, vocab_size]
    past_key_values.i.{key,value} -> present.i.{key,value}: [batch, num_kv_heads, max_length, head_size], one buffer
    seqlens_k [batch] = tokens in the cache after this call - 1; total_sequence_length [] = the largest of them + 1
    cos_cache, sin_cache [max_length, head_size / 2]: row i holds the M-RoPE angles of the token in slot i
    logit_rows [rows]: the tokens of this call that the last layer's MLP and the head are computed for
    In half floats: inputs, tables and cache are; the head and its logits stay float32, so that no two tokens tie by
    rounding; and `_choose` says which token is the likeliest.
    """
    _declare_inputs(layers, dims)
    layers.graph.add_input("logit_rows", ["rows"], TensorProto.INT64)
    stream = _begin(layers, dims)
    for i in range(dims.layers):
        stream = _layer(layers, dims, i, stream)
    exact = layers.in_float32()
    normed = exact.taken(stream.normed, stream.floats, HEAD_SCOPE)
    logits = exact.product(normed, layers.read(HEAD), HEAD_SCOPE, _exact_head(head))
    output = layers.graph.add_output("logits", ["batch", "rows", dims.vocab_size])
    layers.graph.add_node("Identity", [logits], HEAD_SCOPE, [output])
    if layers.floats == "float16":
        _choose(layers, output)


def build_prefill(layers: Layers, dims: TextDims) -> None:
    """Build the graph that fills the cache with a prompt and says nothing: the decoder without its end.

    The inputs and the cache are those of `build_decoder`. Of the last layer only keys and values are wanted, so that
    its output projection, its MLP and the head are left out: the prompt's last token goes through the decoder.
    """
    _declare_inputs(layers, dims)
    stream = _begin(layers, dims)
    for i in range(dims.layers - 1):
        stream = _layer(layers, dims, i, stream)
    _attention(layers, dims, dims.layers - 1, stream.normed)


def build_layer(layers: Layers, dims: TextDims) -> None:
    """Build the graph of layer 0 alone, for looking into it: residual stream in, residual stream out.

    inputs_embeds [batch, sequence, hidden_size] -> norm -> attention -> MLP -> residual, of the same shape
    The other inputs and the cache are those of `build_decoder`.
    """
    _declare_inputs(layers, dataclasses.replace(dims, layers=1))
    stream = _begin(layers, dims)
    down, x = _after_attention(layers, dims, 0, stream.x, _attention(layers, dims, 0, stream.normed))
    residual = layers.graph.add_output("residual", ["batch", "sequence", dims.hidden_size])
    layers.graph.add_node("Add", [down, x], "residual", [residual])


def build_head(layers: Layers, dims: TextDims) -> None:
    """Build the graph of the decoder's end alone: inputs_embeds [batch, sequence, hidden_size] -> norm -> logits."""
    x = layers.graph.add_input("inputs_embeds", ["batch", "sequence", dims.hidden_size])
    normed = layers.rms_norm(x, "model.norm", "norm", dims.rms_norm_eps)
    logits = layers.product(normed, layers.read(HEAD), HEAD_SCOPE, layers.precision)
    output = layers.graph.add_output("logits", ["batch", "sequence", dims.vocab_size])
    layers.graph.add_node("Identity", [logits], HEAD_SCOPE, [output])


def _exact_head(head: Precision) -> Precision:
    return Float32() if isinstance(head, Float16) else head


def _choose(layers: Layers, logits: str) -> None:
    """Which token each row says, so that no row needs to leave the GPU.

    logits -> ArgMax -> likeliest [batch, rows]
           -> ReduceMax -> largest [batch, rows], by which what is no number is known
    """
    graph = layers.graph
    graph.add_output("likeliest", ["batch", "rows"], TensorProto.INT64)
    graph.add_output("largest", ["batch", "rows"])
    graph.add_node("ArgMax", [logits], HEAD_SCOPE, ["likeliest"], axis=-1, keepdims=0)
    graph.add_node("ReduceMax", [logits], HEAD_SCOPE, ["largest"], axes=[-1], keepdims=0)


def _declare_inputs(layers: Layers, dims: TextDims) -> None:
    graph = layers.graph
    graph.add_input("inputs_embeds", ["batch", "sequence", dims.hidden_size], layers.type)
    graph.add_input("seqlens_k", ["batch"], TensorProto.INT32)
    graph.add_input("total_sequence_length", [], TensorProto.INT32)
    for table in ("cos_cache", "sin_cache"):
        graph.add_input(table, ["max_length", dims.head_size // 2], layers.type)
    cache = ["batch", dims.num_kv_heads, "max_length", dims.head_size]
    for i in range(dims.layers):
        for kind in ("key", "value"):
            graph.add_input(f"past_key_values.{i}.{kind}", cache, layers.type)
            graph.add_output(f"present.{i}.{kind}", cache, layers.type)


@dataclass(frozen=True)
class _Stream:
    """The residual stream between two layers, its norm for the layer that follows, and the type of both."""

    x: str
    normed: str
    floats: Floats


def _begin(layers: Layers, dims: TextDims) -> _Stream:
    """The residual stream at its beginning, and its first norm."""
    scope, module = "layers.0/input_layernorm", "model.layers.0.input_layernorm"
    inner = layers.within("layers.0")
    x = inner.taken("inputs_embeds", layers.floats, scope)
    return _Stream(x, inner.rms_norm(x, module, scope, dims.rms_norm_eps), inner.floats)


def _layer(layers: Layers, dims: TextDims, i: int, stream: _Stream) -> _Stream:
    """One decoder layer, from the stream before it to the stream behind it.

    normed -> attention -> SkipSimplifiedLayerNormalization(x) -> MLP -> SkipSimplifiedLayerNormalization
    In the last layer only `logit_rows` go on after attention: no other row is read again.
    """
    scope, last = f"layers.{i}", i + 1 == dims.layers
    inner = layers.within(scope)
    x = inner.taken(stream.x, stream.floats, f"{scope}/residual")
    attended = _attention(layers, dims, i, inner.taken(stream.normed, stream.floats, f"{scope}/normed"))
    if last:
        attended, x = (
            layers.graph.add_node("Gather", [value, "logit_rows"], f"{scope}/{name}", axis=1)
            for value, name in ((attended, "attn"), (x, "residual"))
        )
    down, x = _after_attention(inner, dims, i, x, attended)
    following = "model.norm" if last else f"model.layers.{i + 1}.input_layernorm"
    normed, x = inner.skip_rms_norm(down, x, following, f"{scope}/next_norm", dims.rms_norm_eps)
    return _Stream(x, normed, inner.floats)


def _after_attention(layers: Layers, dims: TextDims, i: int, x: str, attended: str) -> tuple[str, str]:
    """The rest of a layer: what its MLP adds to the residual stream, and the stream that it is added to."""
    module, scope = f"model.layers.{i}", f"layers.{i}"
    attended = layers.linear(attended, [f"{module}.self_attn.o_proj"], f"{scope}/attn/o_proj", bias=False)
    normed, x = layers.skip_rms_norm(
        attended, x, f"{module}.post_attention_layernorm", f"{scope}/post_attention_layernorm", dims.rms_norm_eps
    )
    return _mlp(layers, normed, f"{module}.mlp", f"{scope}/mlp"), x


def _attention(layers: Layers, dims: TextDims, i: int, x: str) -> str:
    """Grouped-query attention over the cache, M-RoPE included; `x` is of the type of the layer.

    x -> qkv_proj (packed) -> GroupQueryAttention(past, cos_cache, sin_cache) -> attended
                                                 `-> present (the past's own buffer)
    """
    scope, module = f"layers.{i}/attn", f"model.layers.{i}.self_attn"
    projections = [f"{module}.{name}_proj" for name in ("q", "k", "v")]
    inner = layers.within(f"layers.{i}")
    qkv = inner.linear(x, projections, f"{scope}/qkv_proj", bias=True)
    qkv = layers.taken(qkv, inner.floats, f"{scope}/qkv_proj")
    past = [f"past_key_values.{i}.{kind}" for kind in ("key", "value")]
    present = [f"present.{i}.{kind}" for kind in ("key", "value")]
    attended = layers.graph.add_node(
        "GroupQueryAttention",
        [qkv, "", "", *past, "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache"],
        scope,
        [f"/{scope}/output", *present],
        MICROSOFT,
        num_heads=dims.num_heads,
        kv_num_heads=dims.num_kv_heads,
        do_rotary=1,
        rotary_interleaved=0,
    )
    return inner.taken(attended, layers.floats, scope)


def _mlp(layers: Layers, x: str, module: str, scope: str) -> str:
    """The gated MLP. QuickGelu with alpha 1 is SiLU: x * sigmoid(x).

    x -> gate_proj -> QuickGelu -> Mul -> down_proj
      -> up_proj ------------------^
    Where rows have scales, up_proj's is left to the end: it is one for the row, and the output is narrower.
    """
    gate_weight, up_weight = (layers.read(f"{module}.{name}_proj.weight") for name in ("gate", "up"))

    def hidden(piece: slice, inner: str) -> str:
        gate = layers.product(x, gate_weight[piece], f"{inner}/gate_proj", layers.precision)
        up = layers.product(x, up_weight[piece], f"{inner}/up_proj", layers.precision, scaled=False)
        act = layers.graph.add_node("QuickGelu", [gate], inner, domain=MICROSOFT, alpha=1.0)
        return layers.graph.add_node("Mul", [act, up], f"{inner}/gated")

    down = layers.summed_products(hidden, layers.read(f"{module}.down_proj.weight"), scope, "down_proj")
    return layers.scaled(down, x, f"{scope}/up_proj")
