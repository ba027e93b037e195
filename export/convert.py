"""Checkpoint to bundle: check everything, then write part by part."""

import contextlib
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..quant.nf4 import load_bitsandbytes
from ..runtime.bundle import CUDA_DECODER, CUDA_VISION, DECODER, EMBEDDINGS, PREFILL, TOKENIZER, VISION, sha256
from ..runtime.errors import CheckpointError, InputError
from ..runtime.manifest import FORMAT_VERSION, MANIFEST, FileEntry, Manifest, Part, Source
from .chat_template import TEMPLATE_FILES
from .checkpoint import Checkpoint, open_checkpoint
from .config import CONFIG, GENERATION, PREPROCESSOR_FILES
from .decoder import build_decoder, build_prefill
from .folds import FoldedReader, text_sites, vision_sites
from .graph import CUDA_OPSET, GraphBuilder, Places
from .layers import Layers
from .output import atomic_directory, check_output, check_space
from .prepare import Prepared, prepare
from .recipe import NF4, Blockwise, Precision, Recipe, on_cuda
from .stored import Observe, Stored
from .tensors import EMBEDDING, HEAD, Shape, prefill_tensors
from .vision import build_vision
from .workdir import Workdir

Progress = Callable[[str, int], None]
"""Called with each tensor's name and its bytes in the checkpoint once it is read."""

GraphName = Literal["vision encoder", "decoder", "prefill"]
ObservePart = Callable[[GraphName, str, NDArray[np.float32], Stored], None]
"""`stored.Observe` with the name of the graph before it."""

_FLOAT16_MAX = float(np.finfo(np.float16).max)


def read_bytes(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Bytes of all reads that writing a bundle does: some tensors are read again, for the head or for prefill."""
    embedding, head = checkpoint.tensors[EMBEDDING].nbytes, checkpoint.info(HEAD).nbytes
    layers = sum(info.nbytes for name, info in checkpoint.tensors.items() if name not in (EMBEDDING, HEAD))
    total = embedding + len(recipe.devices) * (layers + head)
    if recipe.prefill is not None:
        total += sum(checkpoint.tensors[name].nbytes for name in prefill_tensors(checkpoint.config.text))
    return total


def bundle_bytes(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Bytes that the bundle will take, tokenizer included; the graphs and the manifest are within a few percent."""
    text = checkpoint.config.text
    total = text.vocab_size * text.hidden_size * np.dtype(recipe.embedding).itemsize
    total += (checkpoint.directory / TOKENIZER).stat().st_size
    total += _graph_bytes(checkpoint, recipe)
    if len(recipe.devices) > 1:
        total += _graph_bytes(checkpoint, on_cuda(recipe), shared=True)
    if recipe.prefill is not None:
        shapes = (checkpoint.tensors[name].shape for name in prefill_tensors(text))
        total += sum(_stored_bytes(shape, recipe.prefill) for shape in shapes)
    return total


def _graph_bytes(checkpoint: Checkpoint, recipe: Recipe, *, shared: bool = False) -> int:
    """Bytes of the vision encoder's and the decoder's weights. shared: but for blocks, which are there already."""
    text, total = checkpoint.config.text, 0
    sizes = [
        (info.shape, recipe.vision if name.startswith("visual.") else recipe.decoder)
        for name, info in checkpoint.tensors.items()
        if name not in (EMBEDDING, HEAD)
    ]
    sizes.append(((text.vocab_size, text.hidden_size), recipe.head))
    for shape, precision in sizes:
        if not (shared and len(shape) == 2 and isinstance(precision, Blockwise)):
            total += _stored_bytes(shape, precision)
    return total


def _stored_bytes(shape: Shape, precision: Precision) -> int:
    """Bytes of a tensor in the bundle: norms, biases and the patch embedding stay float32."""
    return precision.weight_bytes(*shape) if len(shape) == 2 else 4 * int(np.prod(shape))


def check_export(directory: Path, out: Path, recipe: Recipe, *, force: bool = False) -> Checkpoint:
    """Everything that can be wrong, before any work.

    Raises `CheckpointError`, and `InputError` for `out` and for what the recipe needs and is not installed.
    """
    checkpoint = open_checkpoint(directory)
    _check_exact(recipe, checkpoint)
    check_output(out, directory, force=force)
    check_space(out, bundle_bytes(checkpoint, recipe))
    if any(isinstance(precision, NF4) for precision in (recipe.decoder, recipe.head)):
        _check_bitsandbytes()
    return checkpoint


def _check_exact(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Raise `InputError` for a layer to keep in float32 that the model does not have."""
    blocks, layers = checkpoint.config.vision.depth, checkpoint.config.text.layers
    known = {"merger", *(f"blocks.{i}" for i in range(blocks)), *(f"layers.{i}" for i in range(layers))}
    for scope in sorted({*recipe.exact} - known):
        raise InputError(
            f"--exact {scope} is no layer of this model; give blocks.0 to blocks.{blocks - 1}, merger, or layers.0 to "
            f"layers.{layers - 1}"
        )


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
    checkpoint: Checkpoint,
    out: Path,
    recipe: Recipe,
    progress: Progress = lambda name, size: None,
    calibrated: Workdir | None = None,
    observe: ObservePart | None = None,
) -> Manifest:
    """Write the bundle of a checked checkpoint, whole or not at all.

    calibrated: what a calibration left, where `recipe` wants one: raises `InputError` without it. observe: sees every
    product as it is stored.
    """
    if recipe.calibrated and calibrated is None:
        raise InputError(f"{recipe.decoder.label} looks at activations; collect them first, as medvlm-export does")
    with atomic_directory(out) as directory:
        prepared = prepare(checkpoint, recipe, calibrated, lambda what: progress(what, 0))
        manifest = _Writer(checkpoint, directory, recipe, prepared, progress, observe).write()
        (directory / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


class _Writer:
    """Writes the parts one after the other and keeps their sizes, times and digests."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        out: Path,
        recipe: Recipe,
        prepared: Prepared,
        progress: Progress,
        observe: ObservePart | None,
    ) -> None:
        self.checkpoint, self.out, self.recipe, self.progress = checkpoint, out, recipe, progress
        self.pack, self.observe = prepared.pack, observe
        config = checkpoint.config
        self.read_vision = FoldedReader(self._read, vision_sites(config.vision), prepared.vision_scales)
        self.read_text = FoldedReader(self._read, text_sites(config.text), prepared.text_scales)
        self.digests: dict[Path, str] = {}
        self.parts: list[Part] = []

    def write(self) -> Manifest:
        config = self.checkpoint.config
        # What a graph for CUDA need not write again.
        vision_places: Places = {}
        decoder_places: Places = {}
        if "cpu" in self.recipe.devices:
            with self._part("vision encoder", self.recipe.vision.label):
                vision_places = self._write_vision()
            with self._part("decoder and head", _decoder_label(self.recipe)):
                decoder_places = self._write_decoder()
            if self.recipe.prefill is not None:
                with self._part("prefill", self.recipe.prefill.label):
                    self._write_prefill(self.recipe.prefill)
        if "cuda" in self.recipe.devices:
            with self._part("vision on CUDA", on_cuda(self.recipe).vision.label):
                self._write_cuda_vision(vision_places)
            with self._part("decoder on CUDA", _decoder_label(on_cuda(self.recipe))):
                self._write_cuda_decoder(decoder_places)
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
            devices=self.recipe.devices,
        )

    def _write_vision(self) -> Places:
        with GraphBuilder(self.out / VISION, remember="cuda" in self.recipe.devices) as graph:
            layers = Layers(graph, self.read_vision, self.recipe.vision, observe=self._observing("vision encoder"))
            build_vision(layers, self.checkpoint.config.vision)
            self.digests |= graph.save()
            return graph.places

    def _write_decoder(self) -> Places:
        with GraphBuilder(self.out / DECODER, remember="cuda" in self.recipe.devices) as graph:
            observe = self._observing("decoder")
            layers = Layers(graph, self.read_text, self.recipe.decoder, self.pack, observe)
            build_decoder(layers, self.checkpoint.config.text, self.recipe.head)
            self.digests |= graph.save()
            return graph.places

    def _write_cuda_vision(self, known: Places) -> None:
        recipe = on_cuda(self.recipe)
        with GraphBuilder(self.out / CUDA_VISION, CUDA_OPSET, known=known) as graph:
            layers = Layers(graph, self.read_vision, recipe.vision, floats="float16", exact=recipe.exact)
            build_vision(layers, self.checkpoint.config.vision)
            self.digests |= graph.save()

    def _write_cuda_decoder(self, known: Places) -> None:
        recipe = on_cuda(self.recipe)
        with GraphBuilder(self.out / CUDA_DECODER, CUDA_OPSET, known=known) as graph:
            layers = Layers(graph, self.read_text, recipe.decoder, self.pack, floats="float16", exact=recipe.exact)
            build_decoder(layers, self.checkpoint.config.text, recipe.head)
            self.digests |= graph.save()

    def _write_prefill(self, precision: Precision) -> None:
        with GraphBuilder(self.out / PREFILL) as graph:
            layers = Layers(graph, self.read_text, precision, observe=self._observing("prefill"))
            build_prefill(layers, self.checkpoint.config.text)
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

    def _observing(self, graph: GraphName) -> Observe | None:
        return self.observe and partial(self.observe, graph)

    def _read(self, name: str) -> NDArray[np.float32]:
        tensor = self.checkpoint.read(name)
        self.progress(self.checkpoint.stored_name(name), self.checkpoint.info(name).nbytes)
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


def _decoder_label(recipe: Recipe) -> str:
    """The precision of the decoder, and the head's where it is another, for a person."""
    head = "" if recipe.head == recipe.decoder else f", head {recipe.head.label}"
    return recipe.decoder.label + head
