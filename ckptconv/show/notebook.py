"""Renders a result as HTML for notebooks: the same screen as in a terminal."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType

from ckptconv.commands.inspect import Inspection
from ckptconv.commands.merge.run import Merged
from ckptconv.commands.verify import Verified
from ckptconv.show import merge, verify
from ckptconv.show.inspect import screen

WIDTH = 110  # cells
_PRE = (
    '<pre style="font-family: monospace; line-height: 1.2; white-space: pre; overflow-x: auto">'
    "<code>{code}</code></pre>"
)


def html(result: object) -> str:
    """The result's screen in a <pre> with inline styles.

    Raises:
        TypeError: the result has no screen.
    """
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_jupyter=False)
    console.print(_screen(result))
    return console.export_html(inline_styles=True, code_format=_PRE)


def _screen(result: object) -> RenderableType:
    if isinstance(result, Inspection):
        return screen(result, WIDTH)
    if isinstance(result, Verified):
        return verify.screen(result, WIDTH)
    if isinstance(result, Merged):
        return merge.done(result)
    raise TypeError(f"a {type(result).__name__} has no screen")
