"""One object of a store as a file that is read by ranges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckptconv.storage.base import Object
from ckptconv.tensors.storage import FarFile, FileState

if TYPE_CHECKING:
    from ckptconv.storage.tree import Tree


class ObjectFile(FarFile):
    """An object in the state in which it was listed: every read is of that state, or fails.

    Args:
        tree: the listing that it is from.
        item: the object.
    """

    __slots__ = ("_tree", "group", "item", "nbytes", "state")

    def __init__(self, tree: Tree, item: Object) -> None:
        self._tree, self.item, self.group = tree, item, tree
        self.nbytes, self.state = item.nbytes, state_of(item)

    @property
    def key(self) -> str:
        """Its name in the bucket."""
        return self.item.key

    @property
    def path(self) -> Path:
        """See `FarFile`."""
        from ckptconv.storage.path import StorePath

        return StorePath(self._tree, self.item.key)

    def fill(self, start: int, memory: memoryview) -> int:
        """See `FarFile`."""
        return self._tree.segments.fill(self.item, start, memory)

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """See `FarFile`."""
        self._tree.segments.expect(self.item, ranges)


def state_of(item: Object) -> FileState:
    """The state of an object, as a file's."""
    return FileState(item.nbytes, item.changed, 0, item.version)
