"""ckptconv inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ckptconv.cli import options as o


def command(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A run, step or role folder, or a model folder.")
    ],
    backend: o.Backend = None,
    step: o.Step = None,
    also: o.Also = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """What a checkpoint holds and which rank stores what, from metadata alone.

    Reads no tensor, so a terabyte answers as fast as a megabyte. Exit code 1 when it is not complete.

    Example: ckptconv inspect checkpoints/run --step 400
    """
    from ckptconv.commands.inspect import inspect
    from ckptconv.errors import ExitCode, Incomplete
    from ckptconv.show.inspect import screen
    from ckptconv.show.sink import Sink

    try:
        found = inspect(directory, backend=backend, step=step, also=also or ())
    except Incomplete as error:
        error.code = ExitCode.NO
        raise
    sink = Sink(as_json=json, quiet=quiet)
    sink.result(screen(found, sink.out.width), found, quiet=str(found.root))
