"""A push on the screen: one line per phase, and the URL."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.text import Text

from ckptconv.commands.push.run import Pushed
from ckptconv.show.sink import OK, Sink
from ckptconv.show.units import size


def listener(sink: Sink) -> Callable[[int, int, str], None]:
    """The function that push calls between its phases."""

    def heard(done: int, total: int, what: str) -> None:
        sink.phase("Pushing", f"{what} ({size(done)} of {size(total)})" if total else what)

    return heard


def done(result: Pushed) -> RenderableType:
    """The last lines: what was uploaded, and the URL."""
    if result.dry_run:
        lines = [
            Text(f"would push {len(result.files)} files, {size(result.nbytes)}, to {result.repo_id}", "bold")
        ]
        lines += [Text(f"  {name}  {size(nbytes)}") for name, nbytes in result.files]
        return Group(*lines)
    what = f"{len(result.files)} files, {size(result.nbytes)}" if result.uploaded else "already up to date"
    lines = [Text.assemble((f"{OK} ", "green"), (result.url, "bold"), f"   {what}")]
    if result.pull_request:
        lines.append(Text(f"  pull request  {result.pull_request}"))
    return Group(*lines)
