"""Makes files durable across a power cut, exchanges two folders atomically, and runs work that Ctrl-C cannot interrupt."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

_HERE = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE, renameat2(2)
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def exchange(a: Path, b: Path) -> bool:
    """Exchange two folders atomically. Returns False if the file system cannot (NFS).

    Raises:
        OSError: the exchange failed for another reason.
    """
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # not Linux
        return False
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if call(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(a))


def fsync_tree(folder: Path) -> None:
    """fsync every folder and every small file under a folder. Weights were synced when they were complete."""
    for path in folder.rglob("*"):
        if path.is_dir():
            fsync_folder(path)
        elif not path.name.endswith(".safetensors"):
            fsync_file(path)
    fsync_folder(folder)


def fsync_file(path: Path) -> None:
    """fsync one file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_folder(folder: Path) -> None:
    """fsync a folder, so that its entries survive a power cut. File systems without this are ignored."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def undisturbed(do: Callable[[], None]) -> None:
    """Run `do` to completion with SIGINT and SIGTERM ignored, and SIGALRM, by which `__main__` asks for one of them again.

    `do` must be idempotent: it is started again if a signal arrives before the signals are ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        return do()  # Python raises KeyboardInterrupt only in the main thread
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    heard = {number: signal.getsignal(number) for number in stops}
    while True:
        try:
            for number in heard:
                signal.signal(number, signal.SIG_IGN)
            return do()
        except KeyboardInterrupt:  # the signal came before it was ignored
            continue
        finally:
            for number, handler in heard.items():
                signal.signal(number, handler or signal.SIG_DFL)
