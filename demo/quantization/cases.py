"""What is measured: ways to choose codes, at every block size, with all else exact and as bundles are shipped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...export.recipe import Method, Recipe, RecipeName, make_recipe

Setting = Literal["weights only", "as shipped"]
SETTINGS: tuple[Setting, ...] = ("weights only", "as shipped")
"""Weights only: everything but the decoder's and the head's weights is float32, activations too. As shipped: the
exporter's defaults, W8A8 vision and prefill and activations of 8 bits among them."""


@dataclass(frozen=True)
class Way:
    """A way to quantize the decoder and its head.

    smooth: None is the exporter's default. mixed_mb: megabytes for tensors of 8 bits, None for none.
    """

    name: str
    method: Method | None = None
    smooth: bool | None = None
    symmetric: bool = False
    act_order: bool = False
    precision: RecipeName = "int4"
    mixed_mb: float | None = None


WAYS = {
    way.name: way
    for way in (
        Way("rtn symmetric", "rtn", smooth=False, symmetric=True),
        Way("rtn", "rtn", smooth=False),
        Way("rtn-search", "rtn-search", smooth=False),
        Way("rtn smooth", "rtn", smooth=True),
        Way("rtn-search smooth", "rtn-search", smooth=True),
        Way("hqq", "hqq", smooth=False),
        Way("hqq smooth", "hqq", smooth=True),
        # AWQ chooses the decoder's scales itself, so that smoothing is left to the vision encoder.
        Way("awq", "awq"),
        Way("gptq", "gptq", smooth=False),
        Way("gptq smooth", "gptq", smooth=True),
        Way("gptq act-order smooth", "gptq", smooth=True, act_order=True),
        # A tenth of what the demo's decoder and head take at 4 bits.
        Way("gptq smooth mixed", "gptq", smooth=True, mixed_mb=0.15),
        Way("awq+gptq", "awq+gptq"),
        Way("awq+gptq act-order", "awq+gptq", act_order=True),
        Way("nf4", precision="nf4"),
        Way("int8", precision="int8"),
    )
}
BASELINE = "rtn"
"""What others are held against: what a quantizer does that does nothing."""


@dataclass(frozen=True)
class Case:
    """One bundle of a model."""

    way: str
    block_size: int
    setting: Setting

    @property
    def recipe(self) -> Recipe:
        """How it is exported."""
        way, exact = WAYS[self.way], self.setting == "weights only"
        return make_recipe(
            way.precision,
            self.block_size,
            symmetric=way.symmetric,
            method=way.method,
            act_order=way.act_order,
            smooth=way.smooth,
            accuracy_level=0 if exact else 4,
            vision="fp32" if exact else None,
            prefill="same" if exact else None,
        )


def all_cases(ways: Sequence[str], block_sizes: Sequence[int], settings: Sequence[Setting] = SETTINGS) -> list[Case]:
    """Every case; those of one way and block size follow each other."""
    return [Case(way, size, setting) for size in block_sizes for way in ways for setting in settings]
