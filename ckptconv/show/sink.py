"""The only module that writes to stdout and stderr, in three modes: for people, as JSON, and quiet.

stdout gets only the result; progress, notes and hints go to stderr. `show/COMMAND.py` formats the result of a command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from ckptconv.errors import CkptconvError
from ckptconv.show.lines import Command, Hanging

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
SCHEMA = 1  # of the JSON documents; docs/reference.md says when it grows
_ENDLESS = 10_000  # columns where no terminal has a width
# A hint that is a command or ends in one: a line break inside it would be pasted as well.
_TYPED = re.compile(r"(?:^|[:,(] ?(?:then:? )?)(?:ckptconv|hf|pip|df|rm|HF_HUB_OFFLINE=0) ")
_INDENT = 10  # columns before the text of a phase
OK, NO, WARN = "✓", "✗", "!"


class Sink:
    """Where a command's result, notes and errors go."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.out = _console(sys.stdout)
        self.err = _console(sys.stderr)

    @property
    def live(self) -> bool:
        """True if stderr is a terminal on which a bar may be drawn."""
        return self.err.is_terminal and not (self.quiet or self.as_json) and os.environ.get("TERM") != "dumb"

    def result(self, shown: RenderableType, record: Any, quiet: str = "") -> None:
        """Print the result in the form that the mode asks for.

        Args:
            shown: the screen for people.
            record: plain data for JSON.
            quiet: one line for the quiet mode.
        """
        if self.as_json:
            data = plain(record)
            self.out.text(
                json.dumps({"schema": SCHEMA, **data} if isinstance(data, dict) else data, indent=1)
            )
        elif self.quiet:
            if quiet:
                self.out.text(printable(quiet))
        elif isinstance(shown, Text):
            self.out.say(Hanging(shown, 2))
        elif self.out.is_terminal or os.environ.get("COLUMNS"):
            self.out.print(shown, crop=False)  # commands and paths are not cut
        else:  # a file or a pipe: nothing is wrapped, so that names stay whole for grep
            width, self.out.width = self.out.width, _ENDLESS
            with self.out.capture() as captured:
                self.out.print(shown)
            self.out.width = width
            self.out.text("\n".join(line.rstrip() for line in captured.get().splitlines()))

    def phase(self, word: str, text: str) -> None:
        """Print a line on the current phase: `Reading   Megatron tp 2 × pp 2`."""
        if not (self.quiet or self.as_json):
            self._say(Hanging(Text.assemble((f"{word:<9} ", "bold"), text), _INDENT))

    def command(self, word: str, text: str) -> None:
        """Print a command to type, quoted for a shell: `Next      ckptconv verify OUT`."""
        if not (self.quiet or self.as_json):
            self._say(Command(text, Text(f"{word:<9} ", "bold")))

    def note(self, text: str) -> None:
        """Print a note for the user, except in quiet mode."""
        if not self.quiet:
            self._say(Hanging(Text.assemble((f"{WARN} ", "yellow"), text), 2))

    def detail(self, text: str) -> None:
        """Print a line that the user asked for with --verbose."""
        self._say(Hanging(Text(f"  {text}", "dim"), 4))

    def error(self, error: CkptconvError) -> None:
        """Print an error: what, where, found, wanted, hint."""
        if self.as_json:
            fields = {
                "what": error.what,
                **dict(error.rows()),
                "code": int(error.code),
                "kind": error.kind.value,
            }
            self.out.text(json.dumps({"schema": SCHEMA, "error": fields}, indent=1))
        self.err.say(Hanging(Text.assemble(("error: ", "bold red"), error.what), len("error: ")))
        for label, text in error.rows():
            line = Hanging(Text.assemble((f"  {label:<6} ", "dim"), text), _INDENT - 1)
            self.err.say(line, whole=label == "hint" and _TYPED.search(text) is not None)

    def _say(self, line: Hanging | Command) -> None:
        with contextlib.suppress(OSError):  # a log on a full disk must not stop the work
            self.err.say(line)


def plain(value: Any) -> Any:
    """Convert records, paths and tuples to plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):  # a NamedTuple
        return {name: plain(item) for name, item in value._asdict().items()}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Path | bytes):
        return str(value)
    return value


class _Stream(Console):
    """stdout or stderr. When the reader of a pipe has gone (`| head`), output is discarded and the work goes on."""

    def say(self, line: Hanging | Command, whole: bool = False) -> None:
        """Print a line, broken between words on a terminal, and nowhere off one. whole: nowhere on one either."""
        self.print(line, soft_wrap=whole or not self.is_terminal, crop=False)

    def text(self, text: str) -> None:
        """Write one line unchanged."""
        try:
            self.file.write(text + "\n")
            self.file.flush()
        except BrokenPipeError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render with rich, and escape control characters that come from files."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def printable(text: str) -> str:
    """The text with control codes and bidirectional marks escaped, so that a terminal shows them."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def _console(stream: Any) -> _Stream:
    return _Stream(file=stream, highlight=False, emoji=False, markup=False)
