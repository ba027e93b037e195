"""Which device is taken, and what is said where it is not the one that was hoped for."""

import ctypes
import dataclasses
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from medvlm.demo.random_checkpoint import TEXT
from medvlm.runtime import BundleError, InputError, MedVLM, MedVLMError
from medvlm.runtime import cuda as cuda_module
from medvlm.runtime import device as device_module
from medvlm.runtime.bundle import open_bundle
from medvlm.runtime.cli import main
from medvlm.runtime.cuda import CudaDevice, UnusableError, library_names, open_cuda, package_fault
from medvlm.runtime.device import arena_limit, choose_device, needed_memory
from medvlm.runtime.session import memory_error, open_on

MB = 1_000_000


class Cudart:
    """CUDA's runtime library as far as it is called: `answers` says what fails, by the function's name."""

    def __init__(self, devices: int = 1, **answers: int) -> None:
        self._devices, self._answers, self.called = devices, answers, list[str]()
        self.cudaGetErrorString = lambda status: f"error {status}".encode()

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.called.append(name)
            if name in self._answers:
                return self._answers[name]
            if name == "cudaGetDeviceCount":
                arguments[0]._obj.value = self._devices
            elif name == "cudaMemGetInfo":
                arguments[0]._obj.value, arguments[1]._obj.value = 3_000 * MB, 8_000 * MB
            elif name == "cudaMalloc":
                arguments[0]._obj.value = 4096
            elif name == "cudaMemcpy":
                ctypes.memmove(*arguments[:3])
            return 0

        return call


def unusable(reason: str) -> Callable[[], CudaDevice]:
    def opening() -> CudaDevice:
        raise UnusableError(reason)

    return opening


# What is asked for, and what is there


def test_a_bundle_for_cpus_is_computed_there_and_nobody_looks_for_a_gpu(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "open_cuda", lambda: pytest.fail("a GPU was looked for"))
    chosen = choose_device("auto", open_bundle(tiny_bundle), 4096, 0)
    assert (chosen.name, chosen.note) == ("cpu", "")


def test_auto_takes_the_gpu_for_a_bundle_that_has_graphs_for_it(both_bundle: Path, host_device: Any) -> None:
    chosen = choose_device("auto", open_bundle(both_bundle), 4096, 0)
    assert (chosen.name, chosen.gpu, chosen.note) == ("cuda", host_device, "")
    assert choose_device("cpu", open_bundle(both_bundle), 4096, 0).name == "cpu"


def test_auto_falls_back_and_says_why_in_one_line(both_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "open_cuda", unusable("the driver finds no NVIDIA GPU"))
    model = MedVLM.load(both_bundle, threads=1)
    assert (model.device, model.device_note) == ("cpu", "computing on the CPU: the driver finds no NVIDIA GPU")


def test_the_command_line_says_it_once_and_answers(
    both_bundle: Path, image_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "open_cuda", unusable("the driver finds no NVIDIA GPU"))
    asked = ["ask", str(both_bundle), str(image_path), "-q", "Q?\nA) x\nB) y", "--max-new-tokens", "40", "--json"]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    assert result.stderr == "Note: computing on the CPU: the driver finds no NVIDIA GPU\n"


def test_cuda_never_falls_back(both_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "open_cuda", unusable("the driver finds no NVIDIA GPU"))
    with pytest.raises(InputError) as error:
        MedVLM.load(both_bundle, "cuda")
    assert str(error.value) == "cannot compute on CUDA: the driver finds no NVIDIA GPU, or give --device cpu"


def test_a_bundle_for_cuda_alone_never_falls_back_either(cuda_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "open_cuda", unusable("there is none"))
    with pytest.raises(InputError) as error:
        MedVLM.load(cuda_bundle)
    assert str(error.value) == "cannot compute on CUDA: there is none"


@pytest.mark.parametrize(("device", "other"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_bundle_for_another_device_is_refused_with_what_to_do(
    tiny_bundle: Path, cuda_bundle: Path, device: str, other: str
) -> None:
    bundle = tiny_bundle if other == "cpu" else cuda_bundle
    says = (
        f"the bundle is for {other} and not for {device}; export it again with --device {device} or both, or give "
        f"--device {other}"
    )
    with pytest.raises(BundleError) as error:
        MedVLM.load(bundle, device)
    assert str(error.value) == says
    # The image is not even looked for.
    result = CliRunner().invoke(main, ["ask", str(bundle), "absent.png", "-q", "Q?", "--device", device])
    assert (result.exit_code, result.stderr) == (2, f"Error: {says}\n")


# Memory


def test_what_is_needed_is_weights_and_cache_and_the_rest(cuda_bundle: Path) -> None:
    """Held against onnx's own reading of the graphs, and a cache worked out by hand."""
    bundle = open_bundle(cuda_bundle)
    needed = needed_memory(bundle, 4096, prefix_bytes=0)
    for name, found in (("vision_encoder", needed.vision), ("decoder", needed.decoder)):
        graph = onnx.load(cuda_bundle / f"{name}.cuda.onnx").graph
        arrays = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
        assert found == sum(array.nbytes for array in arrays if array.nbytes > 64)
    # Keys and values of two layers, one head of 32 half floats.
    assert needed.cache == 4096 * 2 * TEXT.layers * TEXT.num_kv_heads * 32 * 2
    assert needed_memory(bundle, 4096, prefix_bytes=900 * MB).cache == 900 * MB
    assert needed.total > needed.vision + needed.decoder + needed.cache


def test_too_little_free_memory_is_said_in_numbers(both_bundle: Path, host_device: Any) -> None:
    host_device.total = 700 * MB
    note = choose_device("auto", open_bundle(both_bundle), 4096, 0).note
    assert note.startswith("computing on the CPU: about 1")
    assert "MB of the GPU's memory are needed and 700 of 700 are free; close what uses it, or lower --max-le" in note
    with pytest.raises(InputError, match="cannot compute on CUDA: about"):
        choose_device("cuda", open_bundle(both_bundle), 4096, 0)


def test_a_limit_counts_as_memory_that_is_not_there(both_bundle: Path, host_device: Any) -> None:
    bundle = open_bundle(both_bundle)
    needed = needed_memory(bundle, 4096, 0).total
    assert choose_device("cuda", bundle, 4096, 0, limit=needed).name == "cuda"
    with pytest.raises(InputError, match=r"--gpu-mem-limit allows .*; raise it, or lower --max-length or --prefix-mb"):
        choose_device("cuda", bundle, 4096, 0, limit=needed - 1)
    with pytest.raises(InputError, match="--gpu-mem-limit is 0 MB; give at least 1"):
        choose_device("cuda", bundle, 4096, 0, limit=0)


def test_sessions_share_the_limit(both_bundle: Path, host_device: Any) -> None:
    """What either arena may take, with the weights of the other and the cache, is no more than the limit."""
    limit = 2_000 * MB
    needed = needed_memory(open_bundle(both_bundle), 4096, 512 * MB)
    MedVLM.load(both_bundle, "cuda", threads=1, gpu_mem_limit=2_000)
    assert host_device.asked_for == [
        (False, limit - needed.cache - needed.decoder),
        (True, limit - needed.cache - needed.vision),
    ]
    assert arena_limit(needed, None, stepwise=True) is None


@pytest.mark.parametrize(
    ("raised", "numbers"),
    [
        (
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : BFCArena::AllocateRawInternal Failed to allocate memory for "
            "requested buffer of size 734003200",
            ": 734 MB more are needed, and 100 of 8000 MB are free",
        ),
        (
            "Available memory of 0 is smaller than requested bytes of 4194304",
            ": 4 MB more are needed, and 100 of 8000 MB are free",
        ),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=x ; file=y", ", and 100 of 8000 MB are free"),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", ", and 100 of 8000 MB are free"),
    ],
)
def test_full_memory_is_one_line_with_what_was_needed_and_free(raised: str, numbers: str, host_device: Any) -> None:
    host_device.memory = lambda: (100 * MB, 8_000 * MB)
    error = memory_error(RuntimeError(raised), "prefill", host_device)
    assert str(error) == f"the GPU has no memory for prefill{numbers}; lower --max-pixels or --max-length"
    assert memory_error(RuntimeError(raised), "prefill", None) is None
    assert memory_error(RuntimeError("another failure"), "prefill", host_device) is None


# onnxruntime, CUDA's libraries, the driver


def test_both_packages_of_onnxruntime_at_once_are_said() -> None:
    assert package_fault({"onnxruntime"}) == package_fault({"onnxruntime-gpu"}) == package_fault(set()) == ""
    assert "both installed" in package_fault({"onnxruntime", "onnxruntime-gpu"})
    assert "pip uninstall both, then pip install 'medvlm[gpu]'" in package_fault({"onnxruntime", "onnxruntime-gpu"})


def test_both_packages_are_found_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "1.32.0")
    with pytest.raises(UnusableError, match="both installed"):
        open_cuda()


@pytest.fixture
def gpu_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if onnxruntime-gpu were installed."""
    monkeypatch.setattr(cuda_module, "_installed", lambda: {"onnxruntime-gpu"})
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "cuda_version", "12.8", raising=False)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcufft.so.11"), raising=False)  # noqa: T201


def test_onnxruntime_for_cpus_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_module, "_installed", lambda: {"onnxruntime"})
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UnusableError, match=r"computes on CPUs only; pip uninstall onnxruntime, then pip install"):
        open_cuda()


@pytest.mark.usefixtures("gpu_package")
def test_absent_libraries_are_said_and_preloading_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str, **_: object) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(UnusableError, match=r"CUDA's libraries \(version 12.8\) are not installed; pip install"):
        open_cuda()
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("gpu_package")
def test_the_library_of_onnxruntimes_own_cuda_version_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name, **_: opened.append(name) or Cudart())
    assert open_cuda().memory() == (3_000 * MB, 8_000 * MB)
    assert opened == library_names("12.8", sys.platform)[:1]
    assert library_names("13.0", "linux") == ["libcudart.so.13", "libcudart.so"]
    assert library_names("12.8", "win32") == ["cudart64_12.dll"]


@pytest.mark.parametrize(
    ("library", "says"),
    [
        (Cudart(cudaGetDeviceCount=35), "the NVIDIA driver is absent, or older than CUDA's libraries; install a newer"),
        (Cudart(cudaGetDeviceCount=100), "the driver finds no NVIDIA GPU"),
        (Cudart(devices=0), "the driver finds no NVIDIA GPU"),
    ],
)
def test_an_absent_gpu_or_driver_is_one_line(library: Cudart, says: str) -> None:
    with pytest.raises(UnusableError, match=says):
        CudaDevice(library)


def test_full_memory_is_an_answer_and_other_failures_are_errors() -> None:
    full = Cudart(cudaMalloc=2)
    assert CudaDevice(full).allocate(1 << 40) is None
    assert full.called[-1] == "cudaGetLastError"
    assert CudaDevice(Cudart()).allocate(1) == 4096
    with pytest.raises(MedVLMError, match="CUDA failed: error 700"):
        CudaDevice(Cudart(cudaMalloc=700)).allocate(1)


def test_a_copy_waits_for_what_it_copies_and_has_arrived_when_it_returns() -> None:
    """Neither waits for the other: the default stream, where copies run, and onnxruntime's own."""
    library, source, target = Cudart(), np.arange(8), np.zeros(8, np.int64)
    CudaDevice(library).copy(target.ctypes.data, source.ctypes.data, source.nbytes)
    np.testing.assert_array_equal(target, source)
    CudaDevice(library).copy_rows(1, 2, 3, 4, 5, 6)
    assert library.called[1:4] == ["cudaDeviceSynchronize", "cudaMemcpy", "cudaDeviceSynchronize"]
    assert library.called[-3:] == ["cudaDeviceSynchronize", "cudaMemcpy2D", "cudaDeviceSynchronize"]


def test_only_the_decoders_launches_are_captured_and_no_arena_doubles() -> None:
    device = CudaDevice(Cudart())
    stepwise, once = device.options(stepwise=True, limit=None), device.options(stepwise=False, limit=500)
    assert (stepwise["enable_cuda_graph"], once["enable_cuda_graph"]) == ("1", "0")
    assert stepwise["arena_extend_strategy"] == "kSameAsRequested"
    assert "gpu_mem_limit" not in stepwise
    assert once["gpu_mem_limit"] == "500"


# Sessions


def test_a_provider_that_onnxruntime_cannot_have_is_not_replaced_by_the_cpus(
    cuda_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """onnxruntime itself warns, and goes on on the CPU."""
    with pytest.raises(MedVLMError) as error:
        open_on(CudaDevice(Cudart()), cuda_bundle / "decoder.cuda.onnx", 1, None)
    assert "cannot compute decoder.cuda.onnx by its CUDAExecutionProvider: libraries of CUDA or cuDNN are missing" in (
        str(error.value)
    )
    assert len(str(error.value).splitlines()) == 1
    assert capsys.readouterr() == ("", "")


def test_a_graph_that_cannot_be_loaded_is_one_line(host_device: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(MedVLMError, match=r"onnxruntime cannot load bad\.onnx on the GPU") as error:
        open_on(host_device, tmp_path / "bad.onnx", 1, None)
    assert len(str(error.value).splitlines()) == 1


# What a graph for CUDA may read


@pytest.mark.parametrize("location", ["embeddings.bin", "vision_encoder.onnx.data", "../decoder.onnx.data"])
def test_a_graph_for_cuda_reads_its_own_weights_and_its_likes_alone(
    both_bundle: Path, tmp_path: Path, location: str
) -> None:
    bundle = shutil.copytree(both_bundle, tmp_path / "bundle")
    path = bundle / "decoder.cuda.onnx"
    graph = onnx.load(path, load_external_data=False)
    tensor = next(t for t in graph.graph.initializer if t.external_data)
    tensor.external_data[0].value = location
    path.write_bytes(graph.SerializeToString())
    manifest = open_bundle(both_bundle).manifest
    entry = dataclasses.replace(manifest.files[path.name], size=path.stat().st_size)
    changed = dataclasses.replace(manifest, files={**manifest.files, path.name: entry})
    (bundle / "manifest.json").write_text(changed.to_json(), encoding="utf-8")
    with pytest.raises(BundleError) as error:
        open_bundle(bundle)
    wanted = f"takes weights from {location!r} and not from decoder.cuda.onnx.data or decoder.onnx.data"
    assert wanted in str(error.value)
