"""The one place that writes to stdout and stderr, in three modes: for people, as JSON, and quiet.

stdout is the result and nothing else; progress, findings and hints go to stderr. Nothing here formats a command's
result: `show/COMMAND.py` does.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from ckptconv.errors import CkptconvError

OK, NO, WARN = "✓", "✗", "!"


class Sink:
    """Where a command's result, notes and errors go."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.out = _console(sys.stdout)
        self.err = _console(sys.stderr)

    @property
    def live(self) -> bool:
        """True when a bar may be drawn: a person looks at a terminal."""
        return self.err.is_terminal and not (self.quiet or self.as_json) and os.environ.get("TERM") != "dumb"

    def result(self, shown: RenderableType, record: Any, quiet: str = "") -> None:
        """The result: rendered for people, the record as JSON, or one line."""
        if self.as_json:
            sys.stdout.write(json.dumps(plain(record), indent=1) + "\n")
        elif self.quiet:
            if quiet:
                sys.stdout.write(quiet + "\n")
        else:
            self.out.print(shown, soft_wrap=isinstance(shown, Text))  # a path stays in one piece

    def phase(self, word: str, text: str) -> None:
        """One line of what is being done: `Reading   Megatron tp 2 × pp 2`."""
        if not (self.quiet or self.as_json):
            self.err.print(Text.assemble((f"{word:<9} ", "bold"), text), soft_wrap=True)

    def note(self, text: str) -> None:
        """A finding that a person should see; not in quiet mode."""
        if not self.quiet:
            self.err.print(Text.assemble((f"{WARN} ", "yellow"), text), soft_wrap=True)

    def error(self, error: CkptconvError) -> None:
        """One error: what, where, found, wanted, hint."""
        if self.as_json:
            fields = {
                "what": error.what,
                **dict(error.rows()),
                "code": int(error.code),
            }
            sys.stdout.write(json.dumps({"error": fields}, indent=1) + "\n")
        lines = [Text.assemble(("error: ", "bold red"), error.what)]
        lines += [Text.assemble((f"  {label:<6} ", "dim"), text) for label, text in error.rows()]
        for line in lines:
            self.err.print(line, soft_wrap=True)


def plain(value: Any) -> Any:
    """Dataclasses, paths and tuples as JSON has them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Path | bytes):
        return str(value)
    return value


def _console(stream: Any) -> Console:
    return Console(file=stream, highlight=False, emoji=False, markup=False)
