"""Small Qwen2-VL checkpoints with random weights, in the hub's layout: what they say is noise, their form is exact."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ..export.safetensors import INDEX, SINGLE
from ..export.tensors import expected_tensors
from ..runtime.manifest import TextDims, VisionDims
from .hub_layout import Dtype, write_safetensors, write_settings

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
# The bytes, and the special tokens after them, as in Qwen2's own vocabulary.
VOCABULARY = 256 + len(SPECIAL_TOKENS)

VISION = VisionDims(
    depth=2,
    embed_dim=64,
    num_heads=2,
    mlp_dim=128,
    in_channels=3,
    patch_size=14,
    temporal_patch_size=2,
    merge_size=2,
    out_dim=96,
)
TEXT = TextDims(
    layers=2,
    hidden_size=96,
    intermediate_size=160,
    num_heads=3,
    num_kv_heads=1,
    head_size=32,
    vocab_size=VOCABULARY + 42,
    max_positions=4096,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    mrope_section=(4, 6, 6),
    tied_embeddings=True,
)


@dataclass(frozen=True)
class RandomCheckpoint:
    """What to write: dimensions, the dtype of the weights, how many shards, and the seed."""

    vision: VisionDims = VISION
    text: TextDims = TEXT
    dtype: Dtype = "BF16"
    shards: int = 1
    seed: int = 0

    def write(self, directory: Path) -> None:
        """Write the checkpoint into `directory`, which is created."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors = expected_tensors(self.vision, self.text)
        rng = np.random.default_rng(self.seed)
        groups = np.array_split(np.array(list(tensors)), self.shards)
        names = [SINGLE] if self.shards == 1 else [_shard_name(i, self.shards) for i in range(self.shards)]
        for file, group in zip(names, groups, strict=True):
            write_safetensors(
                directory / file, ((name, _random(name, tensors[name], rng)) for name in group), self.dtype
            )
        if self.shards > 1:
            weight_map = {str(name): file for file, group in zip(names, groups, strict=True) for name in group}
            (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
        write_settings(directory, self.vision, self.text, make_tokenizer())


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE without merges: one token a byte, and Qwen2's special tokens at the end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def _random(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Weights that keep activations near unit size, so that greedy decoding wanders instead of looping."""
    noise = rng.standard_normal(shape, np.float32)
    if "norm" in name or "ln_q" in name:
        return (noise * 0.1 + (1 if name.endswith("weight") else 0)).astype(np.float32)
    if len(shape) == 1:
        return noise * np.float32(0.1)
    if name == "model.embed_tokens.weight":
        return noise * np.float32(0.1)
    return noise * np.float32(1.5 / np.sqrt(np.prod(shape[1:])))


def _shard_name(i: int, count: int) -> str:
    return f"model-{i + 1:05d}-of-{count:05d}.safetensors"
