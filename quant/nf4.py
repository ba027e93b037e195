"""NF4 quantization by bitsandbytes, in the layout that it shares with onnxruntime's `MatMulBnb4`.

NF4 (QLoRA: Dettmers et al., 2023, arXiv:2305.14314) has 16 levels between -1 and 1 that lie close where weights that
are normally distributed are many. The weight `[out_features, in_features]` is read row after row as one long row, which
is cut into blocks of `block_size`: where `in_features` is no multiple of it, blocks run over the ends of rows. Only the
last block may be shorter. Each block has one float32, the largest magnitude in it, and an element's value is

    value = LEVELS[code] * absmax          code in 0 .. 15
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What bitsandbytes quantizes to (32 to 4096) and MatMulBnb4 multiplies by (16 to 256).
NF4_BLOCK_SIZES = (32, 64, 128, 256)

# The table of the paper's appendix E, as bitsandbytes and onnxruntime have it.
LEVELS = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)

# bitsandbytes is given pieces of this many elements, a multiple of every block size: its temporaries take 15 to 30
# bytes for each element, which would be gigabytes for the whole of the head, and is about 100 MB so.
_PIECE_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class NF4:
    """A quantized weight, packed for `MatMulBnb4` (its inputs B and absmax).

    packed: [ceil(out_features * in_features / 2)] uint8, the element of the lower index in the *higher* bits.
    absmax: [ceil(out_features * in_features / block_size)] float32. shape: (out_features, in_features).
    """

    packed: NDArray[np.uint8]
    absmax: NDArray[np.float32]
    block_size: int
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays together."""
        return self.packed.nbytes + self.absmax.nbytes


def quantize_nf4(weight: NDArray[np.float32], block_size: int = 64) -> NF4:
    """Quantize `weight` `[out_features, in_features]` with bitsandbytes' `quantize_4bit`, on the CPU.

    Raises ModuleNotFoundError without bitsandbytes or torch, ValueError for a `block_size` that either side does not
    know, and for weights that are not finite.
    """
    if block_size not in NF4_BLOCK_SIZES:
        raise ValueError(f"block_size is {block_size}; it must be one of {NF4_BLOCK_SIZES}")
    quantize_4bit, tensor = load_bitsandbytes()
    rows, columns = weight.shape
    flat = np.ascontiguousarray(weight, np.float32).reshape(-1)
    packed = np.empty(-(-flat.size // 2), np.uint8)
    absmax = np.empty(-(-flat.size // block_size), np.float32)
    for start in range(0, flat.size, _PIECE_ELEMENTS):
        piece = flat[start : start + _PIECE_ELEMENTS]
        if not np.isfinite(piece).all():
            raise ValueError("the weight holds values that are not finite")
        codes, state = quantize_4bit(tensor(piece), blocksize=block_size, quant_type="nf4", compress_statistics=False)
        codes, scales = codes.numpy().reshape(-1), state.absmax.numpy()
        packed[start // 2 :][: codes.size] = codes
        absmax[start // block_size :][: scales.size] = scales
    return NF4(packed, absmax, block_size, (rows, columns))


def dequantize_nf4(weight: NF4) -> NDArray[np.float32]:
    """The float32 values `[out_features, in_features]` that the kernel multiplies by."""
    size, blocks = weight.shape[0] * weight.shape[1], weight.absmax.size
    codes = np.zeros(blocks * weight.block_size, np.uint8)
    codes[0 : 2 * weight.packed.size : 2] = weight.packed >> np.uint8(4)
    codes[1 : 2 * weight.packed.size : 2] = weight.packed & np.uint8(15)
    values = LEVELS[codes].reshape(blocks, weight.block_size)
    values *= weight.absmax[:, None]
    return values.reshape(-1)[:size].reshape(weight.shape)


def load_bitsandbytes() -> tuple[Any, Any]:
    """The `quantize_4bit` of bitsandbytes and the `tensor` of torch. Raises ModuleNotFoundError where one is missing.

    The first call imports torch, which takes seconds.
    """
    # It warns of a kernel for bfloat16 products that is fetched from the hub; none is wanted here.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import torch
    from bitsandbytes.functional import quantize_4bit

    return quantize_4bit, torch.tensor
