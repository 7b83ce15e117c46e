"""The stored files while they are read: a bounded number of them open, every short read gone on with or named."""

from __future__ import annotations

import os
from collections import OrderedDict

from ckptconv.errors import CkptconvError

_OPEN_FILES = 128


class Files:
    """Fills memory from files. One per thread.

    drop_behind: tell the kernel that what was read will not be read again, so that it need not look for pages to
    give up while the output is written. For what does not fit in memory anyway.
    """

    def __init__(self, drop_behind: bool = False) -> None:
        self.drop = drop_behind and hasattr(os, "posix_fadvise")
        self._handles: OrderedDict[str, int] = OrderedDict()

    def close(self) -> None:
        while self._handles:
            os.close(self._handles.popitem()[1])

    def fill(self, file: str, start: int, memory: memoryview, keep: bool = False) -> None:
        """All of `memory` from a byte of a file. keep: there is more in these pages, which will be read later."""
        handle = self._handles.get(file)
        if handle is None:
            handle = self._open(file)
        want, got = len(memory), 0
        while got < want:
            try:
                n = os.preadv(handle, [memory[got:] if got else memory], start + got)
            except OSError as error:
                raise CkptconvError(f"cannot be read: {error.strerror}", where=file) from error
            if not n:
                raise CkptconvError(
                    "the file ends before its tensors do",
                    where=file,
                    found=f"{start + got:,} bytes",
                    wanted=f"at least {start + want:,}",
                    hint="it was truncated, or changed while it was read",
                )
            got += n
        if self.drop and not keep:
            self.forget(file, start, want)

    def forget(self, file: str, start: int, nbytes: int) -> None:
        """Let the kernel give up these pages; only whole ones, and only of a file that is open."""
        if file in self._handles:
            os.posix_fadvise(self._handles[file], start, nbytes, os.POSIX_FADV_DONTNEED)

    def _open(self, file: str) -> int:
        if len(self._handles) >= _OPEN_FILES:
            os.close(self._handles.popitem(last=False)[1])
        try:
            handle = self._handles[file] = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise CkptconvError(f"cannot be opened: {error.strerror}", where=file) from error
        return handle
