"""The graphs for CUDA on the CPU's kernels: what half floats change, against transformers in float32."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medvlm.demo.dataset import make_item
from medvlm.demo.evaluate import CHECKPOINT
from medvlm.demo.half_range import beyond, largest_values
from medvlm.demo.stress import write_stress
from medvlm.export.convert import export
from medvlm.export.recipe import make_recipe
from medvlm.runtime import MedVLM
from medvlm.runtime.decoding import Decoding
from numpy.typing import NDArray
from transformers import Qwen2VLForConditionalGeneration

PLAIN = Decoding(max_new_tokens=60, constrained=False)
ITEMS = [make_item("test", index) for index in range(2)]


def load(checkpoint: Path) -> Any:
    return Qwen2VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()


def expected(transformer: Any, model: MedVLM, request: Any, answer: tuple[int, ...]) -> NDArray[np.float64]:
    """The logits [tokens, vocab_size] that transformers has at each token of an answer."""
    ids = torch.from_numpy(np.concatenate([request.token_ids, answer]).astype(np.int64))[None]
    (picture,) = request.images
    patches = picture.patches()
    with torch.inference_mode():
        logits = transformer(
            input_ids=ids,
            mm_token_type_ids=(ids == model.manifest.image_token_id).int(),
            pixel_values=torch.from_numpy(patches.pixel_values),
            image_grid_thw=torch.tensor([[1, *patches.grid]]),
        ).logits
    return logits[0, len(request.token_ids) - 1 : -1].double().numpy()


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def divergence(checkpoint: Path, model: MedVLM) -> tuple[float, float]:
    """The mean KL divergence from transformers at each token of the model's answers, and how often they agree."""
    transformer, divergences, same = load(checkpoint), [], []
    for item in ITEMS:
        request = model.processor.prepare([item.image], item.question.problem)
        answer = model.run(request, PLAIN).finish().token_ids
        p, q = log_softmax(expected(transformer, model, request, answer)), log_softmax(model.score(request, answer))
        divergences += [*(np.exp(p) * (p - q)).sum(-1)]
        same += [*(p.argmax(-1) == q.argmax(-1))]
    return float(np.mean(divergences)), float(np.mean(same))


@pytest.mark.usefixtures("host_device")
def test_half_floats_say_what_transformers_says(tmp_path: Path) -> None:
    """Of the stress model, whose largest channels are those of real ones."""
    write_stress(CHECKPOINT, tmp_path / "stress")
    export(tmp_path / "stress", tmp_path / "bundle", make_recipe("fp32", device="cuda"))
    kl, same = divergence(tmp_path / "stress", MedVLM.load(tmp_path / "bundle", "cuda", threads=2))
    assert kl < 1e-4
    assert same >= 0.98


@pytest.mark.usefixtures("host_device")
def test_layers_beyond_the_range_are_right_where_they_stay_exact(tmp_path: Path) -> None:
    """The same function with channels so large that half floats overflow, but for the layers that are told to stay."""
    checkpoint = tmp_path / "stress"
    write_stress(CHECKPOINT, checkpoint, factor=5000.0)
    flagged = tuple(beyond(largest_values(checkpoint, ITEMS[:1]), share=0.2))
    assert flagged
    export(checkpoint, tmp_path / "bundle", make_recipe("fp32", device="cuda", exact=flagged))
    kl, same = divergence(checkpoint, MedVLM.load(tmp_path / "bundle", "cuda", threads=2))
    assert kl < 1e-3
    assert same >= 0.98
