"""docs/design.md: the files that it names exist, so that a newcomer finds them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptconv

PACKAGE = Path(ckptconv.__file__).parent
REPO = PACKAGE.parent
TEXT = (REPO / "docs" / "design.md").read_text(encoding="utf-8")


def named_in_the_rooms() -> Iterator[str]:
    """The files in the table of rooms, with their room: "plan/tied.py"."""
    for line in TEXT.splitlines():
        cells = line.split(" | ")
        if room := re.fullmatch(r"\| `(\w+/)`", cells[0]):
            yield from (room[1] + name for name in re.findall(r"`(\w+(?:\.\w+|/))`", " ".join(cells[1:])))


def named_with_their_room() -> list[str]:
    """Every other path in backticks: "plan/tied.py", "tests/plan/test_tied.py"."""
    return [name for name in re.findall(r"`(\w+/(?:\w+/)*(?:\w+\.\w+|\w+/))`", TEXT) if "FORMAT" not in name]


@pytest.mark.parametrize("name", sorted({*named_in_the_rooms(), *named_with_their_room()}))
def test_every_file_that_the_design_names_exists(name: str) -> None:
    assert (REPO / name).exists() or (PACKAGE / name).exists()


def test_there_are_files_in_the_design() -> None:
    assert len({*named_in_the_rooms()}) > 50
    assert len({*named_with_their_room()}) > 25
