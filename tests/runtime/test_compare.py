"""Comparing two bundles: the figures against torch and hand counts, and what is refused before any work."""

import dataclasses
import gc
import json
import shutil
import tempfile
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from medvlm.demo.dataset import Item
from medvlm.demo.evaluate import CHECKPOINT, answer_all, share
from medvlm.demo.saved import save_dataset
from medvlm.export.convert import export
from medvlm.export.recipe import make_recipe
from medvlm.runtime import Answer, InputError, MedVLM, MedVLMError, Timings
from medvlm.runtime import compare as compare_module
from medvlm.runtime import graphs as graphs_module
from medvlm.runtime.answer import parse_answer
from medvlm.runtime.cli import main
from medvlm.runtime.compare import PLAIN, compare, plan, reference
from medvlm.runtime.compare_cli import summary
from medvlm.runtime.comparison import Comparison, Reading, summarize
from medvlm.runtime.dataset import DatasetItem, read_dataset
from medvlm.runtime.prompt import parse_options

FullDisk = Callable[[int], AbstractContextManager[None]]
QUESTIONS = 10
SHORT = dataclasses.replace(PLAIN, max_new_tokens=64)
PROBLEM = "Which is it?\nA) MRI\nB) CT\nC) X-ray"


@pytest.fixture(scope="module")
def exact_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in fp32."""
    out = tmp_path_factory.mktemp("exact") / "bundle"
    export(CHECKPOINT, out, make_recipe("fp32"))
    return out


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, demo_items: list[Item]) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    save_dataset(folder, demo_items[:QUESTIONS])
    return folder / "dataset.json"


@pytest.fixture(scope="module")
def items(dataset: Path) -> list[DatasetItem]:
    return read_dataset(dataset)


@pytest.fixture(scope="module")
def comparison(exact_bundle: Path, demo_bundle: Path, items: list[DatasetItem]) -> Comparison:
    """fp32 against INT4."""
    return compare(exact_bundle, demo_bundle, items, decoding=SHORT, threads=1)


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test where a session is opened."""
    monkeypatch.setattr(graphs_module, "open_sessions", lambda *_: pytest.fail("a session was opened"))


# What is measured


def test_bundle_does_not_differ_from_itself(demo_bundle: Path, items: list[DatasetItem]) -> None:
    found = compare(demo_bundle, demo_bundle, items[:6], decoding=SHORT, threads=1)
    assert (found.kl, found.kl_max, found.top1_agreement) == (0, 0, 1)
    assert (found.flips, found.flipped, found.mcnemar_p) == (0, (), 1)
    assert found.accuracy_a == found.accuracy_b


def test_distances_are_torchs_of_both_bundles_logits_at_the_first_ones_answers(
    exact_bundle: Path, demo_bundle: Path, items: list[DatasetItem], comparison: Comparison
) -> None:
    """`score` itself is held against transformers in test_token_exact.py."""
    a, b = (MedVLM.load(path, threads=1) for path in (exact_bundle, demo_bundle))
    divergences, agreements = [], []
    for item in items:
        tokens = a.ask(list(item.images), item.problem, SHORT).token_ids
        logits = [
            torch.from_numpy(model.score(model.processor.prepare(item.images, item.problem), tokens)).double()
            for model in (a, b)
        ]
        p, q = (torch.log_softmax(x, -1) for x in logits)
        divergences.append(torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1))
        agreements.append(logits[0].argmax(-1) == logits[1].argmax(-1))
    kl = torch.cat(divergences)
    assert comparison.tokens == len(kl)
    assert comparison.kl == pytest.approx(kl.mean().item(), rel=1e-3)
    assert comparison.kl_p95 == pytest.approx(kl.quantile(0.95).item(), rel=1e-2)
    assert comparison.kl_max == pytest.approx(kl.max().item(), rel=1e-2)
    assert comparison.top1_agreement == pytest.approx(torch.cat(agreements).double().mean().item(), abs=2 / len(kl))


def test_reference_answers_once_for_all_that_are_compared_with_it(
    exact_bundle: Path, demo_bundle: Path, items: list[DatasetItem], comparison: Comparison
) -> None:
    said: list[str] = []
    planned = plan(exact_bundle, exact_bundle, items, decoding=SHORT, threads=1)
    with reference(planned, said.append) as kept:
        assert said == ["A"] * QUESTIONS
        found = [kept.compare(bundle, said.append) for bundle in (demo_bundle, exact_bundle, demo_bundle)]
    assert said[QUESTIONS:] == ["B"] * 3 * QUESTIONS
    assert found[0] == found[2] == comparison
    assert (found[1].kl, found[1].flips) == (0, 0)


def test_four_bits_change_a_little_and_not_much(comparison: Comparison) -> None:
    assert comparison.questions == QUESTIONS
    assert 0 < comparison.kl < 0.1
    assert comparison.kl < comparison.kl_p95 < comparison.kl_max
    assert 0.8 < comparison.top1_agreement < 1
    assert min(comparison.accuracy_a, comparison.accuracy_b) > 0.5


def test_accuracies_are_those_of_the_demos_own_grading(
    exact_bundle: Path, demo_bundle: Path, demo_items: list[Item], comparison: Comparison
) -> None:
    graded = [
        answer_all(MedVLM.load(path, threads=1), demo_items[:QUESTIONS], decoding=SHORT)
        for path in (exact_bundle, demo_bundle)
    ]
    assert [comparison.accuracy_a, comparison.accuracy_b] == [share(answered, "correct") for answered in graded]


def test_manifest_may_hold_the_loss(comparison: Comparison) -> None:
    loss = comparison.loss("drawings")
    assert (loss.dataset, loss.questions, loss.tokens) == ("drawings", QUESTIONS, comparison.tokens)
    assert (loss.kl, loss.top1_agreement) == (comparison.kl, comparison.top1_agreement)
    assert (loss.accuracy, loss.reference_accuracy) == (comparison.accuracy_b, comparison.accuracy_a)


# Counting


def answered(text: str) -> Answer:
    """An answer that was read from `text`."""
    parsed = parse_answer(text, parse_options(PROBLEM))
    times = Timings(*[0.0] * len(dataclasses.fields(Timings)))
    read = (parsed.reasoning, parsed.choice, parsed.choice_text, parsed.strict_choice, parsed.flags)
    return Answer(text, *read, "end", (), 0, 0, 0, {}, None, 0, 0, 0, times, ())


def says(letter: str) -> Answer:
    return answered(f"<think>Surely {letter}.</think><answer>{letter}</answer>")


def counted(pairs: list[tuple[Answer, Answer]], solution: str = "A") -> Comparison:
    items = [DatasetItem(i + 5, (Path("scan.png"),), PROBLEM, solution) for i in range(len(pairs))]
    reading = Reading(np.array([1.0, 3.0]), np.array([True, False]))
    readings = [reading, *[Reading(np.array([2.0]), np.array([True]))] * (len(pairs) - 1)]
    return summarize(items, [a for a, _ in pairs], [b for _, b in pairs], readings)


def test_flips_are_counted_by_hand() -> None:
    pairs = [("A", "A"), ("A", "B"), ("A", "C"), ("B", "A"), ("B", "C"), ("C", "C"), ("A", "B"), ("A", "B")]
    found = counted([(says(a), says(b)) for a, b in pairs])
    assert (found.flips, found.lost, found.won) == (6, 4, 1)
    assert (found.accuracy_a, found.accuracy_b) == (5 / 8, 2 / 8)
    # 2 (1 + 5) / 2^5.
    assert found.mcnemar_p == pytest.approx(12 / 32)
    assert [flip.index for flip in found.flipped] == [6, 7, 8, 9, 11, 12]
    assert [(flip.choice_a, flip.choice_b) for flip in found.flipped[:2]] == [("A", "B"), ("A", "C")]
    assert found.flipped[0].reasoning_b == "Surely B."


def test_every_token_counts_the_same_however_long_its_answer_is() -> None:
    found = counted([(says("A"), says("A"))] * 3)
    assert (found.tokens, found.kl, found.kl_max) == (4, 2.0, 3.0)
    assert found.top1_agreement == 3 / 4


def test_letters_are_read_by_the_papers_rule_so_that_none_is_a_letter_of_its_own() -> None:
    lax = answered("<think>Hm.</think><answer>a) MRI</answer>")
    assert (lax.choice, lax.strict_choice) == ("A", None)
    found = counted([(says("A"), lax), (lax, lax)])
    assert (found.flips, found.lost, found.accuracy_b) == (1, 1, 0)
    assert found.flipped[0].choice_b is None


# Memory and files


def test_one_model_is_in_memory_at_a_time(
    demo_bundle: Path, items: list[DatasetItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[MedVLM]] = []
    alive: list[int] = []

    class Watched(MedVLM):
        def __init__(self, *args: Any, **options: Any) -> None:
            alive.append(sum(reference() is not None for reference in made))
            super().__init__(*args, **options)
            made.append(weakref.ref(self))

    monkeypatch.setattr(compare_module, "MedVLM", Watched)
    gc.disable()
    try:
        compare(demo_bundle, demo_bundle, items[:2], decoding=SHORT, threads=1)
    finally:
        gc.enable()
    assert alive == [0, 0]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.mark.parametrize("failing", [None, "A", "B"])
def test_nothing_is_left_of_the_logits(
    demo_bundle: Path, items: list[DatasetItem], temporary: Path, failing: str | None
) -> None:
    seen: list[str] = []

    def progress(what: str) -> None:
        seen.append(what)
        if what == failing:
            raise KeyboardInterrupt

    try:
        compare(demo_bundle, demo_bundle, items[:2], decoding=SHORT, threads=1, progress=progress)
    except KeyboardInterrupt:
        assert failing
    assert seen == {None: ["A", "A", "B", "B"], "A": ["A"], "B": ["A", "A", "B"]}[failing]
    assert list(temporary.iterdir()) == []


def test_full_disk_is_one_line_that_says_where(
    demo_bundle: Path, items: list[DatasetItem], temporary: Path, full_disk: FullDisk
) -> None:
    says = r"temporary \(File too large\); set TMPDIR"
    with full_disk(100_000), pytest.raises(MedVLMError, match=says) as error:
        compare(demo_bundle, demo_bundle, items[:2], decoding=SHORT, threads=1)
    assert error.value.exit_code == 1
    assert list(temporary.iterdir()) == []


# What is refused, and what is not


def with_manifest(bundle: Path, out: Path, **text: Any) -> Path:
    """A copy of a bundle whose manifest has other numbers of the decoder, or other sha256s of files."""
    shutil.copytree(bundle, out)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["tokenizer.json"]["sha256"] = (
        text.pop("tokenizer", None) or (manifest["files"]["tokenizer.json"]["sha256"])
    )
    manifest["text"] |= text
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return out


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        compare(*args, **options)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.usefixtures("no_session")
def test_other_vocabularies_and_other_tokenizers_are_refused_before_any_work(
    demo_bundle: Path, tiny_bundle: Path, tmp_path: Path, items: list[DatasetItem]
) -> None:
    other = with_manifest(demo_bundle, tmp_path / "other", tokenizer="0" * 64)
    for pair in ((demo_bundle, tiny_bundle), (demo_bundle, other), (other, demo_bundle)):
        assert "different vocabularies or tokenizers" in refusal(*pair, items)


def test_bundle_for_which_the_plan_does_not_hold_is_refused(
    demo_bundle: Path, tmp_path: Path, items: list[DatasetItem]
) -> None:
    foreign = with_manifest(demo_bundle, tmp_path / "foreign", tokenizer="0" * 64)
    short = with_manifest(demo_bundle, tmp_path / "short", max_positions=400)
    with reference(plan(demo_bundle, demo_bundle, items[:1], decoding=SHORT, threads=1)) as kept:
        for bundle, says in ((foreign, "different vocabularies"), (short, "reads questions in another way")):
            with pytest.raises(InputError, match=says):
                kept.compare(bundle)


@pytest.mark.usefixtures("no_session")
def test_question_that_cannot_be_asked_is_named_before_any_work(
    demo_bundle: Path, tmp_path: Path, items: list[DatasetItem]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = dataclasses.replace(items[3], images=(tmp_path / "broken.png",))
    reserved = dataclasses.replace(items[4], problem="<|im_end|>\nA) x\nB) y")
    tiny = with_manifest(demo_bundle, tmp_path / "tiny", max_positions=120)
    assert refusal(demo_bundle, demo_bundle, [*items[:3], broken]).startswith("question 3: ")
    assert refusal(demo_bundle, demo_bundle, [*items[:4], reserved]).startswith("question 4: ")
    assert "question 0: the prompt has" in refusal(demo_bundle, tiny, items)
    assert "no questions" in refusal(demo_bundle, demo_bundle, [])
    assert "threads is 0" in refusal(demo_bundle, demo_bundle, items, threads=0)


def test_answers_are_no_longer_than_the_smaller_context_takes(
    demo_bundle: Path, tmp_path: Path, items: list[DatasetItem]
) -> None:
    prompts = [len(MedVLM.load(demo_bundle).processor.prepare(i.images, i.problem).token_ids) for i in items[:2]]
    small = with_manifest(demo_bundle, tmp_path / "small", max_positions=max(prompts) + 4)
    for pair in ((demo_bundle, small), (small, demo_bundle)):
        found = compare(*pair, items[:2], decoding=SHORT, threads=1)
        # The last token of an answer takes no room.
        assert found.tokens == sum(max(prompts) + 4 - tokens + 1 for tokens in prompts)
        assert found.kl == 0


# The command


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, words)])


def test_json_is_what_the_function_returns(
    exact_bundle: Path, demo_bundle: Path, dataset: Path, comparison: Comparison
) -> None:
    words = ("--data", dataset, "--max-new-tokens", 64, "--threads", 1)
    result = run(exact_bundle, demo_bundle, *words, "--json")
    assert (result.exit_code, result.stderr) == (0, "Comparing\n")
    printed = json.loads(result.stdout)
    assert {"kl", "top1_agreement", "accuracy_a", "accuracy_b", "flips", "mcnemar_p"} <= printed.keys()
    assert printed == json.loads(json.dumps(dataclasses.asdict(comparison)))


def test_command_prints_the_figures(demo_bundle: Path, dataset: Path, tmp_path: Path, items: list[DatasetItem]) -> None:
    moved = shutil.copy(dataset, tmp_path / "moved.json")
    words = ("--data", moved, "--images", dataset.parent, "--questions", 2, "--max-new-tokens", 5, "--threads", 1)
    result = run(demo_bundle, demo_bundle, *words)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"A  {demo_bundle}\nB  {demo_bundle}\n\n2 questions, 10 tokens in A's answers\n")
    assert "top-1 agreement   100.00%" in result.stdout


def test_summary_shows_each_flip_with_both_reasonings_and_nothing_that_a_terminal_obeys() -> None:
    said = answered("<think>A \x1b[31mdark\x07 ring,\nso B.</think><answer>B</answer>")
    found = counted([(says("A"), says("A")), (says("A"), said), (says("C"), answered("No tags."))])
    images = (Path("a\x1b.png"),)
    flipped = tuple(dataclasses.replace(flip, images=tuple(map(str, images))) for flip in found.flipped)
    shown = summary(dataclasses.replace(found, flipped=flipped))
    assert all(c.isprintable() or c == "\n" for c in shown.replace("\ufffd", "?"))
    assert "flips             2: 1 right answers lost, 0 won (McNemar's exact p = 1)" in shown
    assert f"[6] a\\x1b.png\n{PROBLEM}\ntruth: A\nA: A   Surely A.\nB: B   A \ufffd[31mdark\ufffd ring,\nso B." in shown
    assert "A: C   Surely C.\nB: no letter   No tags." in shown


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--questions", 0), "--questions is 0"),
        (("--max-new-tokens", 0), "max_new_tokens is 0"),
        (("--threads", 0), "threads is 0"),
        (("--images", "absent"), "there is no image"),
    ],
)
def test_what_is_wrong_from_the_start_is_one_line(
    demo_bundle: Path, dataset: Path, words: tuple[object, ...], says: str
) -> None:
    result = run(demo_bundle, demo_bundle, "--data", dataset, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert says in line


def test_bundle_that_is_none_is_one_line(demo_bundle: Path, dataset: Path) -> None:
    result = run(demo_bundle, dataset.parent, "--data", dataset)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "has no manifest.json" in result.stderr.splitlines()[-1]
