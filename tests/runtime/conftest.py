"""What the runtime's tests share: a bundle to damage, and a decoder that says what a test wants it to say."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
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
