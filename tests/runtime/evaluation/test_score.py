"""Scores counted by hand, and the table of them."""

from pathlib import Path

import pytest
from medvlm.runtime.dataset import DatasetItem
from medvlm.runtime.evaluation.outcome import Outcome
from medvlm.runtime.evaluation.score import Tally, blank_key, is_the_papers, score_all
from medvlm.runtime.evaluation.table import score_table
from medvlm.runtime.statistics import wilson_interval

PAPERS = ("MR (Mag-netic Resonance Imaging)", "CT(Computed Tomography)", "X-Ray")
PROBLEM = "Which is it?\nA) MRI\nB) CT\nC) X-ray"


def items(solutions: str, subsets: list[str | None]) -> list[DatasetItem]:
    return [
        DatasetItem(index, (Path("scan.png"),), PROBLEM, solution, subset=subset)
        for index, (solution, subset) in enumerate(zip(solutions, subsets, strict=True))
    ]


def said(
    key: object, strict: str | None, robust: str | None = None, reasoning: str = "a b", seconds: float = 1
) -> Outcome:
    return Outcome(
        str(key),
        reasoning=reasoning,
        choice=robust or strict,
        strict_choice=strict,
        well_formed=strict is not None,
        seconds=seconds,
    )


def by_key(*outcomes: Outcome) -> dict[str, Outcome]:
    return {outcome.key: outcome for outcome in outcomes}


def test_scores_are_those_counted_by_hand() -> None:
    asked = items("AAABC", ["MRI", "CT", "MRI", "MRI", "MRI"])
    outcomes = by_key(
        said(0, "A", reasoning="one two three", seconds=1),
        said(1, "B", seconds=4),
        said(2, None, "A", reasoning="one two three four five", seconds=2),
        Outcome("3", error="no image"),
        said(4, "B", reasoning="one", seconds=3),
        said(blank_key(0), "A"),
        said(blank_key(1), "A"),
        said(blank_key(2), "C"),
        Outcome(blank_key(3), error="no image"),
    )
    mri, ct, total = score_all(asked, outcomes)
    assert (mri.subset, ct.subset, total.subset) == ("MRI", "CT", "all")
    assert (mri.questions, mri.answered, mri.errors) == (4, 3, 1)
    assert mri.strict
    assert mri.robust
    assert mri.well_formed
    assert (mri.strict.count, mri.strict.total) == (1, 3)
    assert (mri.strict.low, mri.strict.high) == wilson_interval(1, 3)
    assert (mri.robust.count, mri.well_formed.count) == (2, 2)
    # Two of A's letters in three, the error left out.
    assert mri.majority == pytest.approx(2 / 3)
    assert (mri.reasoning_words, mri.seconds) == (3, 2)
    assert mri.blank
    assert (mri.blank.count, mri.blank.total) == (1, 2)
    assert total.strict
    assert total.blank
    assert (total.questions, total.answered, total.errors) == (5, 4, 1)
    assert (total.strict.count, total.majority) == (1, 3 / 4)
    assert (total.blank.count, total.blank.total) == (2, 3)


def test_dataset_without_subsets_has_one_score_and_what_lacks_one_a_score_of_its_own() -> None:
    assert [score.subset for score in score_all(items("AB", [None, None]), {})] == ["all"]
    assert [score.subset for score in score_all(items("AB", [None, "CT"]), {})] == ["(no subset)", "CT", "all"]


def test_what_is_not_answered_yet_has_no_shares() -> None:
    asked = items("AB", ["MRI", "CT"])
    mri, ct, total = score_all(asked, by_key(said(0, "A")))
    assert (ct.answered, ct.errors, ct.strict, ct.majority, ct.seconds) == (0, 0, None, None, None)
    assert mri.strict
    assert (total.questions, total.answered) == (2, 1)
    table = score_table([mri, ct, total])
    assert "0 of 1" in table
    assert "1 of 2" in table


def test_table_is_aligned_and_has_every_figure() -> None:
    asked = items("AAAB", ["MRI", "MRI", "a\x1b[2J", "a\x1b[2J"])
    outcomes = by_key(said(0, "A"), said(1, "B"), said(2, "A"), said(3, "B"), said(blank_key(0), "C"))
    lines = score_table(score_all(asked, outcomes)).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    # 1 of 2: Wilson's interval of p = 1/2 is (1/2) -+ (z / 2) / sqrt(2 + z^2), 9.45 to 90.55 %.
    assert lines[1].split("  ")[0] == "MRI"
    assert "50.0 % (9.5-90.5)" in lines[1]
    assert lines[2].startswith(r"a\x1b[2J ")
    assert lines[3].startswith("all ")
    assert lines[3].endswith("0.0 % (0.0-79.3)")
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(
    ("subsets", "expected"),
    [
        (PAPERS, True),
        (("MRI", "CT", "X-ray"), True),
        (("mri", "ct", "Xray"), True),
        (PAPERS[:2], False),
        ((*PAPERS, "Ultrasound"), False),
        ((*PAPERS, None), False),
        (("MRCP", "CT", "X-ray"), False),
        ((None,), False),
    ],
)
def test_published_figure_is_for_its_three_subsets(subsets: tuple[str | None, ...], expected: bool) -> None:
    assert is_the_papers(items("A" * len(subsets), list(subsets))) is expected


def test_subsets_of_the_authors_file_are_the_papers(shared: Path) -> None:
    from medvlm.runtime.dataset import read_dataset

    read = read_dataset(shared / "medvlm-r1" / "questions-60.json", find_images=False)
    assert len(read) == 60
    assert is_the_papers(read)


def test_tally_tells_the_accuracy_so_far_from_what_was_there_on() -> None:
    tally = Tally(items("AB", [None, None]), [said(0, "A")])
    assert tally.add(said(1, "A")) == "50.0% right"
    assert tally.add(said(blank_key(0), "C")) == "50.0% right"
    assert tally.add(Outcome(blank_key(1), error="no image")) == "50.0% right, errors: 1"
