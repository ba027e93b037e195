"""Checkpoint to bundle: check everything, then write part by part."""

import contextlib
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..quant.nf4 import load_bitsandbytes
from ..runtime.bundle import DECODER, EMBEDDINGS, PREFILL, TOKENIZER, VISION, sha256
from ..runtime.errors import CheckpointError, InputError
from ..runtime.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    FileEntry,
    Generation,
    Manifest,
    Part,
    Preprocessing,
    PromptParts,
    Source,
)
from .chat_template import QWEN2_VL_CHAT_TEMPLATE, TEMPLATE_FILES, prompt_parts, read_chat_template
from .config import (
    CONFIG,
    GENERATION,
    PREPROCESSOR_FILES,
    ModelConfig,
    read_config,
    read_generation,
    read_preprocessing,
)
from .decoder import build_decoder, build_prefill
from .graph import GraphBuilder
from .layers import Layers
from .output import atomic_directory, check_output, check_space
from .recipe import NF4, Precision, Recipe
from .safetensors import TensorInfo, check_tensors, find_tensors
from .tensors import EMBEDDING, HEAD, Shape, expected_tensors, prefill_tensors
from .tokenizer import check_tokenizer
from .vision import build_vision

Progress = Callable[[str, int], None]
"""Called with each tensor's name and its bytes in the checkpoint once it is read."""

_FLOAT16_MAX = float(np.finfo(np.float16).max)


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

    def read_bytes(self, recipe: Recipe) -> int:
        """Bytes of all reads that a conversion does: some tensors are read again, for the head or for prefill."""
        total = sum(info.nbytes for info in self.tensors.values())
        total += self.tensors[EMBEDDING].nbytes if self.config.text.tied_embeddings else 0
        if recipe.prefill is not None:
            total += sum(self.tensors[name].nbytes for name in prefill_tensors(self.config.text))
        return total


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


def bundle_bytes(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Bytes that the bundle will take, tokenizer included; the graphs and the manifest are within a few percent."""
    text = checkpoint.config.text
    total = text.vocab_size * text.hidden_size * np.dtype(recipe.embedding).itemsize
    total += recipe.head.weight_bytes(text.vocab_size, text.hidden_size)
    total += (checkpoint.directory / TOKENIZER).stat().st_size
    for name, info in checkpoint.tensors.items():
        if name in (EMBEDDING, HEAD):
            continue
        total += _stored_bytes(info.shape, recipe.vision if name.startswith("visual.") else recipe.decoder)
    if recipe.prefill is not None:
        shapes = (checkpoint.tensors[name].shape for name in prefill_tensors(text))
        total += sum(_stored_bytes(shape, recipe.prefill) for shape in shapes)
    return total


def _stored_bytes(shape: Shape, precision: Precision) -> int:
    """Bytes of a tensor in the bundle: norms, biases and the patch embedding stay float32."""
    return precision.weight_bytes(*shape) if len(shape) == 2 else 4 * int(np.prod(shape))


def check_export(directory: Path, out: Path, recipe: Recipe, *, force: bool = False) -> Checkpoint:
    """Everything that can be wrong, before any work.

    Raises `CheckpointError`, and `InputError` for `out` and for what the recipe needs and is not installed.
    """
    checkpoint = open_checkpoint(directory)
    check_output(out, directory, force=force)
    check_space(out, bundle_bytes(checkpoint, recipe))
    if any(isinstance(precision, NF4) for precision in (recipe.decoder, recipe.head)):
        _check_bitsandbytes()
    return checkpoint


def _check_bitsandbytes() -> None:
    try:
        load_bitsandbytes()
    except ImportError as error:
        missing = (error.name or "bitsandbytes").partition(".")[0]
        raise InputError(f"--nf4 needs {missing}, which is not installed; pip install 'medvlm[calibrate]'") from error


def export(directory: Path, out: Path, recipe: Recipe, *, force: bool = False) -> Manifest:
    """Check and convert the checkpoint in `directory`. Raises as `check_export`, and `MedVLMError` while writing."""
    return write_bundle(check_export(directory, out, recipe, force=force), out, recipe)


def write_bundle(
    checkpoint: Checkpoint, out: Path, recipe: Recipe, progress: Progress = lambda name, size: None
) -> Manifest:
    """Write the bundle of a checked checkpoint, whole or not at all."""
    with atomic_directory(out) as partial:
        writer = _Writer(checkpoint, partial, recipe, progress)
        manifest = writer.write()
        (partial / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


class _Writer:
    """Writes the parts one after the other and keeps their sizes, times and digests."""

    def __init__(self, checkpoint: Checkpoint, out: Path, recipe: Recipe, progress: Progress) -> None:
        self.checkpoint, self.out, self.recipe, self.progress = checkpoint, out, recipe, progress
        self.digests: dict[Path, str] = {}
        self.parts: list[Part] = []

    def write(self) -> Manifest:
        config = self.checkpoint.config
        label = self.recipe.decoder.label
        if self.recipe.head != self.recipe.decoder:
            label += f", head {self.recipe.head.label}"
        with self._part("vision encoder", self.recipe.vision.label):
            self._write_vision()
        with self._part("decoder and head", label):
            self._write_decoder()
        if self.recipe.prefill is not None:
            with self._part("prefill", self.recipe.prefill.label):
                self._write_prefill(self.recipe.prefill)
        with self._part("embedding table", self.recipe.embedding):
            self._write_embeddings()
        shutil.copyfile(self.checkpoint.directory / TOKENIZER, self.out / TOKENIZER)
        self.digests[self.out / TOKENIZER] = sha256(self.out / TOKENIZER)
        return Manifest(
            format_version=FORMAT_VERSION,
            created_by=f"medvlm {metadata.version('medvlm')}",
            source=self._source(),
            recipe=self.recipe.to_json(),
            parts=tuple(self.parts),
            vision=config.vision,
            text=config.text,
            preprocessing=self.checkpoint.preprocessing,
            prompt=self.checkpoint.prompt,
            image_token_id=config.image_token_id,
            embedding_dtype=self.recipe.embedding,
            generation=self.checkpoint.generation,
            files={path.name: FileEntry(path.stat().st_size, digest) for path, digest in self.digests.items()},
        )

    def _write_vision(self) -> None:
        with GraphBuilder(self.out / VISION) as graph:
            build_vision(Layers(graph, self._read, self.recipe.vision), self.checkpoint.config.vision)
            self.digests |= graph.save()

    def _write_decoder(self) -> None:
        with GraphBuilder(self.out / DECODER) as graph:
            layers = Layers(graph, self._read, self.recipe.decoder)
            build_decoder(layers, self.checkpoint.config.text, self.recipe.head)
            self.digests |= graph.save()

    def _write_prefill(self, precision: Precision) -> None:
        with GraphBuilder(self.out / PREFILL) as graph:
            build_prefill(Layers(graph, self._read, precision), self.checkpoint.config.text)
            self.digests |= graph.save()

    def _write_embeddings(self) -> None:
        """The table [vocab_size, hidden_size], raw and row by row: what the runtime maps into memory."""
        table = self._read(EMBEDDING)
        if self.recipe.embedding == "float16" and max(table.max(), -table.min()) > _FLOAT16_MAX:
            raise CheckpointError(f"{EMBEDDING} has values beyond fp16's range; export it with --fp32")
        stored = np.ascontiguousarray(table, np.dtype(self.recipe.embedding).newbyteorder("<"))
        path, data = self.out / EMBEDDINGS, stored.data.cast("B")
        path.write_bytes(data)
        self.digests[path] = hashlib.sha256(data).hexdigest()

    def _read(self, name: str) -> NDArray[np.float32]:
        info = self.checkpoint.tensors[name]
        tensor = info.read()
        if not np.isfinite(tensor).all():
            raise CheckpointError(f"{name} holds values that are not finite; download the checkpoint again")
        self.progress(name, info.nbytes)
        return tensor

    @contextlib.contextmanager
    def _part(self, name: str, precision: str) -> Iterator[None]:
        """Keep the time that the block takes, and the size of the files that it writes."""
        started, before = time.perf_counter(), set(self.digests)
        yield
        size = sum(path.stat().st_size for path in self.digests.keys() - before)
        self.parts.append(Part(name, precision, size, round(time.perf_counter() - started, 2)))

    def _source(self) -> Source:
        files = {info.file for info in self.checkpoint.tensors.values()}
        settings = (CONFIG, GENERATION, TOKENIZER, *PREPROCESSOR_FILES, *TEMPLATE_FILES)
        files |= {path for name in settings if (path := self.checkpoint.directory / name).is_file()}
        digests = {path.name: sha256(path) for path in sorted(files)}
        return Source(self.checkpoint.directory.resolve().name, self.checkpoint.config.raw, digests)
