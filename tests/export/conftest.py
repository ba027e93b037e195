"""What the tests of exporting share."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty directory for OUT to be in."""
    path = tmp_path / "bundles"
    path.mkdir()
    return path
