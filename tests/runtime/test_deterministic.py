"""The same bundle, input and number of threads give the same bytes: again in one process, and in fresh ones."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from medvlm.runtime import Answer, MedVLM
from medvlm.runtime.decoding import Decoding
from medvlm.runtime.sampling import Sampling

QUESTION = "Which modality is this?\nA) MRI\nB) CT\nC) X-ray\nD) Ultrasound"
DRAWN = Decoding(sampling=Sampling(temperature=1.0, top_k=20, seed=7))
SCRIPT = """
import sys
from medvlm.runtime.cli import main
main(standalone_mode=False)
"""


def content(answer: Answer) -> bytes:
    """All of an answer but how long it took, probabilities to their last bit."""
    fields = dataclasses.asdict(answer)
    del fields["timings"]
    return json.dumps(fields).encode()


def in_a_fresh_process(bundle: Path, image: Path, threads: int, seed: int) -> bytes:
    """Hash randomization is another in each: nothing may depend on the order of a set."""
    words = ["ask", bundle, image, "-q", QUESTION, "--json", "--threads", threads, "--temperature", 1, "--top-k", 20]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, words), "--seed", str(seed)],
        check=True,
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
    )
    fields = json.loads(result.stdout)
    del fields["timings"]
    return json.dumps(fields).encode()


@pytest.mark.parametrize("decoding", [Decoding(), DRAWN], ids=["greedy", "drawn"])
def test_same_question_again_gives_the_same_bytes(demo_bundle: Path, image_path: Path, decoding: Decoding) -> None:
    model = MedVLM.load(demo_bundle, threads=2, prefix_mb=0)
    answers = {content(model.ask(image_path, QUESTION, decoding)) for _ in range(10)}
    assert len(answers) == 1
    assert len(json.loads(answers.pop())["token_ids"]) > 10


def test_other_questions_between_change_nothing(demo_bundle: Path, image_path: Path) -> None:
    """Without what is kept of earlier prompts; with it, numbers round as those of a shorter call do."""
    model = MedVLM.load(demo_bundle, threads=2, prefix_mb=0)
    first = content(model.ask(image_path, QUESTION))
    model.ask(None, "Something else?\nA) yes\nB) no", DRAWN)
    assert content(model.ask(image_path, QUESTION)) == first


@pytest.mark.parametrize("threads", [1, 2])
def test_fresh_processes_give_the_same_bytes(demo_bundle: Path, image_path: Path, threads: int) -> None:
    answers = [in_a_fresh_process(demo_bundle, image_path, threads, seed=7) for _ in range(2)]
    here = MedVLM.load(demo_bundle, threads=threads).ask(image_path, QUESTION, DRAWN)
    assert answers == [content(here)] * 2


def test_another_seed_gives_other_bytes(demo_bundle: Path, image_path: Path) -> None:
    """Or equal bytes would prove nothing."""
    model = MedVLM.load(demo_bundle, threads=2)
    other = dataclasses.replace(DRAWN, sampling=dataclasses.replace(DRAWN.sampling, seed=8, temperature=3.0))
    assert content(model.ask(image_path, QUESTION, DRAWN)) != content(model.ask(image_path, QUESTION, other))
