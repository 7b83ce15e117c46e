"""Tells the kernel to begin writing a range to disk, so that the fsync of the complete file has little left to wait for.

Linux has sync_file_range(2) for this, which Python does not wrap. On other systems this does nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache

_WRITE = 2  # SYNC_FILE_RANGE_WRITE: start to write dirty pages without waiting for them


def begin(handle: int, offset: int, nbytes: int) -> None:
    """Start to write a range of a file to disk. It is a hint, so failures are ignored.

    Args:
        handle: the file descriptor.
        offset: the first byte.
        nbytes: the length of the range.
    """
    _call()(handle, offset, nbytes, _WRITE)


@lru_cache(maxsize=1)
def _call() -> Callable[[int, int, int, int], object]:
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError):
        return lambda *_: None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function  # type: ignore[no-any-return]
