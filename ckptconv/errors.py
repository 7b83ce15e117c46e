"""The one error type, and the exit codes that the command line makes of it."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
from collections.abc import Sequence
from enum import Enum, IntEnum
from pathlib import Path

_MOST = 64  # items of a list that an error shows
_LONGEST = 4000  # characters


class ExitCode(IntEnum):
    """What a command's end means; the same for every command."""

    OK = 0
    NO = 1  # the answer is no: differs, incomplete
    FAILED = 2  # could not answer: usage, unreadable, network
    INTERRUPTED = 130


class Kind(Enum):
    """What sort of refusal an error is, for callers that react to it."""

    USAGE = "usage"  # an argument that is missing or not accepted, or two that contradict each other
    NOT_A_CHECKPOINT = "not_a_checkpoint"  # nothing here, or nothing that ckptconv knows
    INCOMPLETE = "incomplete"  # a part of the checkpoint is not here (yet)
    DAMAGED = "damaged"  # files that contradict each other or cannot be read
    UNSUPPORTED = "unsupported"  # known, and not convertible
    DOES_NOT_FIT = (
        "does_not_fit"  # the tensors are not the model that the config describes, or that was asked for
    )
    TARGET = "target"  # where the output should go: it exists, it is full, it is in use
    ENVIRONMENT = "environment"  # the disk, the network, the Hub, a library
    BUG = "bug"  # a defect in ckptconv
    OTHER = "other"


class CkptconvError(Exception):
    """A refusal that a user can act on.

    Args:
        what: one sentence, what is wrong.
        where: the file or tensor.
        found: what is there.
        wanted: what should be there.
        hint: one line of what to do.
        code: the exit code that a command ends with.
        kind: what sort of refusal it is.

    Example:
        >>> try:
        ...     ckptconv.merge("run", "model")
        ... except ckptconv.CkptconvError as error:
        ...     if error.kind is ckptconv.Kind.INCOMPLETE:
        ...         retry_later()
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
        kind: Kind = Kind.OTHER,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else brief(where)
        self.found = None if found is None else brief(found)
        self.wanted = None if wanted is None else brief(wanted)
        self.hint = hint
        self.code = code
        self.kind = kind

    def within(
        self,
        *,
        what: str | None = None,
        inside: object = None,
        where: object = None,
        hint: str | None = None,
        kind: Kind | None = None,
    ) -> CkptconvError:
        """The same error as a caller further out reports it: `raise error.within(where=folder) from error`.

        Args:
            what: a sentence to put before this error's own.
            inside: the part (a tensor, a member) to put before `where`: "NAME in FILE".
            where: the file or folder, where the error does not name one itself.
            hint: what to do, where the error does not say so itself.
            kind: what sort of refusal it is, where the error does not say so itself.
        """
        outer = copy.copy(self)
        if what is not None:
            outer.what = f"{what}: {self.what}"
            outer.args = (outer.what,)
        outer.where = self.where if self.where is not None or where is None else brief(where)
        if inside is not None:
            outer.where = f"{brief(inside)} in {outer.where}" if outer.where else brief(inside)
        outer.hint = self.hint or hint
        outer.kind = kind if kind is not None and self.kind is Kind.OTHER else self.kind
        return outer

    def adding(self, hint: str) -> CkptconvError:
        """The same error with one more thing to do."""
        outer = copy.copy(self)
        outer.hint = f"{self.hint}; {hint}" if self.hint else hint
        return outer

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


def listed(names: Sequence[object], most: int = 3) -> str:
    """The first names of a list, and how many more there are: "a, b, c and 4 more"."""
    more = len(names) - most
    return ", ".join(map(str, names[:most])) + (f" and {more:,} more" if more > 0 else "")


class Incomplete(CkptconvError):
    """A checkpoint of which a part is not here. `inspect` answers "no" to it; a merge cannot be done."""

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        wanted: object = None,
        hint: str | None = None,
        code: ExitCode = ExitCode.FAILED,
        kind: Kind = Kind.INCOMPLETE,
    ) -> None:
        super().__init__(what, where=where, found=found, wanted=wanted, hint=hint, code=code, kind=kind)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a merge that keeps complete files for the next run.

    Args:
        folder: where they are.
        files: how many.
        nbytes: their bytes.
    """

    def __init__(self, folder: Path, files: int, nbytes: int) -> None:
        super().__init__(folder, files, nbytes)
        self.folder, self.files, self.nbytes = folder, files, nbytes


def cannot_write(where: object, error: OSError) -> CkptconvError:
    """The error for a write that the system refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what, hint = _full(str(where), error.errno)
        return CkptconvError(what, where=where, hint=hint, kind=Kind.TARGET)
    return CkptconvError(f"cannot be written: {error.strerror or error}", where=where, kind=Kind.TARGET)


def _full(where: str, number: int) -> tuple[str, str]:
    """What is used up, and what helps: bytes, a quota, or the file system's table of files."""
    if number == errno.EDQUOT:
        return (
            "your quota on this disk is used up",
            "free space (`quota -s` shows it) or choose another target",
        )
    folder = where
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    with contextlib.suppress(OSError):
        now = os.statvfs(folder)
        if now.f_files and not now.f_favail and now.f_bavail:
            return (
                "the disk has room but no inodes left",
                "remove files (`df -i` counts them) or choose another target",
            )
    return "the disk is full", "free space or choose another target"
