"""What a reader may do with an input: read files in one folder, in bounded time and memory. Anything else is a finding."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ckptconv
from ckptconv.errors import CkptconvError

SECONDS = 10.0  # for one input; the machine may be busy
GROWTH = 256 << 20  # bytes that one input may add to the process
SPACE = 4 << 30  # of addresses, for the whole process
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_LISTS = {"os.listdir", "os.scandir", "os.walk", "os.fwalk"}
_HARMLESS = {
    *("_thread.start_new_thread", "_thread.start_joinable_thread", "time.sleep", "object.__getattr__"),
    *("pathlib.Path.glob", "pathlib.Path.rglob", "glob.glob", "glob.glob/2", "sys._getframe"),
    *("builtins.id", "array.__new__"),
}


class Hang(BaseException):
    """Raised in an input that takes too long; no `except Exception` holds it up."""


class Forbidden(BaseException):
    """Raised in an input that does what no reader may."""


@dataclass
class Finding:
    """An input that ended in something else than success or CkptconvError."""

    target: str
    kind: str
    where: str
    detail: str
    data: bytes


@dataclass
class Guard:
    """Runs inputs, one after another. folder: where files may be read."""

    folder: Path
    findings: dict[tuple[str, str, str], Finding] = field(default_factory=dict)
    refused: int = 0
    read: int = 0
    _armed: bool = False
    _seen: list[str] = field(default_factory=list)

    def install(self) -> None:
        """For the rest of the process: hooks and limits cannot be taken back."""
        resource.setrlimit(resource.RLIMIT_AS, (SPACE, resource.getrlimit(resource.RLIMIT_AS)[1]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self.watch()

    def watch(self) -> None:
        """The audit hook alone."""
        self._root = os.path.realpath(self.folder) + os.sep
        self._tables = os.path.join(os.path.dirname(ckptconv.__file__), "models", "")
        sys.addaudithook(self._audit)

    def run(self, target: str, data: bytes, call: Callable[[], object]) -> None:
        """One input. Whatever it does wrong becomes a finding, once for each place in the code."""
        before = _peak()
        self._seen.clear()
        failure: BaseException | None = None
        try:
            with self._limits():
                self._armed = True
                try:
                    call()
                    self.read += 1
                finally:
                    self._armed = False
        except CkptconvError:
            self.refused += 1
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            failure = error
        for said in self._seen:
            self._found(target, "forbidden", said, said, data)
        if failure is not None and not isinstance(failure, Forbidden):
            lines = "".join(traceback.format_exception(failure)[-14:])
            self._found(target, type(failure).__name__, _place(failure), lines, data)
        if _peak() - before > GROWTH:
            self._found(target, "memory", f"{(_peak() - before) >> 20} MiB", "", data)

    def _found(self, target: str, kind: str, where: str, detail: str, data: bytes) -> None:
        key = (target.split("/")[0], kind, where if kind != "memory" else "")
        self.findings.setdefault(key, Finding(target, kind, where, detail, data))

    @contextmanager
    def _limits(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGALRM, _hang)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        faulthandler.dump_traceback_later(6 * SECONDS, exit=True)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGALRM, previous)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._armed or event in _HARMLESS or (event == "mmap.__new__" and args[0] == -1):
            return  # an mmap of -1 is memory, and no file
        if event == "open" and not isinstance(args[0], int):
            path, _, flags = args
            if not (flags or 0) & _WRITES and (self._is_inside(path) or self._is_table(path)):
                return
        elif event in _LISTS and self._is_inside(args[0] or "."):
            return
        self._seen.append(f"{event} {[str(arg)[:200] for arg in args[:2]]}")
        raise Forbidden(event)

    def _is_table(self, path: Any) -> bool:
        """True for the tables that ship with ckptconv and with transformers, which are read when they are needed."""
        return os.fsdecode(path).startswith(self._tables) or "/transformers/models/auto/" in os.fsdecode(path)

    def _is_inside(self, path: Any) -> bool:
        return (os.path.realpath(os.fsdecode(path)) + os.sep).startswith(self._root)


def _hang(*_: object) -> None:
    raise Hang


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _place(error: BaseException) -> str:
    """The innermost line of ckptconv."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "ckptconv" in f.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
