"""The bench on a GPU, with the CPU in its place: what is counted, and what is said to be computed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from medvlm.demo.random_checkpoint import TEXT
from medvlm.runtime.bench.gpu import CARDS, computed_on_cards, copy_bandwidth, gpu_gemm_rate
from medvlm.runtime.bundle import open_bundle
from medvlm.runtime.cli import main
from medvlm.runtime.device import needed_memory

QUICK = ["--sizes", "56", "--contexts", "64", "--text-tokens", "8", "--new-tokens", "4", "--repetitions", "1"]


def test_a_copy_reads_and_writes_its_bytes_once_a_repetition(host_device: Any) -> None:
    rates = copy_bandwidth(host_device, size=1 << 20, repetitions=4)
    assert len(rates) == 4
    assert min(rates) > 0
    assert set(host_device.copied) == {1 << 20}
    assert not host_device.held, "the buffers are given back"


def test_the_product_is_measured_where_the_session_computes(host_device: Any) -> None:
    assert len(gpu_gemm_rate(host_device, shape=(3, 8, 16), repetitions=4)) == 4
    assert host_device.asked_for == [(False, None)]


def test_other_cards_are_computed_from_their_bandwidth() -> None:
    """850 MB a token at 60 % of 360 GB/s are 254 tokens a second."""
    found = {card.card: card.tokens_per_s for card in computed_on_cards(850_000_000, 0.6)}
    assert found.keys() == CARDS.keys()
    assert found["RTX 3060 12 GB"] == pytest.approx(0.6 * 360e9 / 850e6)


def test_the_report_counts_half_floats_and_says_what_is_computed(cuda_bundle: Path, host_device: Any) -> None:
    result = CliRunner().invoke(
        main, ["bench", str(cuda_bundle), "--device", "cuda", "--threads", "1", "--json", *QUICK]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["device"] == "cuda"
    assert report["versions"]["gpu"] == "none"
    decode = report["decode"]
    assert decode["weight_bytes"] == needed_memory(open_bundle(cuda_bundle), 4096, 0).decoder
    middle = report["images"][0]["prompt_tokens"] + report["images"][0]["new_tokens"] // 2
    # Keys and values of half floats: a head of 32 in each layer.
    assert decode["cache_bytes"] == middle * 2 * TEXT.layers * 32 * 2
    assert {"GPU loaded", "GPU after 56x56"} <= report["memory"].keys()
    assert [card["card"] for card in report["computed"]] == list(CARDS)
    assert report["features"] == []
    assert np.isfinite(decode["share_of_read_bandwidth"])


def test_the_table_names_the_gpu_and_what_was_not_measured(cuda_bundle: Path, host_device: Any) -> None:
    result = CliRunner().invoke(main, ["bench", str(cuda_bundle), "--device", "cuda", "--threads", "1", *QUICK])
    assert result.exit_code == 0, result.output
    assert "GPU: copy " in result.stdout
    assert result.stdout.count("computed, not measured: RTX") == len(CARDS)
