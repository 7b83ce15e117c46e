"""The one error type, and the exit codes that the command line makes of it."""

from __future__ import annotations

from enum import IntEnum


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
        self.where = None if where is None else str(where)
        self.found = None if found is None else str(found)
        self.wanted = None if wanted is None else str(wanted)
        self.hint = hint
        self.code = code

    def rows(self) -> list[tuple[str, str]]:
        """The parts under the first line, as (label, text), empty ones left out."""
        pairs = (("in", self.where), ("found", self.found), ("want", self.wanted), ("hint", self.hint))
        return [(label, text) for label, text in pairs if text]

    def __str__(self) -> str:
        return "\n".join([self.what, *(f"  {label:<6} {text}" for label, text in self.rows())])


class Incomplete(CkptconvError):
    """A checkpoint of which a part is not here. `inspect` answers "no" to it; a merge cannot be done."""
