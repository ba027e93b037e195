"""How much work a stage is, by formula: operations (two per multiply-add) and bytes.

Matrix products are counted, attention's two among them; norms, activations and rotary embeddings are next to nothing.
"""

from dataclasses import dataclass

from ..manifest import TextDims, VisionDims


def vision_operations(dims: VisionDims, patches: int) -> int:
    """Operations of encoding one image of `patches` patches."""
    embed = dims.embed_dim
    # q, k, v and proj; fc1 and fc2.
    block = 4 * embed**2 + 2 * embed * dims.mlp_dim
    # Every patch with every patch: Q K^T and P V.
    attention = 2 * patches**2 * embed
    merger = dims.merged_dim**2 + dims.merged_dim * dims.out_dim
    per_patch = dims.patch_dim * embed + dims.depth * block
    return 2 * (patches * per_patch + dims.depth * attention + patches // dims.merge_size**2 * merger)


def prefill_operations(dims: TextDims, tokens: int, past: int = 0) -> int:
    """Operations of appending `tokens` tokens to a cache of `past`, up to the logits of the last one.

    Of the last layer only qkv and attention are for all tokens; its o_proj, its MLP and the head are for one. Token i
    attends to past + i + 1. With one token this is a decode step.
    """
    if tokens < 1:
        raise ValueError("there is no token to append")
    heads = dims.num_heads * dims.head_size
    qkv = dims.hidden_size * (heads + 2 * dims.num_kv_heads * dims.head_size)
    rest = heads * dims.hidden_size + 3 * dims.hidden_size * dims.intermediate_size
    head = dims.hidden_size * dims.vocab_size
    attended = tokens * past + tokens * (tokens + 1) // 2
    products = dims.layers * tokens * qkv + (dims.layers - 1) * tokens * rest + rest + head
    return 2 * (products + dims.layers * 2 * heads * attended)


@dataclass(frozen=True)
class DecodeBytes:
    """What one decode step reads from memory."""

    weights: int
    cache: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.weights + self.cache


def decode_bytes(dims: TextDims, weights: int, length: int, *, half: bool = False) -> DecodeBytes:
    """The bytes that a decode step reads with `length` tokens in the cache; weights: the decoder's file, in bytes.

    half: the cache holds half floats, as it does on a GPU.
    """
    return DecodeBytes(weights, dims.kv_bytes_per_token * length // (2 if half else 1))
