"""Options that several commands share, spelled once; and verl's spellings, which work verbatim."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Optional

import typer

from ckptconv.errors import CkptconvError

_VERL = "verl's own spelling"

Backend = Annotated[
    Optional[str],  # noqa: UP045 - typer reads it at run time on Python 3.10
    typer.Option(
        "--backend", help="Read it as this layout (fsdp, huggingface) instead of looking for signs."
    ),
]
Step = Annotated[Optional[int], typer.Option("--step", help="The step of a run; its latest when not given.")]  # noqa: UP045
Also = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option(
        "--also",
        help="Another folder with rank files of the same checkpoint (another node's disk). Repeatable.",
    ),
]
Config = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--config",
        help="Folder, or org/name on the Hub, with config.json and tokenizer, where none lies beside the checkpoint.",
    ),
]
Revision = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--revision", help="Of a Hub repository: a branch, a tag or a commit; or write org/name@REVISION."
    ),
]
Workers = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--workers", min=1, help="Threads; one a core and one more when not given."),
]
Svg = Annotated[Optional[Path], typer.Option("--svg", metavar="FILE", help="The screen as a picture.")]  # noqa: UP045
Html = Annotated[Optional[Path], typer.Option("--html", metavar="FILE", help="The screen as one page.")]  # noqa: UP045
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="The bare result on stdout, nothing else.")]
LocalDir = Annotated[Optional[Path], typer.Option("--local_dir", "--local-dir", hidden=True, help=_VERL)]  # noqa: UP045
TargetDir = Annotated[Optional[Path], typer.Option("--target_dir", "--target-dir", hidden=True, help=_VERL)]  # noqa: UP045
TestHfDir = Annotated[Optional[Path], typer.Option("--test_hf_dir", "--test-hf-dir", hidden=True, help=_VERL)]  # noqa: UP045
UploadPath = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--push",
        "--hf_upload_path",
        "--hf-upload-path",
        help="Push the merged model to this repository as well.",
    ),
]
Tie = Annotated[bool, typer.Option("--tie-word-embedding", "--tie_word_embedding", hidden=True, help=_VERL)]
ValueModel = Annotated[bool, typer.Option("--is-value-model", "--is_value_model", hidden=True, help=_VERL)]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", "--trust_remote_code", hidden=True, help=_VERL)
]
CpuInit = Annotated[
    bool, typer.Option("--use_cpu_initialization", "--use-cpu-initialization", hidden=True, help=_VERL)
]
ModelPath = Annotated[
    Path | None, typer.Option("--hf_model_path", "--hf-model-path", hidden=True, help=_VERL)
]


def one_of(positional: Path | None, named: Path | None, what: str, flag: str) -> Path:
    """An argument that may be given by place or by verl's flag, exactly once."""
    if positional is not None and named is not None:
        raise CkptconvError(f"{what} is given twice: by place and by {flag}")
    found = positional if positional is not None else named
    if found is None:
        raise CkptconvError(f"{what} is missing", hint="ckptconv COMMAND --help shows what goes where")
    return found


def cluster(address: str | None) -> str | None:
    """A Ray cluster's address. What follows --ray may be a folder that was meant for something else."""
    if address is not None and not re.fullmatch(r"auto|[^\s/]+:\d+", address):
        raise CkptconvError(
            "--ray wants a cluster's address",
            found=address,
            wanted="auto, or HOST:PORT",
            hint="run it on a node of the cluster with --ray auto; from elsewhere, by `ray job submit`",
        )
    return address


def memory(text: str) -> int:
    """ "256MiB", "1GB" or a number of bytes."""
    units = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30, "b": 1, "": 1}
    digits = text.strip().rstrip("abgikmABGIKM")
    unit = text.strip()[len(digits) :].lower()
    try:
        return int(float(digits) * units[unit])
    except (ValueError, KeyError) as error:
        raise CkptconvError(
            f"not a size: {text}", wanted="a number with kB, MB, GB, KiB, MiB or GiB, such as 256MiB"
        ) from error
