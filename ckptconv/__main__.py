"""The entry point: runs a command and turns whatever happens into one message and an exit code."""

from __future__ import annotations

import codecs
import contextlib
import gc
import io
import os
import resource
import signal
import sys
from types import FrameType

from ckptconv.errors import CkptconvError, ExitCode, Interrupted, Kind

_GLYPHS = dict(zip("✓✗×→↓…–·•█▓▒░▏▬━─│└├Δ", "+xx>v~-.*#%:.|==-|``d", strict=True))
_OPEN_FILES = 65536
_CALLBACKS = ("weakref.py", "_weakrefset.py")
# The words of the system and of Python where a limit of memory is met: mmap, threads, shared libraries.
_NO_MEMORY = ("Cannot allocate memory", "can't start new thread", "failed to map segment")


def main() -> None:
    """`ckptconv` and `python -m ckptconv`."""
    _open_streams()
    _listen()
    _raise_limit_of_files()
    debug = bool(os.environ.get("CKPTCONV_DEBUG"))
    # Millions of small records and hardly a cycle: half of a large plan's time went to the collector.
    gc.set_threshold(1_000_000, 50, 50)
    # numpy would start a thread a core for its products; we have a worker a core already.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from ckptconv.cli import app
        from ckptconv.cli.typos import with_dashes
        from ckptconv.cli.verl import with_command

        app(with_command(with_dashes(sys.argv[1:])), prog_name="ckptconv")
    except CkptconvError as error:
        if debug:
            raise
        _show(error)
        sys.exit(int(error.code))
    except SystemExit as end:  # typer turns Ctrl-C into exit code 130 without a word
        if end.code == int(ExitCode.INTERRUPTED):
            _show_stop(end)
        raise
    except KeyboardInterrupt as stop:
        _show_stop(stop)
        sys.exit(int(ExitCode.INTERRUPTED))
    except BrokenPipeError:  # `ckptconv inspect … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(int(ExitCode.OK))
    except Exception as error:
        if isinstance(
            error.__cause__, KeyboardInterrupt
        ):  # up to Python 3.11 an error in a class body is wrapped
            _show_stop(error.__cause__)
            sys.exit(int(ExitCode.INTERRUPTED))
        if debug:
            raise
        _show(_as_error(error))
        if _lacks_memory(error):
            _end(ExitCode.FAILED)
        sys.exit(int(ExitCode.FAILED))
    finally:
        gc.freeze()  # the process ends: it need not search all that was imported for cycles, which takes 35 ms


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def _end(code: ExitCode) -> None:
    """End the process at once: Python's own end needs memory, and has hung where a thread had not enough to begin or end."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(int(code))


def _as_error(error: Exception) -> CkptconvError:
    """The one message for an error that is not ours."""
    if _lacks_memory(error):
        return CkptconvError(
            "there is not enough memory, address space or room for threads for this process",
            found=f"{type(error).__name__}: {error}",
            hint="--workers 1 and a smaller --max-memory need less; `ulimit -v` and `ulimit -u` show the shell's limits",
            kind=Kind.ENVIRONMENT,
        )
    if isinstance(error, OSError):
        return CkptconvError(
            f"{error.strerror or error} (from the operating system)",
            where=error.filename,
            kind=Kind.ENVIRONMENT,
        )
    return CkptconvError(
        f"unexpected error (a bug in ckptconv): {type(error).__name__}: {error}",
        hint="run again with CKPTCONV_DEBUG=1 for the traceback, and please report it",
        kind=Kind.BUG,
    )


def _open_streams() -> None:
    """A closed stdout or stderr (`>&-`) becomes /dev/null: else the first file that is written would be taken for it."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    codecs.register_error("ckptconv", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="ckptconv")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Replaces what the encoding of a stream lacks, for codecs: one character per glyph of ours, else an escape."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_GLYPHS.get(glyph) or ascii(glyph)[1:-1] for glyph in text), error.end


def _listen() -> None:
    """Take SIGTERM, with which a scheduler stops a job, as Ctrl-C. A shell may have asked to ignore Ctrl-C: that stays."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, or ask again in 5 ms where Python would swallow it and might keep a lock for ever."""
    if not _swallows(frame):
        raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.005)


def _swallows(frame: FrameType | None) -> bool:
    """True inside the import system, in callbacks of weak references and in `__del__`: exceptions there are only printed."""
    innermost = True
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        importing = file.startswith("<frozen importlib")
        if name == "__del__" or (
            importing and name == "cb"
        ):  # cb: removes the lock of a module that was imported
            return True
        if innermost and (importing or os.path.basename(file) in _CALLBACKS):
            return True
        frame, innermost = frame.f_back, False
    return False


def _raise_limit_of_files() -> None:
    """Let this process open as many files as it may: the usual soft limit is 1,024, and a run has a file per rank."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit than the one that it reports
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _show_stop(end: BaseException) -> None:
    """Say what Ctrl-C left. A second one no longer changes how the process ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    cause: BaseException | None = end
    while cause is not None and not isinstance(cause, Interrupted):
        cause = cause.__cause__ or cause.__context__
    with contextlib.suppress(OSError):
        if cause is None:
            print("Stopped. Nothing was left behind.", file=sys.stderr)
            return
        files = "1 complete file" if cause.files == 1 else f"{cause.files:,} complete files"
        stays = "stays" if cause.files == 1 else "stay"
        print(f"Stopped. {files} ({cause.nbytes:,} bytes) {stays} for the next run.", file=sys.stderr)
        print(f"  in     {cause.folder}", file=sys.stderr)
        print("  hint   run the same command again to go on, or remove that folder", file=sys.stderr)


def _show(error: CkptconvError) -> None:
    from ckptconv.show.sink import Sink

    Sink(as_json="--json" in sys.argv[1:]).error(error)


if __name__ == "__main__":
    main()
