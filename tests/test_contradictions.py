"""docs/reliability.md lists the contradictions that are tried: each has an answer, and a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FUNCTION = re.compile(r"^def (test_\w+)\(", re.MULTILINE)


def rows() -> list[tuple[str, str, str]]:
    """(contradiction, answer, tests) of every row in the section."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    section = text.partition("\n## Contradictions\n")[2].partition("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return [(what, answer, tests) for what, answer, tests in cells if what != "contradiction"]


def named(tests: str) -> list[tuple[str, str]]:
    """(file, part of a test's name) for each test that a row names."""
    found, file = [], ""
    for word in re.findall(r"`([^`]+)`", tests):
        if word.endswith(".py"):
            file = word
        else:
            found.append((file, word))
    return found


def functions(file: str) -> list[str]:
    paths = list((ROOT / "tests").rglob(file))
    assert len(paths) == 1, f"{file}: {paths}"
    return FUNCTION.findall(paths[0].read_text(encoding="utf-8"))


def test_there_are_rows_for_every_kind_of_checkpoint() -> None:
    assert len(rows()) > 70
    assert sum(answer.startswith("refused") for _, answer, _ in rows()) > 40
    assert any(answer.endswith("noted") for _, answer, _ in rows())


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:60])
def test_every_row_names_tests_that_exist(row: tuple[str, str, str]) -> None:
    what, answer, tests = row
    assert answer, what
    assert named(tests), what
    for file, part in named(tests):
        assert any(part in name for name in functions(file)), f"{file} has no test with {part!r} in its name"
