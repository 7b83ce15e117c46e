"""The command line. Each command has one file, which parses flags, calls one function and shows its result."""

from __future__ import annotations

import os
from collections import UserDict
from importlib import import_module
from inspect import getdoc
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from ckptconv import __version__
from ckptconv.cli import options
from ckptconv.cli.typos import no_such_option, usage_error
from ckptconv.cli.values import convert_plainly

# Command -> its module. `test` is verl's word for verify, and is not listed.
_MODULES = {"inspect": "inspect", "merge": "merge", "verify": "verify", "test": "verify", "push": "push"}
_HIDDEN = ("test",)
_SETTINGS = {"help_option_names": ["-h", "--help"]}
_DEBUG = bool(os.environ.get("CKPTCONV_DEBUG"))


def _untyped(params: list[Any]) -> list[Any]:
    """The parameters; help shows no `<bool>` for a flag."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


class _Commands(UserDict[str, Any]):
    """The commands by name, each built when it is asked for: typer takes 10 ms to build them all."""

    def __getitem__(self, name: str) -> Any:
        if self.data[name] is None:
            self.data[name] = _command(name)
        return self.data[name]


class _Group(TyperGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands(dict.fromkeys(_MODULES))

    def get_params(self, ctx: Any) -> list[Any]:
        return _untyped(convert_plainly(super().get_params(ctx)))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what stands before the command; a word that is refused becomes our error."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            raise usage_error(error, "") or error from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; an unknown one becomes our error, which names the command that was meant."""
        try:
            return super().resolve_command(ctx, args)
        except Exception as error:
            raise usage_error(error, "") or error from None


app = typer.Typer(
    name="ckptconv",
    cls=_Group,
    no_args_is_help=True,
    add_completion=True,
    context_settings=_SETTINGS,
    pretty_exceptions_enable=_DEBUG,
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


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "-V", "--version", callback=_version, is_eager=True, help="Print version information and exit."
        ),
    ] = False,
) -> None:
    """Turn sharded trainer checkpoints into Hugging Face models: one command, on a CPU, streaming.

    ckptconv inspect checkpoints/run          show what it holds and which rank stores what
    ckptconv merge   checkpoints/run MODEL    write a Hugging Face model folder
    ckptconv verify  MODEL                    check the model
    ckptconv push    MODEL org/name           upload it; run again to resume
    """


class _Command(TyperCommand):
    """A command whose help shows `N`, `DIR` or the choices of an option in place of Python types."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, without a type for flags and arguments."""
        params = convert_plainly(super().get_params(ctx))
        for param in _untyped(params):
            if param.param_type_name == "argument":
                setattr(param, "display_type_rich", lambda ctx: None)  # noqa: B010 - typer has no setting for it

        if self.name == "test":  # verl's users look for verl's flags here
            for param in params:
                if getattr(param, "help", None) == options.VERL:
                    param.hidden = False
        return params

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; a word that is refused becomes our error, which names the flag that was meant if one is unknown."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if type(error).__name__ != "NoSuchOption":  # typer has no public name for it
                raise usage_error(error, str(self.name)) or error from None
            known = [flag for param in self.params for flag in (*param.opts, *param.secondary_opts)]
            raise no_such_option(str(getattr(error, "option_name", "")), str(self.name), known) from error

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line with required arguments first: `DIR OUT [OPTIONS]`."""
        names = [str(p.metavar) for p in super().get_params(ctx) if p.param_type_name == "argument"]
        return [*names, "[OPTIONS]"]


def _command(name: str) -> Any:
    """Build a command, with its docstring as help. Each paragraph becomes one line, so that the terminal wraps it."""
    function = import_module(f"ckptconv.cli.{_MODULES[name]}").command
    paragraphs = getdoc(function).split("\n\n")  # type: ignore[union-attr]
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    alone = typer.Typer(
        add_completion=False,
        context_settings=_SETTINGS,
        pretty_exceptions_enable=_DEBUG,
        pretty_exceptions_show_locals=False,
    )
    alone.command(name, cls=_Command, help=text, hidden=name in _HIDDEN)(function)
    return get_command(alone)
