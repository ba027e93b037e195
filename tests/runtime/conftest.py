"""What the runtime's tests share: a bundle to damage, and a decoder that says what a test wants it to say."""

import ctypes
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from medvlm.export.convert import export
from medvlm.export.recipe import make_recipe
from medvlm.runtime import device as device_module
from medvlm.runtime.batch_decoder import BatchDecoder
from medvlm.runtime.decoder import Decoder
from medvlm.runtime.manifest import Manifest
from medvlm.runtime.vision import VisionEncoder
from numpy.typing import NDArray
from tokenizers import Tokenizer


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to be damaged."""
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.fixture(scope="session")
def qwen(shared: Path) -> Tokenizer:
    """Qwen2-VL's own tokenizer; skips where the shared folder lacks it."""
    path = shared / "qwen2-vl-2b" / "tokenizer.json"
    if not path.is_file():
        pytest.skip("needs Qwen2-VL's tokenizer in the shared folder, which is absent")
    return Tokenizer.from_file(str(path))


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test where any session runs."""

    def work(*_: object) -> None:
        pytest.fail("work was done")

    monkeypatch.setattr(VisionEncoder, "encode", work)
    monkeypatch.setattr(Decoder, "_run", work)
    monkeypatch.setattr(BatchDecoder, "step", work)


@pytest.fixture
def say(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Call it with a text, and every decoder's logits spell that text, then the end token, whatever it is asked."""
    manifest = Manifest.from_json((tiny_bundle / "manifest.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))

    def script(text: str) -> None:
        ids = [*tokenizer.encode(text).ids, manifest.generation.eos_token_ids[0]]

        def logits(said: int, tokens: int) -> NDArray[np.float32]:
            spelled = [ids[min(said + i, len(ids) - 1)] for i in range(tokens)]
            return np.eye(manifest.text.vocab_size, dtype=np.float32)[spelled]

        def prefill(decoder: Decoder, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
            decoder.length += len(embeddings)
            vars(decoder)["start"] = decoder.length
            return logits(0, 1)[0]

        def extend(decoder: Decoder, token_ids: Sequence[int]) -> NDArray[np.float32]:
            said = decoder.length - vars(decoder)["start"] + 1
            decoder.length += len(token_ids)
            return logits(said, len(token_ids))

        monkeypatch.setattr(Decoder, "prefill", prefill)
        monkeypatch.setattr(Decoder, "extend", extend)

    return script


class HostDevice:
    """The CPU in a GPU's place: memory of its own, in which every new byte is 255 (NaN in floats), and a ledger."""

    name, provider = "cpu", "CPUExecutionProvider"

    def __init__(self, total: int = 1 << 32) -> None:
        self.total = total
        self.held: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.copied: list[int] = []
        self.asked_for: list[tuple[bool, int | None]] = []

    def options(self, *, stepwise: bool, limit: int | None) -> Mapping[str, str]:
        self.asked_for.append((stepwise, limit))
        return {}

    def versions(self) -> Mapping[str, str]:
        return {"gpu": "none"}

    def memory(self) -> tuple[int, int]:
        return self.total - sum(map(len, self.held.values())), self.total

    def allocate(self, nbytes: int) -> int | None:
        if nbytes > self.memory()[0]:
            return None
        buffer = ctypes.create_string_buffer(b"\xff" * nbytes, nbytes)
        self.held[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def free(self, address: int) -> None:
        del self.held[address]

    def copy(self, to: int, start: int, nbytes: int) -> None:
        self.copied.append(nbytes)
        ctypes.memmove(to, start, nbytes)

    def copy_rows(self, to: int, to_pitch: int, start: int, start_pitch: int, nbytes: int, rows: int) -> None:
        assert nbytes <= min(to_pitch, start_pitch)
        for row in range(rows):
            ctypes.memmove(to + row * to_pitch, start + row * start_pitch, nbytes)


@pytest.fixture
def host_device(monkeypatch: pytest.MonkeyPatch) -> HostDevice:
    """What is found where a GPU is looked for."""
    device = HostDevice()
    monkeypatch.setattr(device_module, "open_cuda", lambda: device)
    return device


@pytest.fixture(scope="session")
def cuda_bundle(tiny_checkpoint: Path) -> Path:
    """The tiny checkpoint's bundle for CUDA alone. Copy it before changing anything."""
    out = tiny_checkpoint.parent / "cuda"
    export(tiny_checkpoint, out, make_recipe("int4", 32, device="cuda"))
    return out


@pytest.fixture(scope="session")
def both_bundle(tiny_checkpoint: Path) -> Path:
    """The tiny checkpoint's bundle for both devices. Copy it before changing anything."""
    out = tiny_checkpoint.parent / "both"
    export(tiny_checkpoint, out, make_recipe("int4", 32, device="both"))
    return out
