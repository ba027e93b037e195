"""On a real GPU: the CPU's answers, the same tokens twice, and memory that stays. Skipped where there is none."""

from pathlib import Path

import numpy as np
import pytest
from medvlm.demo.dataset import Item
from medvlm.demo.evaluate import CHECKPOINT, DECODING, Answered, answer_all
from medvlm.export.convert import export
from medvlm.export.recipe import make_recipe
from medvlm.runtime import MedVLM
from medvlm.runtime.cuda import CudaDevice, UnusableError, open_cuda
from medvlm.runtime.device_decoder import DeviceDecoder

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def gpu() -> CudaDevice:
    try:
        return open_cuda()
    except UnusableError as reason:
        pytest.skip(f"needs a GPU: {reason}")


@pytest.fixture(scope="module")
def bundle(gpu: CudaDevice, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's bundle for both devices."""
    out = tmp_path_factory.mktemp("both") / "bundle"
    export(CHECKPOINT, out, make_recipe("int4", device="both"))
    return out


@pytest.fixture(scope="module")
def model(bundle: Path) -> MedVLM:
    return MedVLM.load(bundle, "cuda")


@pytest.fixture(scope="module")
def answers(model: MedVLM, demo_items: list[Item]) -> list[Answered]:
    return answer_all(model, demo_items)


def test_answers_agree_with_the_cpus(bundle: Path, answers: list[Answered], demo_items: list[Item]) -> None:
    theirs = answer_all(MedVLM.load(bundle, "cpu"), demo_items)
    same = [ours.answer.choice == other.answer.choice for ours, other in zip(answers, theirs, strict=True)]
    assert np.mean(same) >= 0.995


def test_the_same_tokens_come_twice(bundle: Path, answers: list[Answered], demo_items: list[Item]) -> None:
    again = answer_all(MedVLM.load(bundle, "cuda"), demo_items[:50])
    assert [one.answer.token_ids for one in again] == [one.answer.token_ids for one in answers[:50]]


def test_half_floats_cost_next_to_nothing(
    gpu: CudaDevice, demo_items: list[Item], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The checkpoint's own weights in half floats on the GPU against float32 on the CPU, at each token of an answer."""
    out = tmp_path_factory.mktemp("fp32") / "bundle"
    export(CHECKPOINT, out, make_recipe("fp32", device="both"))
    exact, half = MedVLM.load(out, "cpu"), MedVLM.load(out, "cuda")
    divergences, same = [], []
    for item in demo_items[:20]:
        request = exact.processor.prepare([item.image], item.question.problem)
        answer = exact.run(request, DECODING).finish().token_ids
        p, q = (log_softmax(one.score(request, answer)) for one in (exact, half))
        divergences += [*(np.exp(p) * (p - q)).sum(-1)]
        same += [*(p.argmax(-1) == q.argmax(-1))]
    assert np.mean(divergences) < 1e-3
    assert np.mean(same) >= 0.995


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_a_replayed_step_says_what_one_that_was_not_captured_says(model: MedVLM, demo_items: list[Item]) -> None:
    decoder = model.new_sequence()
    assert isinstance(decoder, DeviceDecoder)
    decoder.pretend(300)
    dims = model.manifest.text
    half = np.ones((40, dims.head_size // 2), np.float32)
    decoder.reserve(340)
    decoder.write_rotary(300, half, 0 * half)
    for token_id in range(30):
        (replayed,) = decoder.extend([token_id])
        values = np.asarray(replayed)
        decoder.rewind(1)
        # Two at once go through uncaptured.
        first, _ = decoder.extend([token_id, 0])
        np.testing.assert_allclose(np.asarray(first), values, atol=0.02 * np.abs(values).max())
        decoder.rewind(1)


@pytest.mark.usefixtures("answers")
def test_two_hundred_questions_leave_the_memory_flat(gpu: CudaDevice, model: MedVLM, demo_items: list[Item]) -> None:
    """After as many before them."""
    before, _ = gpu.memory()
    answer_all(model, demo_items)
    after, _ = gpu.memory()
    assert abs(before - after) < 32 << 20
