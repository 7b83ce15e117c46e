"""Reads the stored files: a bounded number of them is open, and a short read is continued or reported."""

from __future__ import annotations

import errno
import resource
import threading
from collections import OrderedDict

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.look import open_file
from ckptconv.tensors.storage import OpenFile
from ckptconv.tensors.stored_file import StoredFile, far_of

_OPEN_FILES = 128  # per thread
_OTHERS = 64  # files that are not open for reading: output, libraries, streams


class Files:
    """Fills memory from files. Each thread has its own.

    Args:
        drop_behind: tell the kernel to drop pages from its cache once they were read, so that it does not have to search
            for pages to evict while the output is written. Use it for checkpoints that do not fit in memory.
    """

    def __init__(self, drop_behind: bool = False) -> None:
        self.drop = drop_behind
        self._open_files: OrderedDict[str, OpenFile] = OrderedDict()

    def close(self) -> None:
        """Close all files."""
        self._keep(0)

    def fill(self, file: str, start: int, memory: memoryview, keep: bool = False) -> None:
        """Read from a file until `memory` is full.

        Args:
            file: the path.
            start: the byte of the file to begin at.
            memory: where the bytes go.
            keep: do not drop these pages, since other bytes in them will be read later.

        Raises:
            CkptconvError: the file cannot be read, ends too early, or has another tensor there than the plan computed.
        """
        found = self._open_files.get(file) or far_of(file) or self._open(file)
        if isinstance(file, StoredFile):
            file.check(found, start)
        want = len(memory)
        got = found.fill(start, memory)
        if got < want:
            raise _too_short(file, start + got, start + want)
        if self.drop and not keep:
            found.drop(start, want)

    def forget(self, file: str, start: int, nbytes: int) -> None:
        """Let the kernel drop the whole pages in this range of bytes, if the file is open."""
        found = self._open_files.get(file)
        if found is not None:
            found.drop(start, nbytes)

    def _open(self, file: str) -> OpenFile:
        self._keep(_share() - 1)
        try:
            found = open_file(file)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and self._open_files:
                self._keep(len(self._open_files) // 2)
                return self._open(file)
            raise CkptconvError(
                f"cannot be opened: {error.strerror}",
                where=file,
                hint="raise the limit: ulimit -n 4096" if error.errno == errno.EMFILE else None,
                kind=Kind.ENVIRONMENT,
            ) from error
        self._open_files[file] = found
        return found

    def _keep(self, most: int) -> None:
        """Close the files that were opened first, until at most so many are open."""
        while len(self._open_files) > most:
            self._open_files.popitem(last=False)[1].close()


def _too_short(file: str, found: int, wanted: int) -> CkptconvError:
    return CkptconvError(
        "the file ends before its tensors do",
        where=file,
        found=f"{found:,} bytes",
        wanted=f"at least {wanted:,}",
        hint="it was truncated, or changed while it was read",
        kind=Kind.DAMAGED,
    )


def _share() -> int:
    """How many files one thread may keep open: its part of the process's limit, without what the output and Python need."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return _OPEN_FILES
    return max(1, min(_OPEN_FILES, (limit - _OTHERS) // threading.active_count()))
