"""manifest.json: everything about a bundle that the runtime would otherwise have to guess."""

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from .errors import BundleError

FORMAT_VERSION = 2
MANIFEST = "manifest.json"

_LARGEST = 2**31 - 1
# No layer is so wide: tables of such widths would fill the memory before anything else is found wrong.
_WIDEST = 2**16
_MOST_LAYERS = 1000
_SHARED = ("patch_size", "temporal_patch_size", "merge_size")

DeviceName = Literal["cpu", "cuda"]
"""What a bundle's graphs are for, and run on."""

T = TypeVar("T")


@dataclass(frozen=True)
class VisionDims:
    """The vision encoder's shape."""

    depth: int
    embed_dim: int
    num_heads: int
    mlp_dim: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    out_dim: int

    @property
    def head_size(self) -> int:
        """Elements of one attention head."""
        return self.embed_dim // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Elements of one flattened patch: channels x temporal x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merged_dim(self) -> int:
        """Elements of one row after `merge_size`^2 patches are joined."""
        return self.embed_dim * self.merge_size**2


@dataclass(frozen=True)
class TextDims:
    """The language decoder's shape."""

    layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, ...]
    tied_embeddings: bool

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token takes in the fp32 KV cache."""
        return self.layers * 2 * self.num_kv_heads * self.head_size * 4


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes patches (the checkpoint's preprocessor_config.json)."""

    min_pixels: int
    max_pixels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]


@dataclass(frozen=True)
class PromptParts:
    """The checkpoint's chat template for one turn: `prefix + image * n + question + suffix`."""

    prefix: str
    image: str
    suffix: str


@dataclass(frozen=True)
class Generation:
    """When decoding ends."""

    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """One part of the model as it was written: vision, decoder, head or embedding."""

    name: str
    precision: str
    bytes: int
    seconds: float


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """The checkpoint a bundle was made from: its configuration and the sha256 of each file read."""

    name: str
    config: dict[str, Any]
    sha256: dict[str, str]


@dataclass(frozen=True)
class Loss:
    """What the bundle's precision cost, measured on held-out questions against the checkpoint in fp32.

    dataset: what the questions are called. tokens: of the answers in fp32, at each of which kl (the mean KL divergence
    of the next-token distribution from fp32's, in nats) and top1_agreement (the share, 0 to 1, whose likeliest token
    is fp32's) were taken. flips: questions whose letter differs. accuracy, reference_accuracy: the shares of right
    answers of the bundle and in fp32.
    """

    dataset: str
    questions: int
    tokens: int
    kl: float
    top1_agreement: float
    flips: int
    accuracy: float
    reference_accuracy: float


@dataclass(frozen=True)
class Manifest:
    """All of manifest.json. What has a default may be absent, and is where it has that value.

    loss: None where it was not measured. devices: `DeviceName`s; a bundle that does not say it is for CPUs.
    """

    format_version: int
    created_by: str
    source: Source
    recipe: dict[str, Any]
    parts: tuple[Part, ...]
    vision: VisionDims
    text: TextDims
    preprocessing: Preprocessing
    prompt: PromptParts
    image_token_id: int
    embedding_dtype: str
    generation: Generation
    files: dict[str, FileEntry]
    loss: Loss | None = None
    devices: tuple[str, ...] = ("cpu",)

    def to_json(self) -> str:
        """The text of manifest.json."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        fields = {name: value for name, value in dataclasses.asdict(self).items() if value != defaults[name]}
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read manifest.json. Raises `BundleError` for a field that is missing or of another type."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{MANIFEST} is not JSON ({error}); export the bundle again") from None
        version = data.get("format_version") if isinstance(data, dict) else None
        if type(version) is not int or version < 1:
            raise BundleError(f"{MANIFEST} has no format_version; this is not a medvlm bundle")
        if version > FORMAT_VERSION:
            raise BundleError(
                f"the bundle's format is {version} and this medvlm reads {FORMAT_VERSION}; upgrade medvlm"
            )
        if version < FORMAT_VERSION:
            raise BundleError(
                f"the bundle's format is {version} and this medvlm reads {FORMAT_VERSION}; export the bundle again"
            )
        manifest = _read(cls, data, MANIFEST)
        for fault in _contradictions(manifest):
            raise BundleError(f"{MANIFEST}: {fault}; export the bundle again")
        return manifest


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """What no export writes, and what would fail in the middle of a question or mislead it."""
    text, vision, images = manifest.text, manifest.vision, manifest.preprocessing
    numbers = [value for part in (text, vision, images) for value in vars(part).values() if type(value) in (int, float)]
    widths = [*vars(vision).values(), text.hidden_size, text.num_heads, text.num_kv_heads, text.head_size]
    too_large = max(numbers) > _LARGEST or max(widths) > _WIDEST or text.layers > _MOST_LAYERS
    if min(*numbers, *images.image_std) <= 0 or too_large:
        yield "a dimension is not positive, or too large"
    if any(getattr(vision, name) != getattr(images, name) for name in _SHARED):
        yield "vision and preprocessing disagree on the patches"
    if vision.out_dim != text.hidden_size or vision.embed_dim % (4 * vision.num_heads):
        yield "the vision encoder's widths do not fit together"
    sections = text.mrope_section
    if len(sections) != 3 or min(sections) < 0 or 2 * sum(sections) != text.head_size:
        yield "mrope_section does not fit the head size"
    if manifest.embedding_dtype not in ("float16", "float32"):
        yield f"the embeddings' type {manifest.embedding_dtype!r} is not known"
    if not 0 <= manifest.image_token_id < text.vocab_size:
        yield "the image token is not in the vocabulary"
    if not manifest.devices or not {*manifest.devices} <= {*get_args(DeviceName)}:
        yield "it is for no device that this medvlm knows"
    if manifest.loss is not None and not _possible(manifest.loss):
        yield "its loss has figures that cannot be"


def _possible(loss: Loss) -> bool:
    shares = loss.top1_agreement, loss.accuracy, loss.reference_accuracy
    return min(loss.questions, loss.tokens, loss.kl, loss.flips, *shares) >= 0 and max(shares) <= 1


def _read(kind: Any, value: Any, where: str) -> Any:
    """`value`, parsed from JSON, as the annotated type `kind`; `where` names it in an error."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        # The only unions are of one type and None.
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return None if value is None else _read(kind, value, where)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(typing.cast("type[Any]", kind), value, where)
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            return tuple(_read(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {_read(str, k, where): _read(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is Any:
        return value
    if _is_scalar(kind, value):
        return kind(value)
    raise BundleError(f"{where} is not what it should be ({getattr(kind, '__name__', kind)}); export the bundle again")


def _is_scalar(kind: Any, value: Any) -> bool:
    if kind is float:
        # JSON has integers that no float holds, and Python's reads NaN and Infinity too.
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if kind is str and isinstance(value, str):
        # An escaped half of a surrogate pair is JSON but no text.
        return not any("\ud800" <= c <= "\udfff" for c in value)
    return kind in (int, bool) and type(value) is kind


def _read_dataclass(kind: type[T], value: Any, where: str) -> T:
    if not isinstance(value, dict):
        raise BundleError(f"{where} is not an object; export the bundle again")
    hints = typing.get_type_hints(kind)
    missing = [name for name in hints if name not in value and name not in _optional(kind)]
    if missing:
        raise BundleError(f"{where} lacks {', '.join(missing)}; export the bundle again")
    present = {name: hint for name, hint in hints.items() if name in value}
    return kind(**{name: _read(hint, value[name], f"{where}.{name}") for name, hint in present.items()})


def _optional(kind: Any) -> set[str]:
    """The fields that have a default."""
    return {field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
