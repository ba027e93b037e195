"""Arrays to packed low-bit arrays, and back."""

from .blockwise import BITS, BLOCK_SIZES, Blockwise, dequantize, quantize
from .nf4 import NF4, NF4_BLOCK_SIZES, dequantize_nf4, quantize_nf4

__all__ = [
    "BITS",
    "BLOCK_SIZES",
    "NF4",
    "NF4_BLOCK_SIZES",
    "Blockwise",
    "dequantize",
    "dequantize_nf4",
    "quantize",
    "quantize_nf4",
]
