"""ckptconv inspect."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Optional

import typer

from ckptconv.cli import options as o


def command(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Run, step, role or model folder, also in a store (s3://…), or a Hub repo (org/name).",
        ),
    ],
    tensor: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--tensor",
            metavar="PATTERN",
            help="Show each rank's slice of matching tensors: a glob, or part of a name such as layers.3.",
        ),
    ] = None,
    tree: Annotated[
        bool, typer.Option("--tree", help="Show a module tree with parameter counts and sizes.")
    ] = False,
    depth: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--depth", metavar="N", min=0, help="Show only N levels of the tree (implies --tree)."),
    ] = None,
    sort: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--sort",
            metavar="[name|size|shape|dtype]",
            autocompletion=lambda: ("name", "size", "shape", "dtype"),
            help="Sort by name, size, shape or dtype. Default: stored order.",
        ),
    ] = None,
    reverse: Annotated[bool, typer.Option("-r", "--reverse", help="Reverse the sort order.")] = False,
    backend: o.Backend = None,
    step: o.Step = None,
    also: o.Also = None,
    revision: o.Revision = None,
    svg: o.Svg = None,
    html: o.Html = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Show what a checkpoint holds and which rank stores what.

    Reads metadata only, so a 1 TB checkpoint is as quick as a 1 MB one. Exits with 1 if the checkpoint is incomplete or is
    not the whole model that its config names.

    Example: ckptconv inspect checkpoints/run --step 400
    """
    from ckptconv.commands.inspect import inspect
    from ckptconv.errors import ExitCode, Incomplete
    from ckptconv.show.inspect import screen
    from ckptconv.show.sink import Sink

    if svg is not None or html is not None:
        from ckptconv.show.export import WIDTH, check_export, export

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
        more = ["--tensor", tensor] if tensor else ["--tree"] if found.tree else []
        title = shlex.join(["ckptconv", "inspect", str(directory), *more])
        export(screen(found, WIDTH, depth), svg=svg, html=html, title=title, width=WIDTH)
    sink.result(screen(found, sink.out.width, depth), found, quiet=str(found.root))
    if found.complete is False:
        raise typer.Exit(ExitCode.NO)
