"""Arrays to packed low-bit arrays, and back."""

from .blockwise import BITS, BLOCK_SIZES, Blockwise, dequantize, quantize

__all__ = ["BITS", "BLOCK_SIZES", "Blockwise", "dequantize", "quantize"]
