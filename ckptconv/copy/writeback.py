"""Tell the kernel to begin writing a range to disk, so that the fsync at a file's end has little left to wait for.

Linux has sync_file_range(2) for this, and Python has no name for it. Elsewhere this does nothing, and fsync does it all.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache

_WRITE = 2  # SYNC_FILE_RANGE_WRITE: start writing dirty pages, wait for none


def begin(handle: int, offset: int, nbytes: int) -> None:
    """Start writing nbytes of a file from offset; a hint, so that a failure is no error."""
    _call()(handle, offset, nbytes, _WRITE)


@lru_cache(maxsize=1)
def _call() -> Callable[[int, int, int, int], object]:
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError):
        return lambda *_: None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function  # type: ignore[no-any-return]
