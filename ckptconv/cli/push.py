"""ckptconv push."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ckptconv.cli import options as o

if TYPE_CHECKING:
    from ckptconv.show.sink import Sink


def command(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The model folder.")],
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The repository; made if it is not there.")],
    private: Annotated[
        bool | None, typer.Option("--private/--no-private", help="Visibility of a new repository.")
    ] = None,
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--revision", help="A branch, made if missing; refs/pr/N resumes a pull request."),
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")
    ] = False,
    commit_message: Annotated[
        str | None, typer.Option("--commit-message", help="First line of the commit.")
    ] = None,
    commit_description: Annotated[
        str | None, typer.Option("--commit-description", help="The rest of it.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option("--include", help="Only files like this. Repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="No files like this. Repeatable.")
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", help="Else HF_TOKEN, or what `hf auth login` saved.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the folder and list what would go.")
    ] = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Upload a model folder to the Hub; run the same command again to resume.

    The folder, the token and the repository are checked first. A model card is made from the receipt unless the
    folder has a README.md. Prints the URL.

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
    """Push and show the result; `merge --push` ends here too. merged: its record, for one JSON document of both."""
    from ckptconv.commands.push.run import push
    from ckptconv.show import push as show

    result = push(folder, repo, on_progress=show.listener(sink), bars=sink.live, **options)
    sink.result(
        show.done(result), result if merged is None else {**merged, "pushed": result}, quiet=result.url
    )
