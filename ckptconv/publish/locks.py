"""A lock that one process holds at a time. The system releases it when the process ends, even if it is killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ckptconv.errors import CkptconvError, Kind, cannot_write


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock on a file, which is created together with its folder.

    Yields True if this process holds the lock, False if another one does. The holder may remove the file and the folder.

    Raises:
        CkptconvError: the folder cannot be written, or its file system has no locks.
    """
    handle = _open(path)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def _open(path: Path) -> int | None:
    """The handle of the locked file, or None if another process holds it.

    If the last holder removed the file after we opened it and before we locked it, we try again.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise cannot_write(path.parent.parent, error) from error
        try:
            is_ours = _take(handle, path)
        except BaseException:
            os.close(handle)
            raise
        if is_ours:
            return handle
        os.close(handle)
        if is_ours is None:
            return None


def _take(handle: int, path: Path) -> bool | None:
    """True if we hold the lock now, None if another process holds it, False if the file was removed."""
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
            kind=Kind.TARGET,
        ) from error
