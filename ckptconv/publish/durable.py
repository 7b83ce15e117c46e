"""Names that outlive a power cut, two folders that change places in one step, and work that Ctrl-C does not cut off."""

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
    """Let two folders change places, at once for everybody who looks; False where the file system cannot (NFS)."""
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
    """Have every small file and every name under a folder on the disk; weights are synced as they finish."""
    for path in folder.rglob("*"):
        if path.is_dir():
            fsync_folder(path)
        elif not path.name.endswith(".safetensors"):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    fsync_folder(folder)


def fsync_folder(folder: Path) -> None:
    """Have a folder's names on the disk, where its file system knows how."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def undisturbed(do: Callable[[], None]) -> None:
    """Run `do` to completion with SIGINT and SIGTERM ignored.

    `do` must be idempotent: it is started again if a signal arrives before the signals are ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        return do()  # Python raises KeyboardInterrupt in the main thread alone
    heard = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    while True:
        try:
            for number in heard:
                signal.signal(number, signal.SIG_IGN)
            return do()
        except KeyboardInterrupt:  # it came before the signal was ignored
            continue
        finally:
            for number, handler in heard.items():
                signal.signal(number, handler or signal.SIG_DFL)
