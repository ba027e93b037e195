"""The files of a Qwen2-VL checkpoint as the hub has them: flat config.json, chat template, safetensors."""

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..export.chat_template import QWEN2_VL_CHAT_TEMPLATE
from ..runtime.manifest import TextDims, VisionDims

Dtype = Literal["BF16", "F16", "F32"]


def hub_config(vision: VisionDims, text: TextDims, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json as the hub's Qwen2-VL checkpoints have it: flat. The ids of special tokens are the tokenizer's."""
    image_id = tokenizer.token_to_id("<|image_pad|>")
    video_id = tokenizer.token_to_id("<|video_pad|>")
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
        "vision_token_id": image_id,
        "image_token_id": image_id,
        # Where the tokenizer has none, an id that no text gives: there is no video.
        "video_token_id": text.vocab_size - 1 if video_id is None else video_id,
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


def write_settings(directory: Path, vision: VisionDims, text: TextDims, tokenizer: Tokenizer) -> None:
    """Every file but the weights."""
    config = hub_config(vision, text, tokenizer)
    _write_json(directory / "config.json", config)
    eos = [config["eos_token_id"], config["bos_token_id"]]
    _write_json(directory / "generation_config.json", {"eos_token_id": eos, "do_sample": True, "top_k": 1})
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
    tokenizer.save(str(directory / "tokenizer.json"))


def write_safetensors(path: Path, tensors: Iterable[tuple[str, NDArray[np.float32]]], dtype: Dtype) -> None:
    """One safetensors file of float32 arrays stored as `dtype`: header length, JSON header, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, values in tensors:
        stored = _store(values, dtype)
        offsets = [len(data), len(data) + len(stored)]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
        data += stored
    blob = json.dumps(header).encode()
    blob += b" " * (-len(blob) % 8)
    path.write_bytes(struct.pack("<Q", len(blob)) + blob + data)


def _store(values: NDArray[np.float32], dtype: Dtype) -> bytes:
    if dtype == "BF16":
        # Rounded to the nearest, halves to even.
        bits = np.ascontiguousarray(values).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    return values.astype("<f2" if dtype == "F16" else "<f4").tobytes()


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
