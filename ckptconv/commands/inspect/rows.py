"""Groups the tensors into rows of a table: equal layers share a row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ckptconv.commands.inspect.records import Match, Node, Row, Slice
from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.checkpoint import Checkpoint, StoredTensor, starred
from ckptconv.tensors.names import natural

T = TypeVar("T")


def slices_of(tensor: StoredTensor, rank_of: dict[str, int]) -> tuple[Slice, ...]:
    """The boxes of a tensor that the ranks store, both used ones and copies.

    Args:
        tensor: the tensor.
        rank_of: file -> rank.
    """
    found = [Slice(rank_of[c.file], c.offsets, c.sizes) for c in tensor.view.chunks]
    for offsets, view in tensor.replicas:
        for c in view.chunks:
            box = c.box.shifted(offsets)
            found.append(Slice(rank_of[c.file], box.offsets, box.sizes, copy=True))
    return tuple(sorted(found, key=lambda piece: (piece.offsets, piece.copy, piece.rank)))


def rows_of(checkpoint: Checkpoint, slices: dict[str, tuple[Slice, ...]]) -> tuple[Row, ...]:
    """Collapse equal layers to `*`: tensors with the same pattern, shape, dtype and slices, on any ranks."""
    groups: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name, tensor in checkpoint.tensors.items():
        boxes = tuple((piece.offsets, piece.sizes, piece.copy) for piece in slices[name])
        view = tensor.view
        groups[starred(name), view.shape, view.dtype, tensor.placement, boxes].append(name)
    return tuple(
        Row(
            pattern if len(names) > 1 else names[0],
            len(names),
            shape,
            dtype,
            placement,
            checkpoint.tensors[names[0]].view.nbytes * len(names),
            slices[names[0]],
            tuple(sorted({piece.rank for name in names for piece in slices[name]})),
        )
        for (pattern, shape, dtype, placement, _), names in groups.items()
    )


# As in `ls`: names are sorted from the first letter, sizes and shapes from the largest.
_KEYS: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "name": (lambda item: natural(name_of(item)), False),
    "size": (lambda item: item.nbytes, True),
    "shape": (lambda item: (len(item.shape or ()), item.shape or ()), True),
    "dtype": (lambda item: (item.dtype, natural(name_of(item))), False),
}
SORTS = tuple(_KEYS)


def name_of(item: Row | Match | Node) -> str:
    """The name of an item in the table."""
    return item.name if isinstance(item, Node) else item.pattern


def ordered(items: Iterable[T], sort: str | None, reverse: bool) -> tuple[T, ...]:
    """Sort items by a column.

    Args:
        items: rows, matches or nodes.
        sort: the column; None keeps the stored order.
        reverse: reverse the order.

    Raises:
        CkptconvError: there is no such column.
    """
    if sort is None:
        return tuple(reversed(list(items))) if reverse else tuple(items)
    if sort not in _KEYS:
        raise CkptconvError(f"cannot sort by {sort!r}", wanted=", ".join(SORTS), kind=Kind.USAGE)
    key, largest_first = _KEYS[sort]
    return tuple(sorted(items, key=key, reverse=largest_first != reverse))
