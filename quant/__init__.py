"""Arrays to packed low-bit arrays, and back."""

from .blockwise import BITS, BLOCK_SIZES, Blockwise, dequantize, encode, quantize
from .gptq import quantize_gptq, squared_error
from .grid import Grid
from .hqq import hqq_objective, quantize_hqq
from .nf4 import NF4, NF4_BLOCK_SIZES, dequantize_nf4, quantize_nf4
from .scaling import Scaling, outlier_scales, search_scales

__all__ = [
    "BITS",
    "BLOCK_SIZES",
    "NF4",
    "NF4_BLOCK_SIZES",
    "Blockwise",
    "Grid",
    "Scaling",
    "dequantize",
    "dequantize_nf4",
    "encode",
    "hqq_objective",
    "outlier_scales",
    "quantize",
    "quantize_gptq",
    "quantize_hqq",
    "quantize_nf4",
    "search_scales",
    "squared_error",
]
