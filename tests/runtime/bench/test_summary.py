"""Summaries against numpy and by hand, and how they read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from medvlm.runtime.bench.summary import Quantity, Summary, ratio_of_pairs, summarize

measurements = st.lists(st.floats(1e-6, 1e12), min_size=1, max_size=50)


@given(measurements)
def test_a_summary_holds_numpys_percentiles(values: list[float]) -> None:
    summary = summarize(values)
    found = (summary.p5, summary.median, summary.p95)
    np.testing.assert_allclose(found, [np.percentile(values, q) for q in (5, 50, 95)])
    assert summary.count == len(values)


def test_a_summary_worked_out_by_hand() -> None:
    # 21 values: the 5th percentile is the second, the 95th the last but one.
    summary = summarize([*range(20, 0, -1), 1000])
    assert summary == Summary(median=11, p5=2, p95=20, count=21)
    assert summary.spread == 18 / 11


def test_nothing_has_no_summary() -> None:
    with pytest.raises(ValueError, match="no measurements"):
        summarize([])


def test_a_slow_spell_of_the_machine_leaves_the_ratio_of_pairs_alone() -> None:
    a, b = [2.0, 2.0, 8.0, 2.0], [1.0, 1.0, 4.0, 1.0]
    assert ratio_of_pairs(a, b) == Summary(2, 2, 2, 4)


def test_measurements_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratio_of_pairs([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("summary", "quantity", "text"),
    [
        (Summary(0.84, 0.82, 0.91, 9), "time", "0.84 s (0.82-0.91)"),
        (Summary(18.52, 18.4, 20.0, 9), "time", "18.5 s (18.4-20.0)"),
        (Summary(0.0241, 0.0238, 0.0302, 9), "time", "24.1 ms (23.8-30.2)"),
        (Summary(0.000034, 0.00003, 0.00004, 9), "time", "0.034 ms (0.030-0.040)"),
        (Summary(0.0, 0.0, 0.0, 2), "time", "0.00 ms (0.00-0.00)"),
        (Summary(50.6e9, 48.3e9, 51e9, 9), "bandwidth", "50.6 GB/s (48.3-51.0)"),
        (Summary(269.4e9, 240e9, 270.6e9, 9), "operations", "269 GOP/s (240-271)"),
        (Summary(41.26, 40, 42, 9), "tokens", "41.3 tokens/s (40.0-42.0)"),
        (Summary(2.14e9, 2.1e9, 2.2e9, 9), "bytes", "2.14 GB (2.10-2.20)"),
        (Summary(58.4e6, 58e6, 59e6, 9), "bytes", "58.4 MB (58.0-59.0)"),
        (Summary(1.243, 1.2, 1.3, 9), "ratio", "1.24 (1.20-1.30)"),
        (Summary(0.84, 0.84, 0.84, 1), "time", "0.84 s"),
    ],
)
def test_a_person_reads_a_fitting_unit_and_three_digits(summary: Summary, quantity: Quantity, text: str) -> None:
    assert summary.text(quantity) == text
