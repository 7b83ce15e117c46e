"""One process at a time: a lock that the system lets go of when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ckptconv.errors import CkptconvError, cannot_write


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock on a file, which is made with its folder; False where another process holds it.

    Whoever holds it may remove file and folder. Raises CkptconvError where that folder cannot be written.
    """
    handle = _open(path)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def _open(path: Path) -> int | None:
    """The locked file, or None. Once more where its last holder removed it between the opening and the lock."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise cannot_write(path.parent.parent, error) from error
        try:
            held = _take(handle, path)
        except BaseException:
            os.close(handle)
            raise
        if held:
            return handle
        os.close(handle)
        if held is None:
            return None


def _take(handle: int, path: Path) -> bool | None:
    """True where the lock is ours now, None where it is another's, False where the file is not there any more."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), path.stat())
    except BlockingIOError:
        return None
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CkptconvError(
            f"this file system has no locks ({error.strerror}), so two merges could mix here",
            where=path.parent.parent,
            hint="choose a target on another disk, or have it mounted with locks (Lustre: -o flock)",
        ) from error
