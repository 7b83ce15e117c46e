"""How results show themselves in a REPL and in a notebook.

The records know one line about themselves. The whole screen is drawn by `show`, which is above them: the top of the
package hands the function down (`Displayed.draw`), so that no record imports what draws it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar


class Displayed:
    """A result with a short repr, and its screen as HTML in a notebook."""

    __slots__ = ()

    draw: ClassVar[Callable[[object], str] | None] = None

    @property
    def summary(self) -> str:
        """The result in one line."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.summary}>"

    def _repr_html_(self) -> str | None:
        """The screen that the command line shows. None, which makes a notebook take the repr, where nothing draws it."""
        draw = Displayed.draw
        return None if draw is None else draw(self)
