"""What the runtime's tests share: a bundle to damage, and a decoder that says what a test wants it to say."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from medvlm.runtime.decoder import Decoder
from medvlm.runtime.manifest import Manifest
from numpy.typing import NDArray
from tokenizers import Tokenizer


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to be damaged."""
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.fixture
def say(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Call it with a text, and every decoder's logits spell that text, then the end token, whatever it is asked."""
    manifest = Manifest.from_json((tiny_bundle / "manifest.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))

    def script(text: str) -> None:
        ids = [*tokenizer.encode(text).ids, manifest.generation.eos_token_ids[0]]

        def logits(decoder: Decoder, position: int) -> NDArray[np.float32]:
            vars(decoder)["said"] = position
            return np.eye(manifest.text.vocab_size, dtype=np.float32)[ids[position]]

        monkeypatch.setattr(Decoder, "prefill", lambda decoder, embeddings: logits(decoder, 0))
        monkeypatch.setattr(Decoder, "step", lambda decoder, embedding: logits(decoder, vars(decoder)["said"] + 1))

    return script
