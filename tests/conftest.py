"""What tests share: tiny checkpoints and bundles, made once, and the folder of shared files where there is one."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from medvlm.demo.dataset import Item, make_item
from medvlm.demo.evaluate import CHECKPOINT
from medvlm.demo.random_checkpoint import RandomCheckpoint
from medvlm.demo.scans.canvas import Canvas
from medvlm.demo.scans.catalog import KINDS
from medvlm.export.convert import export
from medvlm.export.recipe import make_recipe
from medvlm.runtime import MedVLM
from medvlm.runtime.dataset import DatasetItem, read_dataset
from PIL import Image

# An example's time says nothing on a busy machine. The examples are the same in every run, so that a commit passes or
# fails for good; `pytest --hypothesis-profile=search` looks at others.
settings.register_profile("search", deadline=None)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Several processes that each compute with all cores wait for each other more than they work.

    They take this over when they start: numpy and torch read it when they are imported.
    """
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint in the hub's layout. Copy it before changing anything."""
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    RandomCheckpoint().write(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six questions about noise in the authors' form, one of them about two images: 4 to 6 visual tokens an image."""
    directory, rng = tmp_path_factory.mktemp("dataset"), np.random.default_rng(5)
    entries = []
    for i in range(6):
        names = [f"{i}-{n}.png" for n in range(2 if i == 1 else 1)]
        for name in names:
            Image.fromarray(rng.integers(0, 256, (56, 56 + 28 * (i % 2), 3), np.uint8)).save(directory / name)
        entries.append({"image": names, "problem": f"Question {i}?\nA) Yes\nB) No", "solution": "AB"[i % 2]})
    path = directory / "own.json"
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture(scope="session")
def tiny_items(tiny_dataset: Path) -> list[DatasetItem]:
    return read_dataset(tiny_dataset)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    """Its INT4 bundle. Copy it before changing anything."""
    out = tiny_checkpoint.parent / "bundle"
    export(tiny_checkpoint, out, make_recipe("int4", 32))
    return out


@pytest.fixture(scope="session")
def tiny_model(tiny_bundle: Path) -> MedVLM:
    return MedVLM.load(tiny_bundle, threads=1)


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained demo model's INT4 bundle. Copy it before changing anything."""
    out = tmp_path_factory.mktemp("demo") / "bundle"
    export(CHECKPOINT, out, make_recipe("int4"))
    return out


@pytest.fixture(scope="session")
def demo_model(demo_bundle: Path) -> MedVLM:
    return MedVLM.load(demo_bundle, threads=2)


@pytest.fixture(scope="session")
def demo_items() -> list[Item]:
    """The first 200 held-out questions; drawing their scans takes longer than answering them."""
    return [make_item("test", index) for index in range(200)]


@pytest.fixture(scope="session")
def image_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 224x224 grey PNG: 64 visual tokens."""
    path = tmp_path_factory.mktemp("images") / "scan.png"
    drawing = KINDS["brain T2"].draw(np.random.default_rng(0), Canvas(224, 224), None, None)
    Image.fromarray((np.clip(drawing.image, 0, 1) * 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of the authors' images and the hub's tokenizer beside the checkout; skips where it is absent."""
    path = Path(__file__).parents[1].parent / "shared"
    if not path.is_dir():
        pytest.skip("needs the shared folder beside the checkout, which is absent")
    return path


@pytest.fixture(scope="session")
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """Within `full_disk(size)` no file may grow beyond `size` bytes, which fails as a full disk does.

    Only within: the report of the tests may be a file too.
    """
    resource = pytest.importorskip("resource", reason="needs limits on a file's size, which Windows has not")

    @contextlib.contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
