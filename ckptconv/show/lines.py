"""Breaks lines for a terminal: words with a hanging indent, commands so that they can be pasted, names in their middle."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

_LEAST = 24  # columns for words, on a terminal however narrow
_WORD = re.compile(r"\s*\S+\s*")
_GAP = "…"


class Hanging(NamedTuple):
    """A line that continues below with an indent. A word is never broken; with `soft_wrap`, nothing is.

    Args:
        text: the line; line breaks in it are kept.
        indent: columns before each line but the first.
    """

    text: Text
    indent: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = None if options.no_wrap else max(options.max_width, _LEAST + self.indent)
        for number, line in enumerate(self._lines(room)):
            whole = Text(" " * self.indent if number else "").append(line)
            whole.no_wrap, whole.overflow = True, "ignore"
            yield whole

    def _lines(self, room: int | None) -> Iterator[Text]:
        first = True
        for line in self.text.split("\n", allow_blank=True):
            for part in line.divide(_breaks(line.plain, room, 0 if first else self.indent, self.indent)):
                part.rstrip()
                yield part
                first = False


class Command(NamedTuple):
    """A command line. Where it is too long, a backslash ends each line but the last, so that it works when pasted.

    Args:
        text: the command, quoted for a shell.
        head: what is before it on its first line.
    """

    text: str
    head: Text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        indent = cell_len(self.head.plain)
        room = None if options.no_wrap else max(options.max_width - indent - 2, _LEAST)
        for number, line in enumerate(command_lines(self.text, room)):
            before = Text(" " * (indent + 2)) if number else Text().append_text(self.head)
            whole = before.append(line)
            whole.no_wrap, whole.overflow = True, "ignore"
            yield whole


class Name(NamedTuple):
    """A name in a table. Where its column is narrow, … stands for its middle."""

    text: str
    style: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(shortened(self.text, options.max_width), self.style, no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        width = cell_len(self.text)
        return Measurement(min(width, _LEAST), width).with_maximum(options.max_width)


def command_lines(text: str, room: int | None) -> list[str]:
    """A command line in lines of at most `room` columns, unless a word is longer. Quoted words are not broken."""
    lines = [""]
    for word in re.findall(r"(?:'[^']*'|\"[^\"]*\"|\S)+", text):
        # Two columns stay for the backslash and the space before it.
        if room is not None and lines[-1] and cell_len(lines[-1]) + cell_len(word) + 3 > room:
            lines[-1] += " \\"
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def shortened(name: str, room: int) -> str:
    """A name of at most `room` columns: its beginning, … and its end, which tells more."""
    if cell_len(name) <= room:
        return name
    end = max((room - len(_GAP)) * 2 // 3, 1)
    return set_cell_size(name, max(room - len(_GAP) - end, 0)) + _GAP + name[-end:]


def _breaks(plain: str, room: int | None, used: int, indent: int) -> list[int]:
    """Where a line is broken: offsets of the words that begin a new one. used: columns that are taken already."""
    found: list[int] = []
    if room is None:
        return found
    begun = False
    for word in _WORD.finditer(plain):
        if begun and used + cell_len(word[0].rstrip()) > room:
            found.append(word.start())
            used = indent
        used += cell_len(word[0])
        begun = True
    return found
