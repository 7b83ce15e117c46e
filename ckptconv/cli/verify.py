"""ckptconv verify, and verl's `test`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ckptconv.cli import options as o
from ckptconv.errors import ExitCode

_WORDS = {ExitCode.OK: "yes", ExitCode.NO: "no", ExitCode.FAILED: "not checked"}

_USAGE = "ckptconv verify MODEL [--against DIR]"


def command(
    directory: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="MODEL", help="Model folder, Hub repo (org/name), or an unmerged checkpoint."),
    ] = None,
    against: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--against",
            metavar="DIR",
            help="Reference to compare with: model folder, Hub repo, or another checkpoint.",
        ),
    ] = None,
    atol: Annotated[
        float,
        typer.Option("--atol", metavar="X", min=0, help="Allowed absolute difference. 0 means bit for bit."),
    ] = 0.0,
    rtol: Annotated[
        float, typer.Option("--rtol", metavar="X", min=0, help="Allowed relative difference.")
    ] = 0.0,
    base: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--base",
            metavar="DIR",
            help="The model training started from: fails if nothing changed. Also the base model for an adapter-only "
            "folder.",
        ),
    ] = None,
    logits: Annotated[
        bool,
        typer.Option(
            "--logits",
            help="Also run the model with transformers: compare logits and greedy text for a prompt.",
        ),
    ] = False,
    prompt: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--prompt", metavar="TEXT", help="For --logits: the prompt to use."),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="For --logits: cpu, cuda, cuda:1 or mps.")
    ] = "cpu",
    python: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--python",
            metavar="PYTHON",
            help="For --logits: also run MODEL in another environment, with its python, and compare.",
        ),
    ] = None,
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
    """Check a model: structure, integrity, values, sanity and behaviour.

    With --against, every value is compared, bit for bit unless a tolerance is given; differences are reported with the
    rank that stored them. Without --against, the folder is checked against the architecture named in its config. The
    model is not loaded unless you pass --logits. Exit codes: 0 = OK, 1 = problem found, 2 = could not check.

    Example: ckptconv verify MODEL --against checkpoints/run
    """
    from ckptconv.commands.verify import PROMPT, verify
    from ckptconv.show import verify as show
    from ckptconv.show.export import WIDTH, check_export, export
    from ckptconv.show.progress import ProgressShown
    from ckptconv.show.sink import Sink

    target = o.one_of(directory, local_dir, "MODEL", "--local_dir", _USAGE)
    if against is not None or test_hf_dir is not None:
        against = o.one_of(against, test_hf_dir, "--against", "--test_hf_dir", _USAGE)
    check_export(svg=svg, html=html)
    sink = Sink(as_json=json, quiet=quiet)
    with ProgressShown(sink) as shown:
        found = verify(
            target,
            against=against,
            atol=atol,
            rtol=rtol,
            base=base,
            logits=logits,
            prompt=PROMPT if prompt is None else prompt,
            device=device,
            python=python,
            backend=backend,
            step=step,
            also=also or (),
            config=config,
            workers=workers,
            revision=revision,
            on_progress=shown,
            bars=sink.live,
        )
    export(show.screen(found, WIDTH), svg=svg, html=None, title=show.command(found))
    export(show.screen(found, WIDTH, most=1000), svg=None, html=html, title=show.command(found))
    sink.result(show.screen(found, sink.out.width), show.record(found), quiet=_WORDS[found.code])
    if not found.ok:
        raise typer.Exit(int(found.code))
