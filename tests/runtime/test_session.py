"""Sessions: on which CPUs bytes are multiplied another way, and what a graph that cannot be loaded says."""

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
from medvlm.runtime import session as session_module
from medvlm.runtime.errors import MedVLMError
from medvlm.runtime.session import open_session, open_sessions, saturates_bytes

AVX2 = "fpu sse2 ssse3 avx avx2 fma"


def cpu_info(flags: str, cores: int = 2) -> str:
    """/proc/cpuinfo of an x86 machine."""
    core = (
        f"processor\t: {{}}\nvendor_id\t: GenuineIntel\nmodel name\t: Some CPU\nflags\t\t: {flags}\nbugs\t\t: none\n\n"
    )
    return "".join(core.format(i) for i in range(cores))


@pytest.mark.parametrize(
    ("text", "saturates"),
    [
        (cpu_info(AVX2), True),
        (cpu_info(f"{AVX2} avx512f avx512bw"), True),
        (cpu_info(f"{AVX2} avx512f avx512_vnni"), False),
        (cpu_info(f"{AVX2} avx_vnni"), False),
        # A flag's name within another's is not that flag.
        (cpu_info(f"{AVX2} avx_vnni_int8"), True),
        (cpu_info("sse2", cores=1), True),
        # ARM has no such line, but `Features`.
        ("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU part\t: 0xd40\n", False),
        ("flags\t\t:\n", False),
        ("", False),
        ("no colon anywhere\nflags", False),
    ],
    ids=[
        "AVX2",
        "AVX-512",
        "AVX-512 VNNI",
        "AVX VNNI",
        "another flag",
        "SSE2",
        "ARM",
        "no flag",
        "empty",
        "garbage",
    ],
)
def test_bytes_saturate_on_x86_without_vnni(tmp_path: Path, text: str, saturates: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    assert saturates_bytes(tmp_path / "cpuinfo") is saturates


def test_without_a_readable_file_bytes_are_taken_not_to_saturate(tmp_path: Path) -> None:
    assert not saturates_bytes(tmp_path / "absent")
    assert not saturates_bytes(tmp_path)
    (tmp_path / "binary").write_bytes(b"flags : \xff\xfe avx_vnni\n")
    assert not saturates_bytes(tmp_path / "binary")


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """What sessions are opened with on a machine with this cpuinfo."""

    def opened(text: str, *, stepwise: bool = False) -> dict[str, str]:
        (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
        set_to: dict[str, str] = {}

        class Options(onnxruntime.SessionOptions):
            def add_session_config_entry(self, key: str, value: str) -> None:
                set_to[key] = value

        with monkeypatch.context() as patch:
            patch.setattr(session_module, "_CPU_INFO", tmp_path / "cpuinfo")
            patch.setattr(onnxruntime, "SessionOptions", Options)
            patch.setattr(onnxruntime, "InferenceSession", lambda *_args, **_options: None)
            open_session(tmp_path / "graph.onnx", 1, stepwise=stepwise)
        return set_to

    return opened


def test_sessions_are_told_to_be_right_where_bytes_saturate(entries: Callable[..., dict[str, str]]) -> None:
    assert entries(cpu_info(AVX2))["session.x64quantprecision"] == "1"
    assert "session.x64quantprecision" not in entries(cpu_info(f"{AVX2} avx_vnni"))


@pytest.mark.parametrize("stepwise", [False, True])
def test_only_the_threads_of_a_stepwise_session_wait_awake(
    entries: Callable[..., dict[str, str]], stepwise: bool
) -> None:
    found = entries(cpu_info(AVX2), stepwise=stepwise)
    assert found["session.force_spinning_stop"] == ("0" if stepwise else "1")


def test_sessions_are_opened_in_the_order_of_their_paths(tiny_bundle: Path) -> None:
    names = ["vision_encoder", "decoder", "prefill"]
    sessions = open_sessions([tiny_bundle / f"{name}.onnx" for name in names], 1, tiny_bundle / "decoder.onnx")
    outputs = [{value.name for value in session.get_outputs()} for session in sessions]
    assert outputs[0] == {"image_features"}
    assert "logits" in outputs[1]
    assert "logits" not in outputs[2]


def test_the_first_graph_that_cannot_be_loaded_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    paths = [tiny_bundle / "decoder.onnx", tmp_path / "bad.onnx", tmp_path / "absent.onnx"]
    with pytest.raises(MedVLMError, match=r"onnxruntime cannot load bad\.onnx") as error:
        open_sessions(paths, 1, paths[0])
    assert len(str(error.value).splitlines()) == 1
