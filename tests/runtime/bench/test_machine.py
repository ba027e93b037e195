"""What can be measured of the machine. No test says how fast it is."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from medvlm.runtime.bench import machine
from medvlm.runtime.bench.gemm_model import gemm_model
from medvlm.runtime.bench.machine import Busy, current_rss, gemm_rate, peak_rss, read_bandwidth, reset_peak

MEBIBYTE = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def shape(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


@given(st.integers(1, 2**40), st.integers(1, 300), st.integers(1, 300))
def test_the_written_model_is_one_that_onnx_accepts(rows: int, k: int, n: int) -> None:
    weight = np.arange(k * n, dtype=np.float32).reshape(k, n)
    model = onnx.load_from_string(gemm_model(rows, weight))
    onnx.checker.check_model(model, full_check=True)
    (node,), (initializer,) = model.graph.node, model.graph.initializer
    assert node.op_type == "MatMul"
    assert list(node.input) == ["x", initializer.name]
    assert shape(model.graph.input[0]) == [rows, k]
    assert shape(model.graph.output[0]) == [rows, n]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(initializer), weight)


def test_onnx_writes_the_same_model() -> None:
    weight = np.eye(3, 200, dtype=np.float32)
    model = onnx.load_from_string(gemm_model(1296, weight))
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)
        for name, dims in (("x", [1296, 3]), ("y", [1296, 200]))
    )
    node = onnx.helper.make_node("MatMul", ["x", "weight"], ["y"], name="product")
    graph = onnx.helper.make_graph([node], "gemm", [x], [y], [onnx.numpy_helper.from_array(weight, "weight")])
    opset = onnx.helper.make_opsetid("", 13)
    assert model == onnx.helper.make_model(graph, producer_name="medvlm", ir_version=8, opset_imports=[opset])


def test_the_written_model_multiplies() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((5, 7), np.float32), rng.standard_normal((7, 130), np.float32)
    session = onnxruntime.InferenceSession(gemm_model(5, weight), providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], {"x": x})
    np.testing.assert_allclose(np.asarray(y), x @ weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_repetition_gives_a_bandwidth(threads: int) -> None:
    rates = read_bandwidth(threads, size=4 * MEBIBYTE, repetitions=4)
    assert len(rates) == 4
    assert min(rates) > 0


def test_a_repetition_reads_every_byte_of_the_buffer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(np, "max", lambda piece: read.append(piece.nbytes))
    read_bandwidth(2, size=40 * MEBIBYTE, repetitions=2)
    assert sum(read) == 3 * 40 * MEBIBYTE, "one to warm up and two that count"


def test_a_machine_short_of_memory_is_measured_with_a_smaller_buffer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 999999 kB\nMemAvailable:   8192 kB\n", encoding="utf-8")
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    read: list[int] = []
    monkeypatch.setattr(np, "max", lambda piece: read.append(piece.nbytes))
    read_bandwidth(1, repetitions=1)
    assert sum(read) == 2 * 2 * MEBIBYTE


@pytest.mark.parametrize(("threads", "repetitions"), [(0, 1), (1, 0)])
def test_a_bandwidth_of_nothing_is_refused(threads: int, repetitions: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        read_bandwidth(threads, size=MEBIBYTE, repetitions=repetitions)


def test_each_repetition_gives_a_rate_of_products() -> None:
    rates = gemm_rate(1, shape=(3, 8, 16), repetitions=4)
    assert len(rates) == 4
    assert min(rates) > 0


@linux
def test_memory_that_was_used_and_freed_is_in_the_peak_until_the_peak_is_reset() -> None:
    before = current_rss()
    block = np.ones(64 * MEBIBYTE, np.uint8)
    held = current_rss()
    del block
    peak = peak_rss()
    assert before is not None
    assert held is not None
    assert peak is not None
    assert held > before + 48 * MEBIBYTE
    assert peak >= held - MEBIBYTE
    if not reset_peak():
        pytest.skip("the system does not permit a reset")
    fresh = peak_rss()
    assert fresh is not None
    assert fresh < peak - 48 * MEBIBYTE


def test_where_the_system_has_no_proc_what_cannot_be_known_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "_PROC", tmp_path / "absent")
    assert current_rss() is None
    assert not reset_peak()
    assert Busy().share() is None
    assert machine.cpu_name()
    if sys.platform != "win32":
        assert (peak_rss() or 0) > MEBIBYTE, "getrusage knows it"


class FakeProc:
    """/proc/stat, and this process's own time, as a test sets them; in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self._path, self._own = directory / "stat", 0.0
        monkeypatch.setattr(machine, "_PROC", directory)
        monkeypatch.setattr(os, "sysconf", lambda name: 100)
        monkeypatch.setattr(time, "process_time", lambda: self._own)
        self.set()

    def set(self, user: float = 0, idle: float = 0, iowait: float = 0, steal: float = 0, own: float = 0) -> None:
        # guest, the last but one, is part of user.
        fields = (user, 0, 0, idle, iowait, 0, 0, steal, user, 0)
        self._path.write_text(f"cpu  {' '.join(str(round(100 * s)) for s in fields)}\ncpu0 1 2 3\n", encoding="ascii")
        self._own = own


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeProc:
    return FakeProc(monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("times", "share"),
    [
        ({"user": 5, "idle": 5, "own": 5}, 0),
        ({"user": 5, "idle": 5, "own": 3}, 0.2),
        ({"user": 5, "idle": 4, "steal": 1, "own": 5}, 0.1),
        ({"user": 5, "idle": 3, "iowait": 2, "own": 5}, 0),
        ({"user": 5, "idle": 5, "own": 5.004}, 0),
    ],
    ids=["alone", "others", "the hypervisor", "waiting is idle", "never negative"],
)
def test_the_share_of_others_is_what_was_busy_and_not_ours(
    proc: FakeProc, times: dict[str, float], share: float
) -> None:
    busy = Busy()
    proc.set(**times)
    assert busy.share() == pytest.approx(share)


def test_an_interval_shorter_than_a_tick_tells_nothing(proc: FakeProc) -> None:
    assert Busy().share() is None


def test_a_stat_file_that_cannot_be_read_tells_nothing(proc: FakeProc, tmp_path: Path) -> None:
    busy = Busy()
    (tmp_path / "stat").write_text("cpu  1 2\n", encoding="ascii")
    assert busy.share() is None


@linux
def test_a_share_is_between_none_and_all() -> None:
    busy = Busy()
    time.sleep(0.1)
    share = busy.share()
    assert share is None or 0 <= share <= 1


def test_the_report_names_the_processor_and_the_versions() -> None:
    assert machine.cpu_name()
    versions = machine.versions()
    assert versions["onnxruntime"] == onnxruntime.__version__
    assert versions["numpy"] == np.__version__
    assert versions["medvlm"]
