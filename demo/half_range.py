"""`python -m medvlm.demo.half_range [CHECKPOINT]`: which layers' values leave the range of half floats.

Every value that the float32 graphs compute of held-out questions and the model's own answers is looked at, and each
layer's largest is held against 65,504. A layer that comes near it is one for `medvlm-export --device cuda --exact`.
"""

import dataclasses
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from numpy.typing import NDArray

from ..export.convert import export
from ..export.recipe import make_recipe
from ..runtime.bundle import DECODER, VISION
from ..runtime.commands import ErrorCommand
from ..runtime.manifest import TextDims
from ..runtime.model import MedVLM
from ..runtime.positions import followed, mrope_tables, vision_tables
from ..runtime.processor import Request
from ..runtime.session import open_session
from .dataset import Item, make_item
from .evaluate import CHECKPOINT, DECODING

LIMIT = float(np.finfo(np.float16).max)
_PLAIN = dataclasses.replace(DECODING, constrained=False, max_draft=0)
# "/blocks.3/mlp/..." belongs to blocks.3; what is before the first block and behind the last is named as it is.
_LAYER = re.compile(r"/(blocks\.\d+|layers\.\d+|[a-z_]+)")


def largest_values(checkpoint: Path, items: Sequence[Item]) -> dict[str, float]:
    """The largest magnitude of each layer's values, by the layer's scope as `--exact` takes it."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory) / "bundle"
        export(checkpoint, bundle, make_recipe("fp32"))
        model = MedVLM.load(bundle)
        vision, decoder = (_Watched(bundle / name) for name in (VISION, DECODER))
        for item in items:
            request = model.processor.prepare([item.image], item.question.problem)
            answer = model.run(request, _PLAIN).finish().token_ids
            features = []
            for picture in request.images:
                patches = picture.patches()
                cos, sin = vision_tables(patches.grid, model.manifest.vision)
                values = vision.run({"pixel_values": patches.pixel_values, "cos": cos, "sin": sin}, found)
                features.append(values["image_features"])
            decoder.run(_decoder_feeds(model, request, answer, features), found)
    return found


def beyond(found: Mapping[str, float], share: float = 0.5) -> list[str]:
    """The layers whose largest value is more than a share of what half floats hold, or no number."""
    return [scope for scope, value in found.items() if not value <= share * LIMIT]


class _Watched:
    """A graph that gives every value that it computes."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        named = {output.name for output in model.graph.output}
        for name in (output for node in model.graph.node for output in node.output if output not in {*named, ""}):
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        # Beside its data file, where onnxruntime looks for it.
        watched = path.with_name(f"watched.{path.name}")
        onnx.save(model, watched)
        self._session = open_session(watched, None)
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, NDArray[Any]], found: dict[str, float]) -> dict[str, NDArray[Any]]:
        """All values, by name; the largest of each layer noted in `found`."""
        values = dict(zip(self._outputs, map(np.asarray, self._session.run(self._outputs, dict(feeds))), strict=True))
        for name, value in values.items():
            layer = _LAYER.match(name)
            if layer and value.size and value.dtype == np.float32:
                # NaN where one is, whatever was found before.
                found[layer[1]] = float(np.maximum(np.abs(value).max(), found.get(layer[1], 0.0)))
        return values


def _decoder_feeds(
    model: MedVLM, request: Request, answer: Sequence[int], features: Sequence[NDArray[np.float32]]
) -> dict[str, NDArray[Any]]:
    """A question and its answer as one call of the decoder reads them."""
    ids, dims = np.concatenate([request.token_ids, answer]).astype(np.int64), model.manifest.text
    embeddings = model.embeddings(ids)
    for span, image in zip(request.contents.images, features, strict=True):
        embeddings[span.start : span.end] = image
    cos, sin = mrope_tables(followed(request.positions, len(answer)), dims)
    return {
        "inputs_embeds": embeddings[None],
        "seqlens_k": np.array([len(ids) - 1], np.int32),
        "total_sequence_length": np.array(len(ids), np.int32),
        "cos_cache": cos,
        "sin_cache": sin,
        "logit_rows": np.arange(len(ids)),
        **_empty_cache(dims, len(ids)),
    }


def _empty_cache(dims: TextDims, slots: int) -> dict[str, NDArray[np.float32]]:
    past = np.zeros((1, dims.num_kv_heads, slots, dims.head_size), np.float32)
    return {f"past_key_values.{i}.{kind}": past for i in range(dims.layers) for kind in ("key", "value")}


@click.command(cls=ErrorCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path), default=CHECKPOINT)
@click.option("--questions", default=20, show_default=True, help="How many, from the first of the test split on.")
def main(checkpoint: Path, questions: int) -> None:
    """Print the largest value of each layer of CHECKPOINT (by default the demo's own) as Markdown."""
    with click.progressbar(range(questions), label=f"Drawing {questions} scans", file=sys.stderr) as bar:
        items = [make_item("test", index) for index in bar]
    found = largest_values(checkpoint, items)
    click.echo("| layer | largest value | of what half floats hold |\n|---|---|---|")
    for scope, value in sorted(found.items(), key=lambda entry: -entry[1]):
        click.echo(f"| {scope} | {value:,.0f} | {100 * value / LIMIT:.1f} % |")
    flagged = beyond(found)
    click.echo(f"\nTo keep in float32: {' '.join(f'--exact {scope}' for scope in flagged) or 'none'}")


if __name__ == "__main__":
    main()
