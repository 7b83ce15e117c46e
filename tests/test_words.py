"""The words that a user reads: constructions that were removed from messages, docs and test names stay removed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptconv

ROOT = Path(ckptconv.__file__).parent.parent

# construction -> how to write it instead
IN_ALL_TEXT = {
    r"\bleave \S+ (\S+ )?away\b": "remove --flag",
    r"(?<!there )\b(?:is|was) no (?:table|text|order|number|tensor|zip|picture|model folder|list|JSON)\b": "is not a ...",
    r"(?<!there )\bare no (?:numbers|texts|tensors|files)\b": "are not ...",
    r"\ban? (?:file|task|line|page|bar|thread) an? (?:rank|task|tensor|file|step|phase|command|core)\b": "one ... per ...",
    r"(?<!there )\bis no file\b": "is not a file",
    r"\bthere is no order by\b": "cannot sort by",
    r"\btensors? alone are\b": "only ... are",
    r"\bmerged model speaks\b": "generates text",
    r"\bturned round\b": "reversed",
}
# These are fine in a comment, not in what a command prints.
IN_MESSAGES = {
    r"\blies? beside\b": "is next to",
    r"\b(?:is|are|was) not told\b": "is not reported",
    r"\b(?:is|are) (?:said(?! to)|told)\b": "is reported",
    r"\bthat it has not\b": "that does not exist",
    r"\bnothing was sent\b": "nothing was uploaded",
    r"\bgoes on where it stopped\b": "run it again to resume",
    r"\bname the folder\b.*--config": "pass --config DIR",
    r"\b(?:is|are) there (?:twice|already)\b": "exists already; two files of ...",
    r"\bmeant so\b": "intended",
    r"\band its like\b": "and similar ...",
}
IN_DOCSTRINGS = {
    r"\b(?-i:Raises) (?:a )?(?:CkptconvError|Incomplete)\b": "a section `Raises:` with one line per error",
    r"\b\w+: of (?:the|a|each)\b": "name: the name of ...",
}


def documents() -> list[Path]:
    """README, CHANGELOG, CONTRIBUTING and every page in docs."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def sources() -> list[Path]:
    """Every module of the package."""
    return sorted((ROOT / "ckptconv").rglob("*.py"))


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """The string literals of a module that are not docstrings, with holes of f-strings as "X"."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):  # a docstring
            skipped.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            skipped.update(id(value) for value in node.values)
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(v.value if isinstance(v, ast.Constant) else "X" for v in node.values)  # type: ignore[misc]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """The docstrings of a module, its classes and its functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
            text := ast.get_docstring(node)
        ):
            yield getattr(node, "lineno", 1), text


def odd(text: str, patterns: dict[str, str]) -> list[str]:
    """Every match of a removed construction, with what to write instead."""
    flat = " ".join(text.split())
    return [
        f"{match[0]!r}: write {instead!r}"
        for pattern, instead in patterns.items()
        for match in re.finditer(pattern, flat, re.IGNORECASE)
    ]


def test_there_is_something_to_read() -> None:
    assert len(documents()) > 15
    assert sum(1 for path in sources() for _ in strings(path)) > 1000


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_the_documentation_has_no_construction_that_was_removed(path: Path) -> None:
    assert odd(path.read_text(encoding="utf-8"), IN_ALL_TEXT) == []


def test_no_message_has_a_construction_that_was_removed() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {problem}"
        for path in sources()
        for line, text in strings(path)
        for problem in odd(text, {**IN_ALL_TEXT, **IN_MESSAGES})
    ]
    assert found == []


def test_no_docstring_has_a_construction_that_was_removed() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {problem}"
        for path in sources()
        for line, text in docstrings(path)
        for problem in odd(text, {**IN_ALL_TEXT, **IN_DOCSTRINGS})
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "leave --base away",
        "leave --layout module away, and let transformers load the folder",
        "config.json is no table",
        "one shard, a file a rank",
        "a line a task",
        "the paddings are no numbers",
    ],
)
def test_the_patterns_find_the_sentences_that_were_removed(text: str) -> None:
    assert odd(text, IN_ALL_TEXT)


@pytest.mark.parametrize(
    "text",
    ["remove --base", "config.json is not a JSON object", "one file per rank", "there is no config.json"],
)
def test_the_patterns_leave_plain_sentences(text: str) -> None:
    assert not odd(text, {**IN_ALL_TEXT, **IN_MESSAGES})
