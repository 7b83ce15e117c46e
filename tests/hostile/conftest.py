"""A place for targets."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with neighbours, where the target would be."""
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "neighbour").write_text("stays")
    return tmp_path / "place"
