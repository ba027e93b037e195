"""The demo model in transformers: its shape, its start, and its checkpoint in the hub's layout."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn.functional import linear
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from ...export.output import atomic_directory
from ...export.safetensors import SINGLE
from ...export.tensors import expected_tensors
from ...runtime.manifest import TextDims, VisionDims
from ..hub_layout import hub_config, write_safetensors, write_settings
from .tokenizer import VOCABULARY

VISION = VisionDims(
    depth=4,
    embed_dim=128,
    num_heads=4,
    mlp_dim=512,
    in_channels=3,
    patch_size=14,
    temporal_patch_size=2,
    merge_size=2,
    out_dim=256,
)
TEXT = TextDims(
    layers=4,
    hidden_size=256,
    intermediate_size=512,
    num_heads=4,
    num_kv_heads=2,
    head_size=64,
    vocab_size=VOCABULARY,
    max_positions=4096,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    mrope_section=(8, 12, 12),
    tied_embeddings=True,
)


def new_model(tokenizer: Tokenizer, seed: int) -> Any:
    """The model with random weights, float32. Typed as Any: transformers' annotations do not hold for tensors."""
    torch.manual_seed(seed)
    hub = hub_config(VISION, TEXT, tokenizer)
    config = Qwen2VLConfig.from_dict({**hub, "torch_dtype": "float32", "initializer_range": 0.04})
    model: Any = Qwen2VLForConditionalGeneration(config).float()
    # A convolution whose stride is its kernel is a matrix product, and as such five times as fast to train on a CPU.
    projection = model.model.visual.patch_embed.proj
    model.model.visual.patch_embed.forward = lambda patches: linear(patches, projection.weight.flatten(1))
    return model


def write_checkpoint(model: Any, tokenizer: Tokenizer, directory: Path) -> None:
    """Write the model as bf16 in the hub's layout; whole or not at all, in place of a checkpoint that is there."""
    weights = {_hub_name(name): tensor for name, tensor in model.state_dict().items()}
    tensors = ((name, weights[name].numpy()) for name in expected_tensors(VISION, TEXT))
    with atomic_directory(directory) as temporary:
        write_safetensors(temporary / SINGLE, tensors, "BF16")
        write_settings(temporary, VISION, TEXT, tokenizer)


def _hub_name(name: str) -> str:
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
