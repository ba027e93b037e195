"""Which precision each part of the model is written in."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from ..runtime.errors import InputError
from ..runtime.manifest import DeviceName

HEAD_SCOPE = "lm_head"
"""The head's product in the decoder's graph."""

RecipeName = Literal["int4", "int8", "nf4", "fp32"]
VisionName = Literal["w8a8", "w8", "w4", "fp32"]
PrefillName = Literal["w8a8", "same"]
HeadName = Literal["int4", "int8", "nf4", "fp32"]
EmbeddingName = Literal["float16", "float32"]
DeviceChoice = Literal["cpu", "cuda", "both"]

# CUDA's kernel for one row of activations reads no larger blocks; onnxruntime then unpacks the whole weight first.
_LARGEST_CUDA_BLOCK = 128

Method = Literal["rtn", "rtn-search", "hqq", "awq", "gptq", "awq+gptq"]
"""How blocks get their codes: rounding to the nearest within the range or within one that is searched, HQQ, and what
looks at activations."""
CALIBRATED: tuple[Method, ...] = ("awq", "gptq", "awq+gptq")
DEFAULT_METHOD: Method = "rtn-search"


@dataclass(frozen=True)
class Float32:
    """Weights as they are, float32 products."""

    kind: Literal["fp32"] = "fp32"

    @property
    def label(self) -> str:
        """The precision in a few words, for a person."""
        return "fp32"

    def weight_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes that a weight `[out_features, in_features]` takes in the bundle."""
        return out_features * in_features * 4


@dataclass(frozen=True)
class Float16:
    """Weights and products in half floats, which a GPU multiplies fast and a CPU does not."""

    kind: Literal["fp16"] = "fp16"

    @property
    def label(self) -> str:
        """The precision in a few words, for a person."""
        return "fp16"

    def weight_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes that a weight `[out_features, in_features]` takes in the bundle."""
        return out_features * in_features * 2


@dataclass(frozen=True)
class Blockwise:
    """4- or 8-bit weights in blocks that share a scale: `MatMulNBits`.

    accuracy_level is the operator's own: 0 multiplies in float32, 4 rounds activations to int8 per block.
    act_order: GPTQ's choice to round the columns of largest inputs first.
    """

    bits: int
    block_size: int
    symmetric: bool
    accuracy_level: int
    method: Method = "rtn"
    act_order: bool = False
    kind: Literal["blockwise"] = "blockwise"

    @property
    def label(self) -> str:
        """The precision in a few words, for a person."""
        method = "" if self.method == "rtn" else f" {self.method}"
        return f"int{self.bits} block {self.block_size}{method}"

    def weight_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes that a weight `[out_features, in_features]` takes in the bundle."""
        blocks = -(-in_features // self.block_size)
        zero_points = 0 if self.symmetric else -(-blocks * self.bits // 8)
        return out_features * (blocks * (self.block_size * self.bits // 8 + 4) + zero_points)


@dataclass(frozen=True)
class NF4:
    """4-bit normal floats in blocks that share a scale, over the ends of rows, and float32 products: `MatMulBnb4`."""

    block_size: int
    kind: Literal["nf4"] = "nf4"

    @property
    def label(self) -> str:
        """The precision in a few words, for a person."""
        return f"nf4 block {self.block_size}"

    def weight_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes that a weight `[out_features, in_features]` takes in the bundle."""
        elements = out_features * in_features
        return -(-elements // 2) + 4 * -(-elements // self.block_size)


@dataclass(frozen=True)
class W8A8:
    """int8 weights per output channel times int8 activations per row: the fastest product of many rows on a CPU."""

    kind: Literal["w8a8"] = "w8a8"

    @property
    def label(self) -> str:
        """The precision in a few words, for a person."""
        return "w8a8"

    def weight_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes that a weight `[out_features, in_features]` takes in the bundle."""
        return out_features * (in_features + 4)


Precision = Float32 | Float16 | Blockwise | NF4 | W8A8


@dataclass(frozen=True)
class CalibrationData:
    """What activations were collected on: so many questions of a dataset."""

    dataset: str
    questions: int


@dataclass(frozen=True)
class Recipe:
    """The precision of every part. On a CPU the patch embedding, norms and biases are always float32.

    prefill is the precision of the second copy of the decoder's layers, through which prompts go; None where there is
    none, and prompts go through the decoder itself.
    smooth: scales are folded into norms first (`folds`), so that no channel is far larger than others.
    eight_bits: scopes of products of the decoder, the head's among them, that have 8 bits instead of 4.
    calibration: what activations were collected on; None where none were.
    devices: what graphs are written for. Those for CUDA are what `on_cuda` makes of the recipe.
    exact: scopes of vision blocks and decoder layers that stay float32 on CUDA.
    """

    name: str
    vision: Precision
    decoder: Precision
    head: Precision
    prefill: Precision | None
    embedding: EmbeddingName
    smooth: bool = False
    eight_bits: tuple[str, ...] = ()
    calibration: CalibrationData | None = None
    devices: tuple[DeviceName, ...] = ("cpu",)
    exact: tuple[str, ...] = ()

    @property
    def calibrated(self) -> bool:
        """Whether activations must be collected for it."""
        return any(isinstance(part, Blockwise) and part.method in CALIBRATED for part in (self.decoder, self.head))

    def precision_of(self, scope: str) -> Precision:
        """The precision of the decoder's product of a scope, or of the head's."""
        precision = self.head if scope == HEAD_SCOPE else self.decoder
        if scope in self.eight_bits and isinstance(precision, Blockwise):
            return dataclasses.replace(precision, bits=8)
        return precision

    def to_json(self) -> dict[str, Any]:
        """The recipe as manifest.json holds it."""
        tuples = {name: list(getattr(self, name)) for name in ("eight_bits", "devices", "exact")}
        return {**dataclasses.asdict(self), **tuples}


def make_recipe(
    name: RecipeName,
    block_size: int | None = None,
    *,
    symmetric: bool = False,
    accuracy_level: int = 4,
    method: Method | None = None,
    act_order: bool = False,
    smooth: bool | None = None,
    vision: VisionName | None = None,
    prefill: PrefillName | None = None,
    head: HeadName | None = None,
    embedding: EmbeddingName | None = None,
    device: DeviceChoice = "cpu",
    exact: tuple[str, ...] = (),
) -> Recipe:
    """The recipe of `--int4`, `--int8`, `--nf4` or `--fp32`. Vision has 4 bits only where it is asked for.

    block_size: by default 128, and for nf4 bitsandbytes' own 64. method: of the decoder and the head, by default
    `DEFAULT_METHOD` at 4 bits; 8 bits are rounded to the nearest. vision and prefill: by default w8a8, and under fp32
    what is not quantized. head: by default as the decoder. embedding: by default float16, float32 under fp32. smooth:
    by default wherever something is quantized to integers. device: what the bundle is for. exact: see `Recipe`.
    Raises `InputError` for what does not go together.
    """
    plain = name == "fp32"
    size = block_size or (64 if name == "nf4" else 128)

    def blocks(bits: int, method: Method) -> Blockwise:
        return Blockwise(bits, size, symmetric, accuracy_level, method, act_order and "gptq" in method)

    products: dict[HeadName, Precision] = {
        "int4": blocks(4, method or DEFAULT_METHOD),
        "int8": blocks(8, method or "rtn"),
        "nf4": NF4(size if name == "nf4" else 64),
        "fp32": Float32(),
    }
    encoders: dict[VisionName, Precision] = {
        "w8a8": W8A8(),
        "w8": blocks(8, "rtn"),
        # Activations are collected for the decoder only.
        "w4": blocks(4, "rtn-search"),
        "fp32": Float32(),
    }
    chosen_vision = encoders[vision or ("fp32" if plain else "w8a8")]
    chosen_prefill = W8A8() if (prefill or ("same" if plain else "w8a8")) == "w8a8" else None
    integer = (chosen_vision, products[name], products[head or name], chosen_prefill)
    recipe = Recipe(
        name=name,
        vision=chosen_vision,
        decoder=products[name],
        head=products[head or name],
        prefill=chosen_prefill,
        embedding=embedding or ("float32" if plain else "float16"),
        smooth=any(isinstance(part, Blockwise | W8A8) for part in integer) if smooth is None else smooth,
        devices=("cpu", "cuda") if device == "both" else (device,),
        exact=exact,
    )
    _check_device(recipe, vision, prefill)
    return on_cuda(recipe) if device == "cuda" else recipe


def on_cuda(recipe: Recipe) -> Recipe:
    """What the graphs for CUDA are made in: half floats where the CPU's have float32 or int8, and no second decoder.

    The decoder's blocks stay as they are, so that a bundle for both devices holds them once.
    """

    def kept(precision: Precision) -> Precision:
        if isinstance(precision, Blockwise):
            return dataclasses.replace(precision, accuracy_level=0)
        return precision if isinstance(precision, NF4) else Float16()

    return dataclasses.replace(
        recipe, vision=Float16(), decoder=kept(recipe.decoder), head=kept(recipe.head), prefill=None
    )


def _check_device(recipe: Recipe, vision: VisionName | None, prefill: PrefillName | None) -> None:
    if "cuda" not in recipe.devices:
        if recipe.exact:
            raise InputError("--exact keeps layers of the graphs for CUDA in float32; give --device cuda or both too")
        return
    if "cpu" not in recipe.devices and (vision or prefill == "w8a8"):
        raise InputError("--vision and --prefill w8a8 are for CPUs; leave them out with --device cuda")
    sizes = [part.block_size for part in (recipe.decoder, recipe.head) if isinstance(part, Blockwise)]
    if max(sizes, default=0) > _LARGEST_CUDA_BLOCK:
        raise InputError(f"--block-size {max(sizes)} is beyond CUDA's fast kernel; give {_LARGEST_CUDA_BLOCK} or less")
