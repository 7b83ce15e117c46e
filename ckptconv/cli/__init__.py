"""The command line: flags in, one call, show the result. One file a command, no logic in any of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from inspect import getdoc
from typing import Annotated

import typer

from ckptconv.cli import inspect, merge, push, verify
from ckptconv.version import __version__

app = typer.Typer(
    name="ckptconv",
    no_args_is_help=True,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=bool(os.environ.get("CKPTCONV_DEBUG")),
    pretty_exceptions_show_locals=False,
)


def _version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    typer.echo(f"ckptconv {__version__}")
    for name in ("torch", "transformers", "safetensors", "huggingface_hub", "numpy", "ml_dtypes", "ray"):
        try:
            typer.echo(f"  {name} {version(name)}")
        except PackageNotFoundError:
            typer.echo(f"  {name} is not installed")
    raise typer.Exit()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions and stop.")
    ] = False,
) -> None:
    """Sharded trainer checkpoints to Hugging Face models: one command, any CPU machine, streaming.

    ckptconv inspect checkpoints/run          what is in it, which rank stores what
    ckptconv merge   checkpoints/run MODEL    shards -> Hugging Face folder
    ckptconv verify  MODEL                    is it right?
    ckptconv push    MODEL org/name           upload; run again to resume
    """
    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's stop cleans up as Ctrl-C does


def _add(name: str, function: Callable[..., None], hidden: bool = False) -> None:
    """A command, its docstring as help: one line a paragraph, so that the terminal wraps it."""
    paragraphs = getdoc(function).split("\n\n")  # type: ignore[union-attr]
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app.command(name, help=text, hidden=hidden)(function)


_add("inspect", inspect.command)
_add("merge", merge.command)
_add("verify", verify.command)
_add("test", verify.command, hidden=True)  # verl's word for it
_add("push", push.command)
