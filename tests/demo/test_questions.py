"""Questions about scans: true, balanced, readable by the runtime; and reasoning that can be read back."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from medvlm.demo import phrases
from medvlm.demo.agreement import agrees, claimed_facts
from medvlm.demo.dataset import Item, item_facts, make_item
from medvlm.demo.grading import grade
from medvlm.demo.questions import TYPES, Facts, Question, ask, draw_facts, meaning, response
from medvlm.demo.saved import save_dataset
from medvlm.demo.scans.catalog import KINDS
from medvlm.runtime.prompt import parse_options
from PIL import Image

SEEDS = st.integers(0, 2**32)
NODULE = Facts("chest CT", "nodule", "left")
NORMAL_HAND = Facts("hand X-ray", None, None)
WHICH_SIDE = Question("place", "Where is the nodule?", ("Right", "Left"), ("right", "left"), 1)


@given(SEEDS, st.sampled_from(TYPES))
def test_a_question_offers_the_truth_once_among_two_to_four_different_options(seed: int, question_type: str) -> None:
    rng = np.random.default_rng(seed)
    facts = draw_facts(rng, question_type)
    question = ask(rng, facts, question_type)
    assert 2 <= len(question.options) <= 4
    assert len(set(question.options)) == len(question.options)
    assert question.meanings.count(meaning(facts, question_type)) == 1
    assert question.meanings[question.answer] == meaning(facts, question_type)
    assert parse_options(question.problem) == dict(zip("ABCD", question.options, strict=False))
    assert "{" not in question.problem


@given(SEEDS, st.sampled_from(TYPES))
def test_a_response_is_well_formed_true_and_agrees_with_its_letter(seed: int, question_type: str) -> None:
    rng = np.random.default_rng(seed)
    facts = draw_facts(rng, question_type)
    question = ask(rng, facts, question_type)
    graded = grade(response(rng, facts, question), question, facts)
    assert (graded.correct, graded.well_formed, graded.agrees, graded.truthful) == (True, True, True, True)


def test_every_finding_and_place_of_a_scan_has_words() -> None:
    findings = {finding for kind in KINDS.values() for finding in kind.findings}
    places = {place for kind in KINDS.values() for places in kind.findings.values() for place in places}
    assert set(phrases.FINDING_SENTENCES) == findings
    assert set(phrases.FINDING_OPTIONS) == findings | {"none"}
    assert set(phrases.PLACE_PHRASES) == set(phrases.PLACE_OPTIONS) == places
    assert set(phrases.KIND_PHRASES) == set(KINDS)
    # A sentence says where exactly if the finding has places.
    for finding, sentences in phrases.FINDING_SENTENCES.items():
        has_places = any(kind.findings.get(finding) for kind in KINDS.values())
        assert all(("{}" in sentence) == has_places for sentence in sentences), finding


def test_answers_and_letters_are_balanced() -> None:
    drawn = [item_facts("test", index) for index in range(6000)]
    for question_type in TYPES:
        facts = [f for kind, f in drawn if kind == question_type]
        assert len(facts) == 1200
        if question_type in ("modality", "body part", "abnormality"):
            counts = Counter(meaning(f, question_type) for f in facts)
            expected = 1200 / len(counts)
            # Five standard deviations of a binomial count.
            assert all(abs(n - expected) < 5 * np.sqrt(expected) for n in counts.values()), counts
        rng = np.random.default_rng(0)
        questions = [ask(rng, f, question_type) for f in facts]
        for options in {len(q.options) for q in questions}:
            letters = Counter(q.solution for q in questions if len(q.options) == options)
            expected = sum(letters.values()) / options
            assert all(abs(n - expected) < 5 * np.sqrt(expected) for n in letters.values()), (question_type, letters)


def test_a_finding_is_one_of_its_kind_or_none_as_often_as_any_other() -> None:
    drawn = [item_facts("test", index)[1] for index in range(3, 21_000, len(TYPES))]
    for kind in KINDS.values():
        counts = Counter(f.finding for f in drawn if f.kind == kind.name)
        expected = sum(counts.values()) / (len(kind.findings) + 1)
        assert set(counts) == {None, *kind.findings}
        assert all(abs(n - expected) < 5 * np.sqrt(expected) for n in counts.values()), counts


@pytest.mark.parametrize(
    ("reasoning", "claims"),
    [
        (
            "This is an axial CT slice of the chest. A round nodule lies in the lung on the left side of the image.",
            NODULE,
        ),
        ("This is an X-ray of the hand. No abnormality is visible.", NORMAL_HAND),
        # Two kinds, two findings, a finding and none, a finding of another kind of scan, nothing of findings, nothing.
        ("This is an X-ray of the hand. This is an axial CT slice of the chest. No abnormality is visible.", None),
        ("This is an X-ray of the hand. No abnormality is visible. There is a fracture line in the thumb.", None),
        ("This is an X-ray of the hand. There is a fracture line and there is a lytic bone lesion in the thumb.", None),
        ("This is an X-ray of the hand. There is a stone in the kidney on the left side of the image.", None),
        ("This is an X-ray of the hand.", None),
        ("", None),
    ],
)
def test_reasoning_is_read_back(reasoning: str, claims: Facts | None) -> None:
    read = claimed_facts(reasoning)
    if "and there is" in reasoning:
        # Lower case inside a sentence is not how the second finding is stated: one claim.
        assert read == Facts("hand X-ray", "fracture", "thumb")
    else:
        assert read == claims


def test_agreement_is_between_the_reasoning_and_its_own_letter_not_the_truth() -> None:
    seen = "This is an axial CT slice of the chest. A round nodule lies in the lung on the left side of the image."
    left = f"{seen} So the answer is Left (B)."
    assert agrees(left, "B", WHICH_SIDE)
    assert not agrees(left, "A", WHICH_SIDE)
    assert not agrees(left, None, WHICH_SIDE)
    # What is seen makes B right, but the reasoning does not conclude with it.
    for conclusion in (
        "",
        " So the answer is Right (A).",
        " So the answer is Right (B).",
        " So the answer is Left (A).",
    ):
        assert not agrees(seen + conclusion, "B", WHICH_SIDE)
    # The scan shows it on the right: an answer in agreement with itself, and wrong.
    graded = grade(f"<think>{left}</think>\n\n<answer>B</answer>", WHICH_SIDE, Facts("chest CT", "nodule", "right"))
    assert (graded.correct, graded.agrees, graded.truthful) == (True, True, False)


@pytest.mark.parametrize(
    ("text", "well_formed", "choice"),
    [
        ("<think>a</think>\n\n<answer>B</answer>", True, "B"),
        ("<think>a</think><answer> B </answer>", True, "B"),
        ("<answer>B</answer>", False, "B"),
        ("<think>a</think>\n\n<answer>D</answer>", False, None),
        ("<think>a</think>\n\n<answer>Left</answer>", False, None),
        ("<think>a<answer>B</answer>", False, "B"),
        ("<think>a</think>\n\n<answer>B</answer> and more", False, "B"),
        ("", False, None),
    ],
)
def test_form_is_strict(text: str, well_formed: bool, choice: str | None) -> None:
    graded = grade(text, WHICH_SIDE, NODULE)
    assert (graded.well_formed, graded.choice) == (well_formed, choice)


def test_items_are_the_same_every_time_and_apart_between_splits() -> None:
    first, again = make_item("test", 7), make_item("test", 7)
    assert first.question == again.question
    assert np.array_equal(first.scan.pixels, again.scan.pixels)
    assert item_facts("test", 7) == (first.question.type, first.facts)
    other = make_item("train", 7)
    assert other.scan.pixels.shape != first.scan.pixels.shape or not np.array_equal(
        other.scan.pixels, first.scan.pixels
    )


def test_saved_dataset_has_the_form_of_the_authors_questions(tmp_path: Path, shared: Path) -> None:
    theirs = json.loads((shared / "medvlm-r1" / "questions-60.json").read_text())[0]
    save_dataset(tmp_path, [make_item("test", 0)])
    ours = json.loads((tmp_path / "dataset.json").read_text())[0]
    assert set(theirs) <= set(ours)
    assert {key: type(theirs[key]) for key in theirs} == {key: type(ours[key]) for key in theirs}


def test_saved_dataset_holds_the_questions_and_images_beside_it(tmp_path: Path) -> None:
    items: list[Item] = [make_item("test", index) for index in range(6)]
    save_dataset(tmp_path, items)
    entries = json.loads((tmp_path / "dataset.json").read_text())
    assert len(entries) == 6
    for item, entry in zip(items, entries, strict=True):
        assert entry["problem"] == item.question.problem
        assert entry["solution"] == item.question.solution
        assert entry["options"]["ABCD".index(entry["solution"])] == entry["answer"]
        with Image.open(tmp_path / entry["image"][0]) as image:
            assert np.array_equal(np.asarray(image), item.scan.pixels)
    assert {path.name for path in (tmp_path / "images").iterdir()} == {Path(e["image"][0]).name for e in entries}
