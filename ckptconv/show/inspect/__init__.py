"""Shows an Inspection: the facts, which rank stores what, the tensors, and the next command."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from ckptconv.commands.inspect import Inspection
from ckptconv.show.inspect.facts import end, facts
from ckptconv.show.inspect.shard_map import shard_map
from ckptconv.show.inspect.slices import slices
from ckptconv.show.inspect.table import tensors
from ckptconv.show.inspect.tree import tree


def screen(found: Inspection, width: int, depth: int | None = None) -> RenderableType:
    """The whole screen.

    Args:
        found: the inspection.
        width: columns of the terminal.
        depth: levels of the tree; None for all.
    """
    if found.matches is not None:
        return slices(found, width)
    parts: list[RenderableType] = [facts(found), Text()]
    if found.tree is not None:
        return Group(*parts, tree(found.tree, width, depth), *end(found))
    if found.is_sharded:
        parts += [*shard_map(found, width), Text()]
    return Group(*parts, tensors(found, width), *end(found))


__all__ = ["screen"]
