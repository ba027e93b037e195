"""The `medvlm bench` command on the demo model: what it measures, what it says, and what it refuses."""

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from medvlm.demo.evaluate import CHECKPOINT
from medvlm.runtime import MedVLM
from medvlm.runtime.bench import stages
from medvlm.runtime.bench.cli import bench
from medvlm.runtime.bench.report import table, warnings
from medvlm.runtime.bench.requests import make_request, noise_image
from medvlm.runtime.bench.stages import Plan, decode_steps

QUICK = ("--sizes", "56,112", "--contexts", "32,64", "--repetitions", "2", "--new-tokens", "8", "--text-tokens", "60")


def run(*words: object) -> Result:
    return CliRunner().invoke(bench, [str(word) for word in words])


@pytest.fixture(scope="module")
def small_buffer() -> Any:
    """Read 32 MiB instead of 512: the figures are not looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "_READ_BYTES", 1 << 25)
        yield


@pytest.fixture(scope="module")
def report(demo_bundle: Path, small_buffer: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of the demo model, and under "picture" the plot's path."""
    pytest.importorskip("matplotlib")
    picture = tmp_path_factory.mktemp("bench") / "bench.png"
    result = run(demo_bundle, *QUICK, "--json", "--plot", picture)
    assert result.exit_code == 0, result.output
    return {**json.loads(result.stdout), "picture": picture}


def test_the_ratios_stand_as_plain_numbers(report: dict[str, Any]) -> None:
    for part, name in (
        ("decode", "share_of_read_bandwidth"),
        ("decode", "python_share"),
        ("prefill", "multiple_of_fp32_gemm"),
        ("vision", "multiple_of_fp32_gemm"),
    ):
        assert isinstance(report[part][name], float)
        assert 0 < report[part][name] < 100
    assert report["decode"] == report["images"][1]["decode"], "those of the second image size"


def test_every_size_and_context_was_measured_as_often_as_asked(report: dict[str, Any]) -> None:
    assert [image["image"] for image in report["images"]] == ["56x56", "112x112"]
    assert [image["visual_tokens"] for image in report["images"]] == [4, 16]
    for image in report["images"]:
        assert image["prompt_tokens"] == image["visual_tokens"] + 60
        for stage in ("preprocess_s", "vision_s", "prefill_s", "first_token_s", "total_s"):
            numbers = image[stage]
            assert numbers["count"] == 2
            assert 0 < numbers["p5"] <= numbers["median"] <= numbers["p95"]
        assert image["decode"]["token_s"]["count"] == 2 * (image["new_tokens"] - 1)
    assert [context["length"] for context in report["contexts"]] == [32, 64]
    assert report["load_s"]["count"] == 3


def test_the_stages_of_the_first_token_add_up_to_it(report: dict[str, Any]) -> None:
    for image, parts in zip(report["images"], report["first_token"], strict=True):
        stages_s = sum(parts[name] for name in ("preprocess_s", "vision_s", "prefill_s", "decode_s"))
        # Medians of parts are not the parts of a median, but on two rounds nearly so.
        assert stages_s == pytest.approx(image["first_token_s"]["median"], rel=0.5)


def test_the_second_question_keeps_the_image(report: dict[str, Any]) -> None:
    for image in report["images"]:
        assert image["prefix"]["cached_tokens"] > image["visual_tokens"]


def test_what_a_step_reads_is_the_decoder_s_file_and_the_cache(report: dict[str, Any], demo_bundle: Path) -> None:
    decode, middle = report["decode"], report["images"][1]["prompt_tokens"] + report["images"][1]["new_tokens"] // 2
    assert decode["weight_bytes"] == (demo_bundle / "decoder.onnx.data").stat().st_size
    manifest = MedVLM.load(demo_bundle, threads=1).manifest
    assert decode["cache_bytes"] == middle * manifest.text.kv_bytes_per_token


def test_each_part_of_the_engine_has_a_line(report: dict[str, Any]) -> None:
    lines = table(report)
    for name in ("prompt lookup", "constrained answer", "sampling", "second question"):
        assert name in lines


def test_the_table_has_a_range_beside_every_median(report: dict[str, Any]) -> None:
    rows = [
        line for line in table(report).splitlines() if line.startswith(("vision", "prefill", "first token", "decode"))
    ]
    assert len(rows) == 4
    assert all(row.count("(") == row.count("-") == 2 for row in rows)


def test_a_busy_machine_is_pointed_out(report: dict[str, Any]) -> None:
    quiet = {"median": 0.01, "p5": 0.0, "p95": 0.02, "count": 2}
    calm = {**report, "busy": quiet, "read_bandwidth": _spread(1e9, 0.1), "gemm_rate": _spread(1e9, 0.1)}
    assert warnings(calm) == []
    assert "40% of the CPU" in warnings({**calm, "busy": {**quiet, "median": 0.4}})[0]
    assert "gemm rate varied by 50%" in warnings({**calm, "gemm_rate": _spread(1e9, 0.5)})[0]


def _spread(median: float, spread: float) -> dict[str, float]:
    return {"median": median, "p5": median * (1 - spread / 2), "p95": median * (1 + spread / 2), "count": 5}


def test_the_plot_is_a_picture(report: dict[str, Any]) -> None:
    assert report["picture"].read_bytes().startswith(b"\x89PNG")


def test_two_bundles_are_compared_in_turns(demo_bundle: Path, small_buffer: None, tmp_path: Path) -> None:
    other = shutil.copytree(demo_bundle, tmp_path / "other")
    result = run(demo_bundle, *QUICK, "--compare", other, "--json")
    assert result.exit_code == 0, result.output
    compared = json.loads(result.stdout)["compare"]
    assert (compared["a"], compared["b"], compared["image"]) == ("bundle", "other", "112x112")
    for stage in ("vision", "prefill", "first token", "decode"):
        assert compared["stages"][stage]["ratio"]["count"] == 2
        assert 0.01 < compared["stages"][stage]["ratio"]["median"] < 100


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_transformers_is_measured_on_the_same_checkpoint(demo_bundle: Path, small_buffer: None, precision: str) -> None:
    words = ("--baseline", "transformers", "--checkpoint", CHECKPOINT, "--precision", precision)
    result = run(demo_bundle, *QUICK, *words)
    assert result.exit_code == 0, result.output
    assert f"transformers {precision}" in result.stdout
    assert "faster by" in result.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "give a bundle, or --synthetic 2b"),
        (("BUNDLE", "--baseline", "transformers"), "--checkpoint"),
        (("BUNDLE", "--baseline", "transformers", "--checkpoint", "nowhere"), "config.json"),
        (("BUNDLE", "--repetitions", "0"), "--repetitions is 0"),
        (("BUNDLE", "--new-tokens", "1"), "--new-tokens is 1"),
        (("BUNDLE", "--compare", "nowhere"), "nowhere"),
        (("nowhere",), "nowhere"),
        (("BUNDLE", "--sizes", "224,big"), "not a list of whole numbers"),
        (("BUNDLE", "--sizes", "0"), "below 1"),
        (("BUNDLE", "--plot", "picture.txt"), "picture.txt"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(
    words: tuple[str, ...], says: str, demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        pytest.fail("nothing may be loaded")

    monkeypatch.setattr("medvlm.runtime.bench.cli.MedVLM", work)
    result = run(*(str(demo_bundle) if word == "BUNDLE" else word for word in words))
    assert result.exit_code == 2
    assert says in result.output


def test_the_synthetic_bundle_is_made_by_another_part_of_the_package() -> None:
    (entry,) = metadata.entry_points(group="medvlm.synthetic")
    assert entry.name == "2b"
    assert callable(entry.load())


def test_a_synthetic_bundle_is_made_measured_and_removed(
    demo_bundle: Path, small_buffer: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def make(out: Path, say: Any) -> None:
        say("making it")
        shutil.copytree(demo_bundle, out)
        made.append(out)

    monkeypatch.setattr("medvlm.demo.synthetic.write_synthetic_2b", make)
    result = run("--synthetic", "2b", *QUICK)
    assert result.exit_code == 0, result.output
    assert "making it" in result.stderr
    assert not made[0].exists()
    kept = tmp_path / "kept"
    assert run(kept, "--synthetic", "2b", *QUICK).exit_code == 0
    assert kept.is_dir()


def test_requests_have_the_tokens_that_were_asked_for(demo_model: MedVLM) -> None:
    rng = np.random.default_rng(0)
    image = noise_image(112, rng)
    request = make_request(demo_model, image, 80, rng)
    assert len(request.token_ids) == request.visual_tokens + 80 == 96
    (span,) = request.contents.images
    assert (request.token_ids[span.start : span.end] == demo_model.manifest.image_token_id).all()
    assert request.positions.shape == (3, 96)
    other = make_request(demo_model, image, 80, rng)
    assert request.contents.common_prefix(other.contents) >= span.end, "the image is the same"


def test_steps_are_not_taken_beyond_what_the_model_holds(demo_model: MedVLM) -> None:
    assert decode_steps(demo_model, demo_model.max_length, 4) == []
    assert len(decode_steps(demo_model, 100, 4)) == 3


def test_a_plan_is_plain_data() -> None:
    assert Plan().sizes == (224, 504, 1024)
