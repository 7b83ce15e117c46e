"""Proves a plan: every stored byte is used once or dropped with a reason. Otherwise nothing is published.

Chunks that no rule changed cancel out by identity. Chunks that a rule cut into other boxes are compared as a set of
element positions: the sum of x^position over a strided box is a product of geometric series, so the sums of both
sides at a random x modulo a prime are cheap, and are equal only if the sets are (Schwartz-Zippel: a false balance has
a chance of about file size / 2^61).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable
from math import prod
from typing import TYPE_CHECKING

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.boxes import Shape
from ckptconv.tensors.dtypes import itemsize
from ckptconv.tensors.view import View

if TYPE_CHECKING:
    from ckptconv.compute.sources import Source

_PRIME = (1 << 61) - 1
_Dims = tuple[tuple[int, int], ...]  # (size, stride) of each
_Place = tuple[str, int, _Dims, int]  # file, start, dims, item


def used_by(sources: Iterable[Source], shared: Collection[Source] = ()) -> tuple[View, ...]:
    """The stored elements that outputs are made of, each as often as it is used.

    A LoRA factor counts once, although it may update several weights; so does a view in `shared`. Views are compared by
    identity. A weight that two outputs hold by mistake is counted twice, and then the ledger does not balance.

    Args:
        sources: what fills each output, without outputs that are copies of another one.
        shared: sources that several outputs may hold.
    """
    used: list[View] = []
    once: dict[int, View] = {}
    shared_ids = {id(source) for source in shared}
    for source in sources:
        base, *updates = source.views
        if id(base) in shared_ids:
            once[id(base)] = base
        else:
            used.append(base)
        once.update((id(view), view) for view in updates)
    return (*used, *once.values())


def check_balance(stored: Iterable[View], used: Iterable[View], dropped: Iterable[View]) -> int:
    """Check that used and dropped together are exactly the stored elements.

    Args:
        stored: the stored tensors.
        used: the elements that outputs are made of.
        dropped: the elements that no output holds.

    Returns:
        The bytes that balance.

    Raises:
        CkptconvError: the two sides differ.
    """
    views: dict[int, View] = {}  # by identity: an untouched view is the same object on both sides
    counts: Counter[int] = Counter()
    total = 0
    for view in stored:
        views[id(view)] = view
        counts[id(view)] += 1
        total += view.nbytes
    for side in (used, dropped):
        for view in side:
            views[id(view)] = view
            counts[id(view)] -= 1
    left: dict[_Place, int] = {}
    known: dict[
        tuple[Shape, Shape], _Dims
    ] = {}  # there are few: equal shards have the same sizes and strides
    for key, count in counts.items():
        if count:
            view = views[key]
            item = itemsize(view.dtype)
            for _, sizes, file, start, strides in view.chunks:
                dims = known.get((sizes, strides))
                if dims is None:
                    dims = known[sizes, strides] = _dims(sizes, strides)
                place = (file, start, dims, item)
                left[place] = left.get(place, 0) + count
    _check_residue({place: count for place, count in left.items() if count})
    return total


def _dims(sizes: Shape, strides: Shape) -> _Dims:
    return tuple(sorted((size, stride) for size, stride in zip(sizes, strides, strict=True) if size != 1))


def _check_residue(left: dict[_Place, int]) -> None:
    x = int.from_bytes(os.urandom(16), "little") % (_PRIME - 2) + 2
    sums: dict[tuple[str, int], int] = {}
    counts: dict[tuple[str, int], int] = {}
    boxes: dict[_Dims, tuple[int, int]] = {}
    for (file, start, dims, item), count in left.items():
        if dims not in boxes:
            boxes[dims] = _box(x, dims)
        value, elements = boxes[dims]
        value = value * pow(x, start, _PRIME)
        key = (file, item)
        sums[key] = (sums.get(key, 0) + count * value) % _PRIME
        counts[key] = counts.get(key, 0) + count * elements
    for (file, item), value in sums.items():
        if value or counts[file, item]:
            elements = counts[file, item]
            word = (
                "never used"
                if elements > 0
                else "used more than once"
                if elements < 0
                else "used twice, others never"
            )
            raise CkptconvError(
                "the ledger does not balance: nothing was written",
                where=file,
                found=f"{abs(elements) * item:,} stored bytes are {word}",
                hint="this is a defect in ckptconv; please report it with `ckptconv inspect --json`",
                kind=Kind.BUG,
            )


def _box(x: int, dims: _Dims) -> tuple[int, int]:
    """The sum of x^position over a box that begins at 0, and its number of elements."""
    value = 1
    for size, stride in dims:
        if stride:
            step = pow(x, stride, _PRIME)
            value = value * (pow(step, size, _PRIME) - 1) * pow(step - 1, -1, _PRIME) % _PRIME
        else:
            value = value * size % _PRIME
    return value, prod(size for size, _ in dims)
