"""ckptconv verify, and verl's `test`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ckptconv.cli import options as o


def command(
    directory: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="OUT", help="A model folder, or a checkpoint that was not merged."),
    ] = None,
    against: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--against", help="What it should equal: a model folder or another checkpoint."),
    ] = None,
    atol: Annotated[
        float, typer.Option("--atol", min=0, help="Allowed absolute difference; 0 is bit for bit.")
    ] = 0.0,
    rtol: Annotated[float, typer.Option("--rtol", min=0, help="Allowed relative difference.")] = 0.0,
    backend: o.Backend = None,
    step: o.Step = None,
    also: o.Also = None,
    config: o.Config = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Threads; one a core when not given.")
    ] = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    local_dir: o.LocalDir = None,
    test_hf_dir: o.TestHfDir = None,
    tie: o.Tie = False,
    value_model: o.ValueModel = False,
    remote_code: o.RemoteCode = False,
    cpu_init: o.CpuInit = False,
    model_path: o.ModelPath = None,
) -> None:
    """Is it right? Structure, integrity, values and sanity, each said with what it proves.

    With --against, every value is compared, bit for bit unless a tolerance is given. Without, the folder is held
    against the architecture that its config names. Exit code 0 yes, 1 no, 2 could not tell.

    Example: ckptconv verify MODEL --against checkpoints/run
    """
    from ckptconv.commands.verify import verify
    from ckptconv.show import verify as show
    from ckptconv.show.sink import Sink

    target = o.one_of(directory, local_dir, "the folder to verify", "--local_dir")
    if against is not None or test_hf_dir is not None:
        against = o.one_of(against, test_hf_dir, "the reference", "--test_hf_dir")
    sink = Sink(as_json=json, quiet=quiet)
    with show.Checking(sink) as checking:
        found = verify(
            target,
            against=against,
            atol=atol,
            rtol=rtol,
            backend=backend,
            step=step,
            also=also or (),
            config=config,
            workers=workers,
            on_bytes=checking.on_bytes,
        )
    sink.result(show.screen(found, sink.out.width), found, quiet="yes" if found.ok else "no")
    if not found.ok:
        raise typer.Exit(1)
