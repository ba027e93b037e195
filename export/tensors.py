"""The tensors that a Qwen2-VL checkpoint holds, under the hub's names, with their shapes."""

from collections.abc import Iterator

from ..runtime.manifest import TextDims, VisionDims

Shape = tuple[int, ...]

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def expected_tensors(vision: VisionDims, text: TextDims) -> dict[str, Shape]:
    """Every tensor that the exporter reads, in the order in which it reads them. Linear weights are [out, in]."""
    return dict([*_vision_tensors(vision), *_text_tensors(text)])


def prefill_tensors(text: TextDims) -> list[str]:
    """The tensors that fill the cache: the layers, of the last one only what makes keys and values."""
    last = f"model.layers.{text.layers - 1}."
    ends = ("self_attn.o_proj.weight", "post_attention_layernorm.weight")
    names = [name for name, _ in _text_tensors(text) if name.startswith("model.layers.")]
    return [name for name in names if not (name.startswith(last) and (name.endswith(ends) or ".mlp." in name))]


def _linear(name: str, out_features: int, in_features: int, *, bias: bool) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (out_features, in_features)
    if bias:
        yield f"{name}.bias", (out_features,)


def _layer_norm(name: str, size: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)


def _vision_tensors(v: VisionDims) -> Iterator[tuple[str, Shape]]:
    patch = (v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    yield "visual.patch_embed.proj.weight", (v.embed_dim, *patch)
    for i in range(v.depth):
        block = f"visual.blocks.{i}"
        yield from _layer_norm(f"{block}.norm1", v.embed_dim)
        yield from _linear(f"{block}.attn.qkv", 3 * v.embed_dim, v.embed_dim, bias=True)
        yield from _linear(f"{block}.attn.proj", v.embed_dim, v.embed_dim, bias=True)
        yield from _layer_norm(f"{block}.norm2", v.embed_dim)
        yield from _linear(f"{block}.mlp.fc1", v.mlp_dim, v.embed_dim, bias=True)
        yield from _linear(f"{block}.mlp.fc2", v.embed_dim, v.mlp_dim, bias=True)
    yield from _layer_norm("visual.merger.ln_q", v.embed_dim)
    yield from _linear("visual.merger.mlp.0", v.merged_dim, v.merged_dim, bias=True)
    yield from _linear("visual.merger.mlp.2", v.out_dim, v.merged_dim, bias=True)


def _text_tensors(t: TextDims) -> Iterator[tuple[str, Shape]]:
    query, kv = t.num_heads * t.head_size, t.num_kv_heads * t.head_size
    yield EMBEDDING, (t.vocab_size, t.hidden_size)
    for i in range(t.layers):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (t.hidden_size,)
        yield from _linear(f"{layer}.self_attn.q_proj", query, t.hidden_size, bias=True)
        yield from _linear(f"{layer}.self_attn.k_proj", kv, t.hidden_size, bias=True)
        yield from _linear(f"{layer}.self_attn.v_proj", kv, t.hidden_size, bias=True)
        yield from _linear(f"{layer}.self_attn.o_proj", t.hidden_size, query, bias=False)
        yield f"{layer}.post_attention_layernorm.weight", (t.hidden_size,)
        yield from _linear(f"{layer}.mlp.gate_proj", t.intermediate_size, t.hidden_size, bias=False)
        yield from _linear(f"{layer}.mlp.up_proj", t.intermediate_size, t.hidden_size, bias=False)
        yield from _linear(f"{layer}.mlp.down_proj", t.hidden_size, t.intermediate_size, bias=False)
    yield "model.norm.weight", (t.hidden_size,)
    if not t.tied_embeddings:
        yield HEAD, (t.vocab_size, t.hidden_size)
