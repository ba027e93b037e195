"""Another thread ends what is computed: at once, and without a trace in what is computed next."""

import json
import threading
from pathlib import Path

import pytest
from medvlm.demo.dataset import Item
from medvlm.runtime import MedVLM
from medvlm.runtime.errors import Interrupted
from medvlm.runtime.preprocess import Patches
from medvlm.runtime.vision import VisionEncoder


@pytest.fixture
def model(demo_bundle: Path, tmp_path: Path) -> MedVLM:
    return MedVLM.load(demo_bundle, threads=1, audit=tmp_path / "audit.log")


def outcomes(folder: Path) -> list[str]:
    return [json.loads(line)["outcome"] for line in (folder / "audit.log").read_text().splitlines()]


def test_what_was_ended_anywhere_changes_no_later_answer(
    model: MedVLM, demo_model: MedVLM, demo_items: list[Item], tmp_path: Path
) -> None:
    image, question = demo_items[0].image, demo_items[0].question.problem
    expected = demo_model.ask(image, question)
    for pieces in (0, 1, 5, 20):
        stream = model.stream(image, question)
        for _ in range(pieces):
            next(stream)
        model.interruption.set()
        with pytest.raises(Interrupted, match="was interrupted"):
            stream.finish()
        with pytest.raises(Interrupted):
            model.ask(image, question)
        model.interruption.clear()
    assert model.ask(image, question).text == expected.text
    assert model.ask(demo_items[1].image, question).text == demo_model.ask(demo_items[1].image, question).text
    assert outcomes(tmp_path) == ["stopped"] * 8 + ["answer"] * 2


def test_a_run_that_is_under_way_is_ended(
    model: MedVLM, demo_items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder is given the work of hours."""
    begun, encode = threading.Event(), VisionEncoder.encode

    def again_and_again(encoder: VisionEncoder, patches: Patches) -> None:
        while True:
            encode(encoder, patches)
            begun.set()

    monkeypatch.setattr(VisionEncoder, "encode", again_and_again)

    def interrupt() -> None:
        begun.wait(60)
        model.interruption.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted, match="the vision encoder"):
        model.ask(demo_items[0].image, "What?")
    thread.join()
