"""What tests share: tiny checkpoints and bundles, made once, and the folder of shared files where there is one."""

from pathlib import Path

import pytest
from hypothesis import settings
from medvlm.demo.image import make_image
from medvlm.demo.random_checkpoint import RandomCheckpoint
from medvlm.export.convert import export
from medvlm.export.recipe import make_recipe
from medvlm.runtime import MedVLM

# An example's time says nothing on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint in the hub's layout. Copy it before changing anything."""
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    RandomCheckpoint().write(directory)
    return directory


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
def image_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 224x224 grey PNG: 64 visual tokens."""
    path = tmp_path_factory.mktemp("images") / "scan.png"
    make_image().save(path)
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of the authors' images and the hub's tokenizer beside the checkout; skips where it is absent."""
    path = Path(__file__).parents[1].parent / "shared"
    if not path.is_dir():
        pytest.skip("needs the shared folder beside the checkout, which is absent")
    return path
