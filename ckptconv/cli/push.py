"""ckptconv push."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ckptconv.cli import options as o

if TYPE_CHECKING:
    from ckptconv.show.sink import Sink


def command(
    folder: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder to upload.")],
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Hub repo; created if it does not exist.")],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--no-private",
            help="Make a new repo private or public. Default: your account's setting.",
        ),
    ] = None,
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--revision",
            metavar="NAME",
            help="Branch to push to; created if it does not exist. refs/pr/N resumes a pull request.",
        ),
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of committing to the branch.")
    ] = False,
    commit_message: Annotated[
        str | None, typer.Option("--commit-message", metavar="TEXT", help="First line of the commit message.")
    ] = None,
    commit_description: Annotated[
        str | None, typer.Option("--commit-description", metavar="TEXT", help="Rest of the commit message.")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="GLOB", help="Upload only matching files. Repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="GLOB", help="Skip matching files. Repeatable.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            metavar="TOKEN",
            help="Access token. Default: HF_TOKEN or the token saved by `hf auth login`.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the folder and list what would be uploaded.")
    ] = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Upload a model folder to the Hub. Run the same command again to resume.

    Checks the folder, the token and the repo first. Writes a model card from the receipt unless the folder has a
    README.md. Prints the URL.

    Example: ckptconv push MODEL org/name --private
    """
    from ckptconv.show.sink import Sink

    push_and_show(
        Sink(as_json=json, quiet=quiet),
        folder,
        repo,
        private=private,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message,
        commit_description=commit_description,
        include=include or (),
        exclude=exclude or (),
        token=token,
        dry_run=dry_run,
    )


def push_and_show(
    sink: Sink, folder: Path, repo: str, merged: dict[str, Any] | None = None, **options: Any
) -> None:
    """Push, then show the result. `merge --push` calls it too.

    Args:
        sink: where the result goes.
        folder: the model folder.
        repo: the repository on the Hub, "org/name".
        merged: the record of the merge, which then shares one JSON document with that of the push.
        options: further keywords of `push`.
    """
    from ckptconv.commands.push.run import push
    from ckptconv.show import push as show
    from ckptconv.show.progress import ProgressShown

    with ProgressShown(sink) as shown:
        result = push(folder, repo, on_progress=shown, bars=sink.live, **options)
    sink.result(
        show.done(result), result if merged is None else {**merged, "pushed": result}, quiet=result.url
    )
