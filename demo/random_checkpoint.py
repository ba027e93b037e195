"""Small Qwen2-VL checkpoints with random weights, in the hub's layout: what they say is noise, their form is exact."""

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ..export.chat_template import QWEN2_VL_CHAT_TEMPLATE
from ..export.safetensors import INDEX, SINGLE
from ..export.tensors import expected_tensors
from ..runtime.manifest import TextDims, VisionDims

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

Dtype = Literal["BF16", "F16", "F32"]


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
            _write_shard(directory / file, [(name, tensors[name]) for name in group], self.dtype, rng)
        if self.shards > 1:
            weight_map = {str(name): file for file, group in zip(names, groups, strict=True) for name in group}
            _write_json(directory / INDEX, {"metadata": {}, "weight_map": weight_map})
        _write_settings(directory, self)
        make_tokenizer().save(str(directory / "tokenizer.json"))


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE without merges: one token a byte, and Qwen2's special tokens at the end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def hub_config(vision: VisionDims, text: TextDims) -> dict[str, Any]:
    """config.json as the hub's Qwen2-VL checkpoints have it: flat."""
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "bos_token_id": 256,
        "eos_token_id": 258,
        "vision_start_token_id": 259,
        "vision_end_token_id": 260,
        "vision_token_id": 261,
        "image_token_id": 261,
        # No token of the vocabulary: there is no video.
        "video_token_id": text.vocab_size - 1,
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.max_positions,
        "max_window_layers": text.layers,
        "num_attention_heads": text.num_heads,
        "num_hidden_layers": text.layers,
        "num_key_value_heads": text.num_kv_heads,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
        "sliding_window": text.max_positions,
        "use_sliding_window": False,
        "tie_word_embeddings": text.tied_embeddings,
        "torch_dtype": "bfloat16",
        "vocab_size": text.vocab_size,
        "vision_config": {
            "depth": vision.depth,
            "embed_dim": vision.embed_dim,
            "mlp_ratio": vision.mlp_dim // vision.embed_dim,
            "num_heads": vision.num_heads,
            "in_chans": vision.in_channels,
            "hidden_size": vision.out_dim,
            "patch_size": vision.patch_size,
            "spatial_merge_size": vision.merge_size,
            "spatial_patch_size": vision.patch_size,
            "temporal_patch_size": vision.temporal_patch_size,
        },
    }


def _write_settings(directory: Path, checkpoint: RandomCheckpoint) -> None:
    vision = checkpoint.vision
    _write_json(directory / "config.json", hub_config(vision, checkpoint.text))
    _write_json(directory / "generation_config.json", {"eos_token_id": [258, 256], "do_sample": True, "top_k": 1})
    _write_json(directory / "chat_template.json", {"chat_template": QWEN2_VL_CHAT_TEMPLATE})
    preprocessing = {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.merge_size,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
    }
    _write_json(directory / "preprocessor_config.json", preprocessing)


def _write_shard(
    path: Path, tensors: Iterable[tuple[str, tuple[int, ...]]], dtype: Dtype, rng: np.random.Generator
) -> None:
    """One safetensors file: header length, JSON header, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, shape in tensors:
        stored = _store(_random(name, shape, rng), dtype)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(stored)]}
        data += stored
    blob = json.dumps(header).encode()
    blob += b" " * (-len(blob) % 8)
    path.write_bytes(struct.pack("<Q", len(blob)) + blob + data)


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


def _store(values: NDArray[np.float32], dtype: Dtype) -> bytes:
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype("<f2" if dtype == "F16" else "<f4").tobytes()


def _shard_name(i: int, count: int) -> str:
    return f"model-{i + 1:05d}-of-{count:05d}.safetensors"


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
