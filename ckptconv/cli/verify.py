"""ckptconv verify, and verl's `test`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ckptconv.cli import options as o


def command(
    directory: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(
            metavar="OUT", help="A model folder, org/name on the Hub, or a checkpoint that was not merged."
        ),
    ] = None,
    against: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--against", help="What it should equal: a model folder, org/name, another checkpoint."),
    ] = None,
    atol: Annotated[
        float, typer.Option("--atol", min=0, help="Allowed absolute difference; 0 is bit for bit.")
    ] = 0.0,
    rtol: Annotated[float, typer.Option("--rtol", min=0, help="Allowed relative difference.")] = 0.0,
    base: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--base",
            help="The model that training began with: is anything changed? Also the base of an adapter alone.",
        ),
    ] = None,
    logits: Annotated[
        bool,
        typer.Option("--logits", help="Run it with transformers too: logits and greedy text of a prompt."),
    ] = False,
    prompt: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--prompt", metavar="TEXT", help="For --logits: a text of your own."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="For --logits: cpu, cuda, cuda:1, mps.")] = "cpu",
    backend: o.Backend = None,
    step: o.Step = None,
    also: o.Also = None,
    config: o.Config = None,
    revision: o.Revision = None,
    workers: o.Workers = None,
    svg: o.Svg = None,
    html: o.Html = None,
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
    """Is it right? Structure, integrity, values, sanity and behaviour, each said with what it proves.

    With --against, every value is compared, bit for bit unless a tolerance is given; where they differ is said with the
    rank that stored it. Without, the folder is held against the architecture that its config names. Nothing is loaded,
    unless --logits asks for it. Exit code 0 yes, 1 no, 2 could not tell.

    Example: ckptconv verify MODEL --against checkpoints/run
    """
    from ckptconv.commands.verify import PROMPT, Events, verify
    from ckptconv.show import verify as show
    from ckptconv.show.export import WIDTH, check_export, export
    from ckptconv.show.sink import Sink

    target = o.one_of(directory, local_dir, "the folder to verify", "--local_dir")
    if against is not None or test_hf_dir is not None:
        against = o.one_of(against, test_hf_dir, "the reference", "--test_hf_dir")
    check_export(svg=svg, html=html)
    sink = Sink(as_json=json, quiet=quiet)
    with show.Checking(sink) as checking:
        found = verify(
            target,
            against=against,
            atol=atol,
            rtol=rtol,
            base=base,
            logits=logits,
            prompt=PROMPT if prompt is None else prompt,
            device=device,
            backend=backend,
            step=step,
            also=also or (),
            config=config,
            workers=workers,
            revision=revision,
            events=Events(checking.on_bytes, checking.on_phase, checking.on_fetch, bars=sink.live),
        )
    export(show.screen(found, WIDTH), svg=svg, html=None, title=show.command(found))
    export(show.screen(found, WIDTH, most=1000), svg=None, html=html, title=show.command(found))
    sink.result(show.screen(found, sink.out.width), show.record(found), quiet="yes" if found.ok else "no")
    if not found.ok:
        raise typer.Exit(1)
