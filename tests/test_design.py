"""The files that docs/design.md names exist, and so do the rules that tests/mutants takes out of the sources."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptconv
from tests.mutants.rules import MUTANTS

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


def test_the_sources_have_every_rule_that_a_mutant_takes_out() -> None:
    texts = {mutant.file: (PACKAGE / mutant.file).read_text(encoding="utf-8") for mutant in MUTANTS}
    assert [mutant.name for mutant in MUTANTS if texts[mutant.file].count(mutant.rule) != 1] == []
