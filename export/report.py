"""What quantization cost, as data and as JSON: of each tensor, and of the whole model on questions."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal, TypedDict

from ..runtime.comparison import Comparison, Flip
from ..runtime.errors import InputError, plain

PartName = Literal["vision encoder", "decoder", "head", "prefill"]
PARTS: tuple[PartName, ...] = ("decoder", "head", "vision encoder", "prefill")

# What tells a report from any other JSON file, and its version. Readers of the first version know no other.
FORMAT = "medvlm report"
FORMAT_VERSION = 1

# "layers.3/attn/qkv_proj" and "blocks.0/mlp/fc2.1": the layer's number, and the matrix without its piece's number.
_LAYER = re.compile(r"(?:layers|blocks)\.(\d+)/")
_PIECE = re.compile(r"\.\d+$")


class Calibration(TypedDict):
    """What a calibrated method saw: how many images of which dataset."""

    dataset: str
    images: int
    method: str


@dataclass(frozen=True)
class TensorLoss:
    """One weight matrix of the bundle.

    scope: its name in the graph, e.g. "layers.3/attn/qkv_proj". precision: a label such as "int4 block 128 gptq".
    weights: the number of its elements. bytes: all that is stored for them, scales and zero points included.
    relative_error: ||W - W_hat|| / ||W|| in the Frobenius norm.
    """

    part: PartName
    scope: str
    precision: str
    weights: int
    bytes: int
    relative_error: float

    @property
    def bits(self) -> float:
        """Bits stored for each weight, scales and zero points included."""
        return 8 * self.bytes / self.weights

    @property
    def layer(self) -> int | None:
        """The number of its layer or block; None for what lies outside of them."""
        found = _LAYER.match(self.scope)
        return int(found[1]) if found else None

    @property
    def kind(self) -> str:
        """What it is in every layer ("qkv_proj", "fc1"), a wide matrix's pieces all the same; outside, its scope."""
        return self.scope if self.layer is None else _PIECE.sub("", self.scope.rpartition("/")[2])


@dataclass(frozen=True)
class Tried:
    """What the plot of size against KL and its table need of a report.

    source: the checkpoint's name, and dataset: that of the questions: reports that differ in either cannot be compared.
    megabytes: of the whole bundle, in millions of bytes. kl: mean divergence from fp32 in nats. top1_agreement,
    accuracy: shares, 0 to 1.
    """

    label: str
    source: str
    dataset: str
    questions: int
    megabytes: float
    kl: float
    top1_agreement: float
    accuracy: float
    flips: int


@dataclass(frozen=True)
class Report:
    """What a bundle lost.

    recipe: as in the manifest. total_bytes: of all the bundle's files. dataset: what the questions of `comparison` are
    called; its A is the checkpoint in fp32 and its B the bundle. seconds: of exporting and measuring together.
    """

    source: str
    created_by: str
    recipe: dict[str, Any]
    total_bytes: int
    tensors: tuple[TensorLoss, ...]
    dataset: str
    comparison: Comparison
    calibration: Calibration | None
    seconds: float

    @property
    def label(self) -> str:
        """The precisions in a few words: the decoder's, and those of the parts that differ from it."""
        names = {part: self._precision(part) for part in PARTS}
        decoder = names["decoder"]
        others = [f"{part.split()[0]} {name}" for part, name in names.items() if name and name != decoder]
        return ", ".join([decoder, *others]) or "unnamed"

    def _precision(self, part: PartName) -> str:
        """The precisions of what was quantized in `part`; if nothing was, of all."""
        tensors = [tensor for tensor in self.tensors if tensor.part == part]
        return " + ".join(precisions([tensor for tensor in tensors if tensor.relative_error] or tensors))

    def tried(self) -> Tried:
        """The bundle as one among others."""
        found = self.comparison
        return Tried(
            label=self.label,
            source=self.source,
            dataset=self.dataset,
            questions=found.questions,
            megabytes=self.total_bytes / 1e6,
            kl=found.kl,
            top1_agreement=found.top1_agreement,
            accuracy=found.accuracy_b,
            flips=found.flips,
        )

    def to_json(self) -> str:
        """The report as one JSON object. Of the images only their names are in it, not where they lie."""
        whole_model = dataclasses.asdict(self.comparison)
        del whole_model["flipped"]
        fields = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "label": self.label,
            "source": self.source,
            "created_by": self.created_by,
            "recipe": self.recipe,
            "calibration": self.calibration,
            "total_bytes": self.total_bytes,
            "seconds": self.seconds,
            "dataset": self.dataset,
            "whole_model": whole_model,
            "tensors": [{**dataclasses.asdict(tensor), "bits": tensor.bits} for tensor in self.tensors],
            "flipped": [{**dataclasses.asdict(flip), "images": image_names(flip)} for flip in self.comparison.flipped],
        }
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"


def precisions(tensors: Sequence[TensorLoss]) -> list[str]:
    """Their precisions, the one of most weights first."""
    weights: dict[str, int] = {}
    for tensor in tensors:
        weights[tensor.precision] = weights.get(tensor.precision, 0) + tensor.weights
    return sorted(weights, key=lambda precision: (-weights[precision], precision))


def image_names(flip: Flip) -> list[str]:
    """The names of a question's images, as text: a file's name may hold bytes that are none."""
    return [plain(PurePath(image).name) for image in flip.images]


def read_tried(path: Path) -> Tried:
    """Read what another export's report says of its bundle. Raises `InputError` for what is no report."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a report that medvlm-export wrote") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not JSON; give the .json of a report that medvlm-export wrote") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path} is not a report; give the .json of a report that medvlm-export wrote")
    if data.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{path} is a report of another version of medvlm; write it again with this one")
    try:
        return _tried(data)
    except KeyError as error:
        raise InputError(f"{path} lacks {error.args[0]}; write the report again with medvlm-export --report") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}; write the report again with medvlm-export --report") from None


def _tried(data: Mapping[str, Any]) -> Tried:
    """The fields of a report. Raises KeyError for one that is missing, TypeError and ValueError for what cannot be."""
    found = data["whole_model"]
    return Tried(
        label=_text(data, "label"),
        source=_text(data, "source"),
        dataset=_text(data, "dataset"),
        questions=int(_number(found, "questions", low=1)),
        megabytes=_number(data, "total_bytes", low=1) / 1e6,
        kl=_number(found, "kl"),
        top1_agreement=_number(found, "top1_agreement", high=1),
        accuracy=_number(found, "accuracy_b", high=1),
        flips=int(_number(found, "flips")),
    )


def _number(data: Any, name: str, low: float = 0, high: float = 1e300) -> float:
    value = data[name]
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}")
    return float(value)


def _text(data: Mapping[str, Any], name: str) -> str:
    if not isinstance(data[name], str):
        raise ValueError(f"{name} is {data[name]!r}")
    return plain(data[name])
