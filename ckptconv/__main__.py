"""The entry point: runs a command and turns whatever happens into one message and an exit code."""

from __future__ import annotations

import gc
import os
import sys

from ckptconv.errors import CkptconvError, ExitCode


def main() -> None:
    """`ckptconv` and `python -m ckptconv`."""
    _open_streams()
    debug = bool(os.environ.get("CKPTCONV_DEBUG"))
    # Millions of small records and hardly a cycle: half of a large plan's time went to the collector.
    gc.set_threshold(200_000, 20, 20)
    # numpy would start a thread a core for its products; we have a worker a core already.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from ckptconv.cli import app

        app(prog_name="ckptconv")
    except CkptconvError as error:
        if debug:
            raise
        _show(error)
        sys.exit(int(error.code))
    except SystemExit as end:  # typer turns Ctrl-C into exit code 130 without a word
        if end.code == int(ExitCode.INTERRUPTED):
            print("Stopped. Nothing was left behind.", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("Stopped. Nothing was left behind.", file=sys.stderr)
        sys.exit(int(ExitCode.INTERRUPTED))
    except BrokenPipeError:  # `ckptconv inspect … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(int(ExitCode.OK))
    except OSError as error:
        if debug:
            raise
        _show(CkptconvError(f"{error.strerror or error} (from the operating system)", where=error.filename))
        sys.exit(int(ExitCode.FAILED))
    except Exception as error:
        if debug:
            raise
        what = f"{type(error).__name__}: {error}"
        _show(
            CkptconvError(
                f"unexpected error (a bug in ckptconv): {what}",
                hint="run again with CKPTCONV_DEBUG=1 for the traceback, and please report it",
            )
        )
        sys.exit(int(ExitCode.FAILED))


def _open_streams() -> None:
    """A closed stdout or stderr (`>&-`) becomes /dev/null: else the first file that is written would be taken for it."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _show(error: CkptconvError) -> None:
    from ckptconv.show.sink import Sink

    Sink(as_json="--json" in sys.argv[1:]).error(error)


if __name__ == "__main__":
    main()
