"""Which precision each part of the model is written in."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

RecipeName = Literal["int4", "int8", "nf4", "fp32"]
VisionName = Literal["w8a8", "w8", "fp32"]
PrefillName = Literal["w8a8", "same"]


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
class Blockwise:
    """4- or 8-bit weights in blocks that share a scale: `MatMulNBits`.

    accuracy_level is the operator's own: 0 multiplies in float32, 4 rounds activations to int8 per block.
    """

    bits: int
    block_size: int
    symmetric: bool
    accuracy_level: int
    kind: Literal["blockwise"] = "blockwise"

    @property
    def label(self) -> str:
        """The precision in a few words, for a person."""
        return f"int{self.bits} block {self.block_size}"

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


Precision = Float32 | Blockwise | NF4 | W8A8


@dataclass(frozen=True)
class Recipe:
    """The precision of every part. The patch embedding, norms and biases are always float32.

    prefill is the precision of the second copy of the decoder's layers, through which prompts go; None where there is
    none, and prompts go through the decoder itself.
    """

    name: str
    vision: Precision
    decoder: Precision
    head: Precision
    prefill: Precision | None
    embedding: Literal["float16", "float32"]

    def to_json(self) -> dict[str, Any]:
        """The recipe as manifest.json holds it."""
        return dataclasses.asdict(self)


def make_recipe(
    name: RecipeName,
    block_size: int | None = None,
    *,
    symmetric: bool = False,
    accuracy_level: int = 4,
    vision: VisionName | None = None,
    prefill: PrefillName | None = None,
) -> Recipe:
    """The recipe of `--int4`, `--int8`, `--nf4` or `--fp32`. Vision never has fewer than 8 bits.

    block_size: by default 128, and for nf4 bitsandbytes' own 64. vision and prefill: by default w8a8, and under fp32
    what is not quantized.
    """
    exact = name == "fp32"
    size = block_size or (64 if name == "nf4" else 128)
    decoders: dict[RecipeName, Precision] = {
        "int4": Blockwise(4, size, symmetric, accuracy_level),
        "int8": Blockwise(8, size, symmetric, accuracy_level),
        "nf4": NF4(size),
        "fp32": Float32(),
    }
    encoders: dict[VisionName, Precision] = {
        "w8a8": W8A8(),
        "w8": Blockwise(8, size, symmetric, accuracy_level),
        "fp32": Float32(),
    }
    return Recipe(
        name=name,
        vision=encoders[vision or ("fp32" if exact else "w8a8")],
        decoder=decoders[name],
        head=decoders[name],
        prefill=W8A8() if (prefill or ("same" if exact else "w8a8")) == "w8a8" else None,
        embedding="float32" if exact else "float16",
    )
