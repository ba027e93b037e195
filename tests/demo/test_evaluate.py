"""Comparing precisions on the same questions: counts and p-values worked out by hand."""

import dataclasses
from typing import Any, cast

import pytest
from medvlm.demo.dataset import Item, make_item
from medvlm.demo.evaluate import Answered, blank, chance, flips, majority, share
from medvlm.demo.grading import Grade
from medvlm.demo.measure import changes_table, types_table


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return [make_item("test", index) for index in range(5)]


def answered(item: Item, letter: str | None) -> Answered:
    right = letter == item.question.solution
    grade = Grade(letter, correct=right, well_formed=letter is not None, agrees=right, truthful=right)
    return Answered(item, cast("Any", None), grade)


def wrong(item: Item) -> str:
    return "B" if item.question.solution == "A" else "A"


def test_flips_count_letters_and_what_they_cost(items: list[Item]) -> None:
    right = [answered(item, item.question.solution) for item in items]
    mixed = [answered(items[0], wrong(items[0])), answered(items[1], None), *right[2:]]
    changed = flips(right, mixed)
    assert (changed.letters, changed.lost, changed.won, changed.p) == (2, 2, 0, 0.5)
    back = flips(mixed, right)
    assert (back.letters, back.lost, back.won) == (2, 0, 2)
    assert share(mixed, "correct") == 0.6
    assert share(mixed, "well_formed") == 0.8


def test_chance_and_majority(items: list[Item]) -> None:
    options = [len(item.question.options) for item in items]
    assert chance(items) == pytest.approx(sum(1 / n for n in options) / 5)
    one = dataclasses.replace(items[0].question, answer=0)
    two = dataclasses.replace(items[0].question, answer=1)
    assert majority([dataclasses.replace(items[0], question=q) for q in (one, two, two)]) == pytest.approx(2 / 3)


def test_blank_is_flat_and_of_the_same_size(items: list[Item]) -> None:
    image = blank(items[0])
    assert image.size == items[0].image.size
    assert image.getextrema() == (128, 128)


def test_tables_show_every_type_and_precision(items: list[Item]) -> None:
    right = [answered(item, item.question.solution) for item in items]
    none_right = [answered(item, wrong(item)) for item in items]
    types = types_table(items, right, none_right).splitlines()
    assert [line.split("|")[1].strip() for line in types[2:]] == [*(i.question.type for i in items), "all"]
    assert types[-1].endswith("| 100.0 % | 0.0 % |")
    precisions = changes_table({"fp32": right, "int4": none_right}).splitlines()
    assert precisions[-2] == "| fp32 | 100.0 % | 100.0 % | - | - | - | - |"
    # Five of five lost: 2 / 2^5.
    assert precisions[-1] == "| int4 | 0.0 % | 100.0 % | 5 | 5 | 0 | 0.0625 |"
