"""A checkpoint that was read and found fit."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runtime.bundle import TOKENIZER
from ..runtime.errors import CheckpointError
from ..runtime.manifest import Generation, Preprocessing, PromptParts
from .chat_template import QWEN2_VL_CHAT_TEMPLATE, prompt_parts, read_chat_template
from .config import ModelConfig, read_config, read_generation, read_preprocessing
from .safetensors import TensorInfo, check_tensors, find_tensors
from .tensors import EMBEDDING, HEAD, expected_tensors
from .tokenizer import check_tokenizer


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found fit: its settings, and where each tensor lies."""

    directory: Path
    config: ModelConfig
    preprocessing: Preprocessing
    prompt: PromptParts
    generation: Generation
    tensors: dict[str, TensorInfo]
    has_template: bool

    def stored_name(self, name: str) -> str:
        """The name that a tensor is stored under: the head is the embedding table where the checkpoint ties them."""
        return EMBEDDING if name == HEAD and self.config.text.tied_embeddings else name

    def info(self, name: str) -> TensorInfo:
        """Where a tensor lies."""
        return self.tensors[self.stored_name(name)]

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32. Raises `CheckpointError` where it holds values that are not finite."""
        tensor = self.info(name).read()
        if not np.isfinite(tensor).all():
            stored = self.stored_name(name)
            raise CheckpointError(f"{stored} holds values that are not finite; download the checkpoint again")
        return tensor


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read and check a checkpoint directory; no tensor data is read. Raises `CheckpointError`."""
    try:
        return _open(directory)
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename or directory}: {error.strerror or error}") from None


def _open(directory: Path) -> Checkpoint:
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory; give the directory of a Hugging Face checkpoint")
    config = read_config(directory)
    preprocessing = read_preprocessing(directory, config.vision)
    generation = read_generation(directory, config)
    template = read_chat_template(directory)
    prompt = prompt_parts(template or QWEN2_VL_CHAT_TEMPLATE)
    check_tokenizer(directory / TOKENIZER, prompt.image, config.image_token_id, config.text.vocab_size)
    expected = expected_tensors(config.vision, config.text)
    tensors = find_tensors(directory)
    check_tensors(tensors, expected)
    return Checkpoint(
        directory=directory,
        config=config,
        preprocessing=preprocessing,
        prompt=prompt,
        generation=generation,
        tensors={name: tensors[name] for name in expected},
        has_template=template is not None,
    )
