"""Where a bundle is computed: on the GPU if all that it takes is there, and if not, why not in one line."""

from dataclasses import dataclass

from .accelerator import Accelerator
from .bundle import CUDA_DECODER, CUDA_VISION, Bundle
from .cuda import UnusableError, open_cuda
from .errors import BundleError, InputError
from .external_data import external_tensors
from .manifest import DeviceName, Manifest, TextDims
from .session import check_device

# What CUDA's modules, cuBLAS's workspace and the activations of a prompt and of an image take beside weights and cache.
# An estimate: no GPU was at hand to measure it on.
_WORKSPACE = 1_000_000_000


@dataclass(frozen=True)
class Needed:
    """Bytes of the GPU's memory that a bundle takes at most: its weights, the caches, and the rest, estimated."""

    vision: int
    decoder: int
    cache: int
    workspace: int = _WORKSPACE

    @property
    def total(self) -> int:
        """All together."""
        return self.vision + self.decoder + self.cache + self.workspace


@dataclass(frozen=True)
class Computing:
    """Where to compute. gpu and needed: on CUDA alone. note: why not there, where the bundle is for it."""

    name: DeviceName
    gpu: Accelerator | None = None
    needed: Needed | None = None
    note: str = ""


def check_bundle_device(device: str, manifest: Manifest) -> None:
    """Raise `BundleError` where the bundle has no graphs for the device that was asked for."""
    if device != "auto" and device not in manifest.devices:
        (other,) = manifest.devices
        raise BundleError(
            f"the bundle is for {other} and not for {device}; export it again with --device {device} or both, or give "
            f"--device {other}"
        )


def choose_device(
    device: str, bundle: Bundle, max_length: int, prefix_bytes: int, limit: int | None = None
) -> Computing:
    """Where to compute `bundle`. `auto` takes the GPU where it can; `cuda` takes nothing else.

    max_length: tokens that a prompt and its answer may have. prefix_bytes: of earlier questions' caches. limit: bytes
    of the GPU's memory that may be taken; None lets all be. Raises `InputError` for what cannot be had.
    """
    check_device(device)
    check_bundle_device(device, bundle.manifest)
    if limit is not None and limit < 1:
        raise InputError(f"--gpu-mem-limit is {limit / 1e6:g} MB; give at least 1")
    made_for = bundle.manifest.devices
    if device == "cpu" or "cuda" not in made_for:
        return Computing("cpu")
    try:
        return _on_cuda(bundle, max_length, prefix_bytes, limit)
    except UnusableError as reason:
        if device == "cuda" or "cpu" not in made_for:
            other = ", or give --device cpu" if "cpu" in made_for else ""
            raise InputError(f"cannot compute on CUDA: {reason}{other}") from None
        return Computing("cpu", note=f"computing on the CPU: {reason}")


def needed_memory(bundle: Bundle, max_length: int, prefix_bytes: int) -> Needed:
    """What a bundle takes of a GPU's memory, from its graphs and dimensions."""
    one = max_length * half_kv_bytes(bundle.manifest.text)
    vision, decoder = (_weights(bundle, name) for name in (CUDA_VISION, CUDA_DECODER))
    return Needed(vision, decoder, max(one, prefix_bytes))


def half_kv_bytes(dims: TextDims) -> int:
    """Bytes that one token takes in a KV cache of half floats."""
    return dims.kv_bytes_per_token // 2


def arena_limit(needed: Needed, limit: int | None, *, stepwise: bool) -> int | None:
    """How far the arena of a session may grow, where everything may take `limit` bytes: what others need is theirs.

    stepwise: the decoder's, else the vision encoder's.
    """
    if limit is None:
        return None
    return max(1, limit - needed.cache - (needed.vision if stepwise else needed.decoder))


def _on_cuda(bundle: Bundle, max_length: int, prefix_bytes: int, limit: int | None) -> Computing:
    gpu = open_cuda()
    needed = needed_memory(bundle, max_length, prefix_bytes)
    free, total = gpu.memory()
    if limit is not None and needed.total > limit:
        raise UnusableError(
            f"about {needed.total / 1e6:.0f} MB of its memory are needed and --gpu-mem-limit allows {limit / 1e6:.0f}; "
            "raise it, or lower --max-length or --prefix-mb"
        )
    if needed.total > free:
        raise UnusableError(
            f"about {needed.total / 1e6:.0f} MB of the GPU's memory are needed and {free / 1e6:.0f} of "
            f"{total / 1e6:.0f} are free; close what uses it, or lower --max-length or --prefix-mb"
        )
    return Computing("cuda", gpu, needed)


def _weights(bundle: Bundle, name: str) -> int:
    graph = memoryview(bundle.path(name).read_bytes())
    return sum(tensor.nbytes or 0 for tensor in external_tensors(graph))
