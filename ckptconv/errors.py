"""The one error type, and the exit codes that the command line makes of it."""

from __future__ import annotations

import errno
from enum import IntEnum

_MOST = 64  # items of a list that an error shows
_LONGEST = 4000  # characters


class ExitCode(IntEnum):
    """What a command's end means; the same for every command."""

    OK = 0
    NO = 1  # the answer is no: differs, incomplete
    FAILED = 2  # could not answer: usage, unreadable, network
    INTERRUPTED = 130


class CkptconvError(Exception):
    """A refusal that a user can act on.

    what: one sentence, what is wrong. where: the file or tensor. found, wanted: what lies there against what
    should. hint: one line of what to do. code: the exit code a command ends with.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        wanted: object = None,
        hint: str | None = None,
        code: ExitCode = ExitCode.FAILED,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else brief(where)
        self.found = None if found is None else brief(found)
        self.wanted = None if wanted is None else brief(wanted)
        self.hint = hint
        self.code = code

    def rows(self) -> list[tuple[str, str]]:
        """The parts under the first line, as (label, text), empty ones left out."""
        pairs = (("in", self.where), ("found", self.found), ("want", self.wanted), ("hint", self.hint))
        return [(label, text) for label, text in pairs if text]

    def __str__(self) -> str:
        return "\n".join([self.what, *(f"  {label:<6} {text}" for label, text in self.rows())])


def brief(value: object, depth: int = 2) -> str:
    """Something from a file as a text of bounded length: it may be lists in lists that fold up, or a million digits."""
    if isinstance(value, list | tuple) and type(value).__str__ is object.__str__:
        inside = [brief(item, depth - 1) for item in value[:_MOST]] if depth else []
        inside += ["…"] if len(inside) < len(value) else []
        text = f"[{', '.join(inside)}]" if isinstance(value, list) else f"({', '.join(inside)})"
    elif isinstance(value, dict | set | frozenset):
        text = f"a {type(value).__name__} of {len(value)}"
    elif isinstance(value, int) and value.bit_length() > 1000:
        text = f"a number of {value.bit_length():,} bits"
    else:
        text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


class Incomplete(CkptconvError):
    """A checkpoint of which a part is not here. `inspect` answers "no" to it; a merge cannot be done."""


def cannot_write(where: object, error: OSError) -> CkptconvError:
    """The error for a write that the system refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CkptconvError("the disk is full", where=where, hint="free space or choose another target")
    return CkptconvError(f"cannot be written: {error.strerror or error}", where=where)
