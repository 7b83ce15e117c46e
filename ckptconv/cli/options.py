"""Declares the options that several commands share, and verl's own spellings, which work unchanged."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, TypeVar

import typer

from ckptconv.errors import CkptconvError, Kind

if TYPE_CHECKING:
    from ckptconv.show.sink import Sink

T = TypeVar("T")
VERL = "verl's own spelling"

Backend = Annotated[
    Optional[str],  # noqa: UP045 - typer reads it at run time on Python 3.10
    typer.Option(
        "--backend",
        metavar="NAME",
        help="Checkpoint format, if auto-detection is wrong: fsdp, megatron, dcp, deepspeed, nanotron, orbax, huggingface.",
    ),
]


def _step(word: str) -> int | str:
    """The value of --step: a number, or "latest"."""
    if word != "latest" and not word.isdecimal():
        raise typer.BadParameter(f"{word!r} is not a number or the word latest")
    return word if word == "latest" else int(word)


Step = Annotated[
    Any | None,
    typer.Option(
        "--step",
        parser=_step,
        metavar="N",
        help="Training step to read, or latest. Default: the model that the run ended with, else the latest step.",
    ),
]
Also = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option(
        "--also",
        metavar="DIR",
        help="Additional folder with rank files of this checkpoint, e.g. from another node or in a store. Repeatable.",
    ),
]
Config = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--config",
        metavar="DIR",
        help="Where to take config.json and the tokenizer from (folder, s3://… or Hub repo), if they are not next to the "
        "checkpoint.",
    ),
]
Revision = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--revision",
        metavar="NAME",
        help="Branch, tag or commit of a Hub repo (same as org/name@REVISION).",
    ),
]
Workers = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        help="Number of threads. Default: the number of cores + 1, at most 16.",
    ),
]
Svg = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--svg", metavar="FILE", help="Also save this output as an SVG image."),
]
Html = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--html", metavar="FILE", help="Also save this output as a standalone HTML page."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print only the result (path, URL or yes/no).")]
LocalDir = Annotated[Optional[Path], typer.Option("--local_dir", "--local-dir", hidden=True, help=VERL)]  # noqa: UP045
TargetDir = Annotated[Optional[Path], typer.Option("--target_dir", "--target-dir", hidden=True, help=VERL)]  # noqa: UP045
TestHfDir = Annotated[Optional[Path], typer.Option("--test_hf_dir", "--test-hf-dir", hidden=True, help=VERL)]  # noqa: UP045
UploadPath = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--push",
        "--hf_upload_path",
        "--hf-upload-path",
        metavar="ORG/NAME",
        help="Also push the merged model to this Hub repo.",
    ),
]
Tie = Annotated[bool, typer.Option("--tie-word-embedding", "--tie_word_embedding", hidden=True, help=VERL)]
ValueModel = Annotated[bool, typer.Option("--is-value-model", "--is_value_model", hidden=True, help=VERL)]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", "--trust_remote_code", hidden=True, help=VERL)
]
CpuInit = Annotated[
    bool, typer.Option("--use_cpu_initialization", "--use-cpu-initialization", hidden=True, help=VERL)
]
ModelPath = Annotated[Path | None, typer.Option("--hf_model_path", "--hf-model-path", hidden=True, help=VERL)]


def one_of(positional: Path | None, named: Path | None, what: str, flag: str, usage: str) -> Path:
    """The value of an argument that may be given by position or by verl's flag, but not by both.

    Args:
        positional: the value given by position, or None.
        named: the value given by the flag, or None.
        what: the argument's name in an error.
        flag: verl's flag.
        usage: the command line that an error shows.

    Raises:
        CkptconvError: the value is given twice or not at all.
    """
    if positional is not None and named is not None:
        raise CkptconvError(
            f"{what} is given twice: as an argument and by {flag}", hint=f"omit {flag}", kind=Kind.USAGE
        )
    value = positional if positional is not None else named
    if value is None:
        raise CkptconvError(f"missing argument {what}", hint=f"usage: {usage}", kind=Kind.USAGE)
    return value


def with_model_path(sink: Sink, model_path: Path | None, choices: dict[str, Any], run: Callable[..., T]) -> T:
    """Run a command; where it lacks a config.json or a base model, run it again with verl's --hf_model_path as that.

    Args:
        sink: where the user is told.
        model_path: the value of --hf_model_path, or None.
        choices: the keywords of the command.
        run: the command.
    """
    from ckptconv.commands.planning import NO_BASE, NO_CONFIG

    pieces = {NO_CONFIG: "config", NO_BASE: "base"}
    try:
        return run(**choices)
    except CkptconvError as error:
        piece = pieces.get(error.what)
        if model_path is None or piece is None or choices.get(piece) is not None:
            raise
    sink.phase("Config" if piece == "config" else "Base", f"from --hf_model_path {model_path}")
    return run(**{**choices, piece: model_path})


def cluster(address: str | None) -> str | None:
    """The address of a Ray cluster.

    Raises:
        CkptconvError: it is a path, which --ray took as its value because it is the next word.
    """
    if address is not None and not re.fullmatch(r"auto|[^\s/]+:\d+", address):
        raise CkptconvError(
            "--ray needs the address of a cluster",
            found=address,
            wanted="auto, or HOST:PORT",
            hint="run it on a node of the cluster with --ray auto, or from elsewhere with `ray job submit`",
            kind=Kind.USAGE,
        )
    return address


def memory(text: str) -> int:
    """The bytes of a size such as "256MiB", "1GB", "5G" or "1000"."""
    from ckptconv.plan.shards import in_bytes

    return in_bytes(int(text) if text.strip().isdecimal() else text)
