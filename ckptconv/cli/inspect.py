"""ckptconv inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ckptconv.cli import options as o


def command(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A run, step, role or model folder, or org/name on the Hub.")
    ],
    tensor: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--tensor",
            metavar="PATTERN",
            help="Each rank's slice of the tensors that match: a glob, or a part of the name such as layers.3.",
        ),
    ] = None,
    tree: Annotated[bool, typer.Option("--tree", help="By module, with parameters and sizes.")] = False,
    depth: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--depth", min=0, help="Levels of the tree; implies --tree."),
    ] = None,
    sort: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--sort", help="By name, size, shape or dtype, as ls does; as stored when not given."),
    ] = None,
    reverse: Annotated[bool, typer.Option("-r", "--reverse", help="The other way round.")] = False,
    backend: o.Backend = None,
    step: o.Step = None,
    also: o.Also = None,
    revision: o.Revision = None,
    svg: o.Svg = None,
    html: o.Html = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """What a checkpoint holds and which rank stores what, from metadata alone.

    Reads no tensor, so a terabyte answers as fast as a megabyte. Exit code 1 when it is not complete.

    Example: ckptconv inspect checkpoints/run --step 400
    """
    from ckptconv.commands.inspect import inspect
    from ckptconv.errors import ExitCode, Incomplete
    from ckptconv.show.export import WIDTH, check_export, export
    from ckptconv.show.inspect import screen
    from ckptconv.show.sink import Sink

    check_export(svg=svg, html=html)
    try:
        found = inspect(
            directory, backend=backend, step=step, also=also or (), revision=revision, tensor=tensor,
            tree=tree or depth is not None, sort=sort, reverse=reverse,
        )  # fmt: skip
    except Incomplete as error:
        error.code = ExitCode.NO
        raise
    sink = Sink(as_json=json, quiet=quiet)
    if svg is not None or html is not None:
        title = f"ckptconv inspect {directory}{f' --tensor {tensor}' if tensor else ' --tree' if found.tree else ''}"
        export(screen(found, WIDTH, depth), svg=svg, html=html, title=title, width=WIDTH)
    sink.result(screen(found, sink.out.width, depth), found, quiet=str(found.root))
