"""The demo model with its channels in another order: the same function, whose blocks hold other weights.

A small model's figures owe much to luck: which weights happen to share a block. Over several orders luck averages out.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..export.checkpoint import open_checkpoint
from ..export.output import atomic_directory
from ..export.safetensors import SINGLE
from .hub_layout import write_safetensors
from .stress import write_settings

# Which axis of a tensor runs along the residual stream, by the end of its name.
_STREAM_AXES = {
    **dict.fromkeys(("embed_tokens.weight", "lm_head.weight"), 1),
    **dict.fromkeys((f"{name}_proj.weight" for name in ("q", "k", "v", "gate", "up")), 1),
    **dict.fromkeys(("o_proj.weight", "down_proj.weight", "layernorm.weight", "model.norm.weight"), 0),
    **dict.fromkeys(("merger.mlp.2.weight", "merger.mlp.2.bias"), 0),
}
_HIDDEN_AXES = {"gate_proj.weight": 0, "up_proj.weight": 0, "down_proj.weight": 1}


def write_reordered(checkpoint: Path, out: Path, seed: int) -> None:
    """Write `checkpoint` into the new directory `out`, in F32, its decoder's channels in an order drawn from `seed`.

    Reordered are the residual stream, and in each layer the hidden channels of the MLP. Raises `CheckpointError`.
    """
    opened = open_checkpoint(checkpoint)
    text, rng = opened.config.text, np.random.default_rng(seed)
    stream = rng.permutation(text.hidden_size)
    hidden = [rng.permutation(text.intermediate_size) for _ in range(text.layers)]

    def read(name: str) -> NDArray[np.float32]:
        tensor = opened.read(name)
        for end, axis in _STREAM_AXES.items():
            if name.endswith(end) and (name.startswith(("model.", "lm_head")) or "merger" in name):
                tensor = np.take(tensor, stream, axis)
        for end, axis in _HIDDEN_AXES.items():
            if name.endswith(end):
                tensor = np.take(tensor, hidden[int(name.split(".")[2])], axis)
        return tensor

    with atomic_directory(out) as directory:
        write_safetensors(directory / SINGLE, ((name, read(name)) for name in opened.tensors), "F32")
        write_settings(opened, directory, tied=text.tied_embeddings)
