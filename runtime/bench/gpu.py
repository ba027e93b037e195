"""What a GPU can do, measured, and what other cards should then do, computed.

Timers are the host's: every copy and every run of a session has come to its end when it returns.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..accelerator import Accelerator, DeviceArray
from ..session import one_line_failures, open_on
from .gemm_model import INPUT, OUTPUT, gemm_model
from .machine import GEMM_SHAPE

# Far more than any GPU's caches.
_BUFFER_BYTES = 1 << 29
_WARM_UPS = 3

# Memory bandwidth of consumer cards, bytes per second, as NVIDIA's data sheets give it.
CARDS = {"RTX 3060 12 GB": 360e9, "RTX 4060": 272e9, "RTX 4070": 504e9, "RTX 4090": 1008e9}


@dataclass(frozen=True)
class Computed:
    """What a card should do: computed from its bandwidth and the share of it that was reached here, not measured."""

    card: str
    tokens_per_s: float


def copy_bandwidth(gpu: Accelerator, *, size: int = _BUFFER_BYTES, repetitions: int = 10) -> list[float]:
    """Bytes per second that a copy within the GPU's memory reads and writes together, one for each repetition."""
    source, target = (DeviceArray(gpu, (size,), np.uint8, "measuring") for _ in range(2))
    rates = []
    for _ in range(_WARM_UPS + repetitions):
        started = time.perf_counter()
        gpu.copy(target.address, source.address, size)
        rates.append(2 * size / (time.perf_counter() - started))
    return rates[_WARM_UPS:]


def gpu_gemm_rate(gpu: Accelerator, *, shape: tuple[int, int, int] = GEMM_SHAPE, repetitions: int = 10) -> list[float]:
    """Operations per second of onnxruntime's float32 product on the GPU, as `machine.gemm_rate` counts them."""
    m, k, n = shape
    weight = np.random.default_rng(0).standard_normal((k, n), np.float32)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "gemm.onnx"
        path.write_bytes(gemm_model(m, weight))
        session = open_on(gpu, path, None, None)
    x, y = (DeviceArray(gpu, shape, np.float32, "measuring") for shape in ((m, k), (m, n)))
    x.write(np.random.default_rng(1).standard_normal((m, k), np.float32))
    binding = session.io_binding()
    x.bind_input(binding, INPUT)
    binding.bind_output(OUTPUT, gpu.name, 0, np.float32, y.shape, y.address)
    rates = []
    with one_line_failures("a matrix product", gpu):
        for _ in range(_WARM_UPS + repetitions):
            started = time.perf_counter()
            session.run_with_iobinding(binding)
            rates.append(2 * m * k * n / (time.perf_counter() - started))
    return rates[_WARM_UPS:]


def computed_on_cards(token_bytes: int, share: float) -> list[Computed]:
    """Tokens a second of a card that reads `token_bytes` a token at a `share` of its bandwidth: computed."""
    return [Computed(card, share * bandwidth / token_bytes) for card, bandwidth in CARDS.items()]
