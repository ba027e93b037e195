"""Which precision each part of the model is written in."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

FLOAT32_BITS = 32


@dataclass(frozen=True)
class Precision:
    """How the weights of linear layers are stored: 4 or 8 bits in blocks, or 32 for float32 as it is.

    accuracy_level is `MatMulNBits`' own: 0 multiplies in float32, 4 rounds activations to int8 per block.
    """

    bits: int
    block_size: int
    symmetric: bool
    accuracy_level: int

    @property
    def label(self) -> str:
        """The precision in a few words, for a person."""
        if self.bits == FLOAT32_BITS:
            return "fp32"
        return f"int{self.bits} block {self.block_size}"

    def weight_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes that a weight `[out_features, in_features]` takes in the bundle."""
        if self.bits == FLOAT32_BITS:
            return out_features * in_features * 4
        blocks = -(-in_features // self.block_size)
        zero_points = 0 if self.symmetric else -(-blocks * self.bits // 8)
        return out_features * (blocks * (self.block_size * self.bits // 8 + 4) + zero_points)


@dataclass(frozen=True)
class Recipe:
    """The precision of every part. The patch embedding, norms and biases are always float32."""

    name: str
    vision: Precision
    decoder: Precision
    head: Precision
    embedding: Literal["float16", "float32"]

    def to_json(self) -> dict[str, Any]:
        """The recipe as manifest.json holds it."""
        return dataclasses.asdict(self)


def make_recipe(
    name: Literal["int4", "int8", "fp32"], block_size: int = 128, *, symmetric: bool = False, accuracy_level: int = 4
) -> Recipe:
    """The recipe of `--int4`, `--int8` or `--fp32`. Vision never has fewer than 8 bits."""
    bits = {"int4": 4, "int8": 8, "fp32": FLOAT32_BITS}[name]
    decoder = Precision(bits, block_size, symmetric, accuracy_level)
    return Recipe(
        name=name,
        vision=dataclasses.replace(decoder, bits=max(bits, 8)),
        decoder=decoder,
        head=decoder,
        embedding="float32" if name == "fp32" else "float16",
    )
