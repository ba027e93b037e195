"""What the float32 model is run on: questions with their images, and the model's own answers to them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runtime.bundle import open_bundle
from ..runtime.dataset import DatasetItem
from ..runtime.decoding import Decoding
from ..runtime.manifest import TextDims, VisionDims
from ..runtime.model import MedVLM
from ..runtime.positions import followed, mrope_tables, vision_tables
from ..runtime.preprocess import Patches
from ..runtime.processor import Processor, Request
from .layers import ReadTensor
from .layerwise import LayerRunner, Watch, layer_of
from .tensors import EMBEDDING
from .vision import build_block, build_merger, build_patch_embedding

ANSWERING = Decoding(max_new_tokens=160, constrained=False, max_draft=0)

Progress = Callable[[str], None]
"""Called when a step is done, with what was done."""


@dataclass(frozen=True)
class Asked:
    """A question as the model reads it, and the tokens of its own answer."""

    request: Request
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """A question and its answer as the decoder reads them.

    embeddings: [tokens, hidden_size]. cos, sin: [tokens, head_size / 2]. start: the slot of the prompt's last token;
    the logits there and behind it say the answer.
    """

    embeddings: NDArray[np.float32]
    cos: NDArray[np.float32]
    sin: NDArray[np.float32]
    start: int


def answer_all(
    bundle: Path, items: Sequence[DatasetItem], threads: int | None = None, progress: Progress = lambda what: None
) -> list[tuple[int, ...]]:
    """The tokens of the answers of the model in `bundle`, decoded greedily and plainly."""
    model = MedVLM(open_bundle(bundle), threads=threads, prefix_mb=0)
    answers = []
    for i, item in enumerate(items):
        answers.append(model.ask(list(item.images), item.problem, ANSWERING).token_ids)
        progress(f"question {i + 1} of {len(items)}")
    return answers


def read_all(bundle: Path, items: Sequence[DatasetItem], answers: Sequence[tuple[int, ...]]) -> list[Asked]:
    """The questions as the model of `bundle` reads them, with answers to them. Raises `InputError` for an image."""
    processor = Processor(open_bundle(bundle))
    return [
        Asked(processor.prepare(list(item.images), item.problem), answer)
        for item, answer in zip(items, answers, strict=True)
    ]


def make_samples(
    asked: Sequence[Asked],
    read: ReadTensor,
    vision: VisionDims,
    text: TextDims,
    *,
    threads: int | None = None,
    watch: Watch | None = None,
    progress: Progress = lambda what: None,
) -> list[Sample]:
    """The samples, images encoded in float32. watch: sees what every product of the encoder multiplies."""
    pictures = {picture.digest: picture for one in asked for picture in one.request.images}
    patches = [picture.patches() for picture in pictures.values()]
    features = dict(zip(pictures, encode(patches, read, vision, threads, watch, progress), strict=True))
    table = read(EMBEDDING)
    return [_sample(one, features, table, text) for one in asked]


def encode(
    patches: Sequence[Patches],
    read: ReadTensor,
    dims: VisionDims,
    threads: int | None = None,
    watch: Watch | None = None,
    progress: Progress = lambda what: None,
) -> list[NDArray[np.float32]]:
    """The features [visual tokens, out_dim] of images in float32, all images through one block and then the next."""
    runner = LayerRunner(partial(build_patch_embedding, dims=dims), "residual", threads)
    runner.load(read)
    streams = [runner.run({"pixel_values": image.pixel_values}) for image in patches]
    tables = [dict(zip(("cos", "sin"), vision_tables(image.grid, dims), strict=True)) for image in patches]
    runner = LayerRunner(partial(build_block, dims=dims), "residual", threads)
    for i in range(dims.depth):
        runner.load(layer_of(read, "visual.blocks", i))
        named = _renamed(watch, "blocks.0/", f"blocks.{i}/")
        for sample, stream in enumerate(streams):
            streams[sample] = runner.run({"hidden": stream, **tables[sample]}, named)
        progress(f"vision block {i + 1} of {dims.depth}")
    runner = LayerRunner(partial(build_merger, dims=dims), "image_features", threads)
    runner.load(read)
    return [runner.run({"hidden": stream}, watch) for stream in streams]


def _sample(
    one: Asked, features: Mapping[str, NDArray[np.float32]], table: NDArray[np.float32], dims: TextDims
) -> Sample:
    request, answer = one.request, np.array(one.answer, np.int64)
    embeddings = table[np.concatenate([request.token_ids, answer])]
    for span in request.contents.images:
        embeddings[span.start : span.end] = features[span.digest]
    tables = mrope_tables(followed(request.positions, answer.size), dims)
    return Sample(embeddings, *tables, start=request.token_ids.size - 1)


def _renamed(watch: Watch | None, old: str, new: str) -> Watch | None:
    return watch and (lambda scope, x: watch(scope.replace(old, new), x))
