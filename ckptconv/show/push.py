"""Shows a push on the screen: the URL and what was uploaded."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from ckptconv.commands.push.run import Pushed
from ckptconv.show.sink import OK
from ckptconv.show.units import size


def done(result: Pushed) -> RenderableType:
    """The last lines: what was uploaded, and the URL."""
    removed = [Text(f"  removed, since it names this machine  {text}") for text in result.removed]
    if result.dry_run:
        lines = [
            Text(f"would push {len(result.files)} files, {size(result.nbytes)}, to {result.repo_id}", "bold")
        ]
        lines += [Text(f"  {name}  {size(nbytes)}") for name, nbytes in result.files]
        return Group(*lines, *removed)
    what = f"{len(result.files)} files, {size(result.nbytes)}" if result.uploaded else "already up to date"
    seen = "private" if result.private else "public"
    lines = [Text.assemble((f"{OK} ", "green"), (result.url, "bold"), f"   {what}   {seen}")]
    if result.pull_request:
        lines.append(Text(f"  pull request  {result.pull_request}"))
    return Group(*lines, *removed)
