"""Reads the stored files: a bounded number of them is open, and a short read is continued or reported."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import OrderedDict

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.far import FarFile
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
        self.drop = drop_behind and hasattr(os, "posix_fadvise")
        self._handles: OrderedDict[str, int] = OrderedDict()

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
        handle: int | FarFile | None = self._handles.get(file)
        if handle is None:
            handle = self._open(file)
        if isinstance(file, StoredFile):
            file.check(handle, start)
        if not isinstance(handle, int):
            _fill_from_store(handle, file, start, memory)
            return
        want, got = len(memory), 0
        while got < want:
            try:
                n = os.preadv(handle, [memory[got:] if got else memory], start + got)
            except OSError as error:
                raise CkptconvError(
                    f"cannot be read: {error.strerror}", where=file, kind=Kind.ENVIRONMENT
                ) from error
            if not n:
                raise _too_short(file, start + got, start + want)
            got += n
        if self.drop and not keep:
            self.forget(file, start, want)

    def forget(self, file: str, start: int, nbytes: int) -> None:
        """Let the kernel drop the whole pages in this range of bytes, if the file is open."""
        handle = self._handles.get(file)
        if handle is not None:
            os.posix_fadvise(handle, start, nbytes, os.POSIX_FADV_DONTNEED)

    def _open(self, file: str) -> int | FarFile:
        far = far_of(file)
        if far is not None:
            return far
        self._keep(_share() - 1)
        try:
            handle = os.open(file, os.O_RDONLY)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and self._handles:
                self._keep(len(self._handles) // 2)
                return self._open(file)
            raise CkptconvError(
                f"cannot be opened: {error.strerror}",
                where=file,
                hint="raise the limit: ulimit -n 4096" if error.errno == errno.EMFILE else None,
                kind=Kind.ENVIRONMENT,
            ) from error
        self._handles[file] = handle
        return handle

    def _keep(self, most: int) -> None:
        """Close the files that were opened first, until at most so many are open."""
        while len(self._handles) > most:
            os.close(self._handles.popitem(last=False)[1])


def _fill_from_store(far: FarFile, file: str, start: int, memory: memoryview) -> None:
    got = far.fill(start, memory)
    if got < len(memory):
        raise _too_short(file, start + got, start + len(memory))


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
