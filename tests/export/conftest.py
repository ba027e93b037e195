"""What the tests of exporting share."""

from pathlib import Path

import pytest
from medvlm.export.checkpoint import Checkpoint, open_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint, opened."""
    return open_checkpoint(tiny_checkpoint)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty directory for OUT to be in."""
    path = tmp_path / "bundles"
    path.mkdir()
    return path
