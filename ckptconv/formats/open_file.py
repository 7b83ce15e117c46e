"""Opens a file, or an object in a store, and reads ranges of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.far import Handle
from ckptconv.tensors.stored_file import far_of


@contextmanager
def opened(path: str, kind: str = "a torch.save file") -> Iterator[Handle]:
    """Open a regular file, or an object in a store, for reading.

    Args:
        path: the file.
        kind: what it should be, for the error message.

    Raises:
        CkptconvError: it cannot be read, or is a folder, pipe or device.
    """
    far = far_of(path)
    if far is not None:
        yield far
        return
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for a writer
    except OSError as error:
        raise CkptconvError(
            f"cannot be read: {error.strerror or error}", where=path, kind=Kind.ENVIRONMENT
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise CkptconvError(
                f"not {kind}, but a folder, a pipe or a device", where=path, kind=Kind.DAMAGED
            )
        yield handle
    finally:
        os.close(handle)


def read_at(handle: Handle, nbytes: int, offset: int, path: str) -> bytes:
    """Read bytes at an offset of a file; fewer at its end. One pread may return fewer, so it is repeated.

    Raises:
        CkptconvError: the file cannot be read.
    """
    if not isinstance(handle, int):
        return handle.read(offset, nbytes)
    data = b""
    try:
        while len(data) < nbytes:
            more = os.pread(handle, nbytes - len(data), offset + len(data))
            if not more:
                break
            data = data + more if data else more
    except OSError as error:
        raise CkptconvError(
            f"cannot be read: {error.strerror or error}", where=path, kind=Kind.ENVIRONMENT
        ) from error
    return data
