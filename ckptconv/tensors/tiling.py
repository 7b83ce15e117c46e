"""Checks that boxes cover a tensor exactly once: none is outside, none overlap, nothing is missing."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Protocol

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.boxes import Box, Shape


class Placed(Protocol):
    """The facts about a chunk that the check needs: its box in the tensor, and its file's name for errors."""

    @property
    def offsets(self) -> Shape: ...
    @property
    def sizes(self) -> Shape: ...
    @property
    def file(self) -> str: ...


def check_tiling(shape: Shape, chunks: Sequence[Placed]) -> None:
    """Raise unless the chunks' boxes cover the shape exactly once: inside, no overlap, nothing missing."""
    if len(chunks) == 1 and chunks[0].sizes == shape and not any(chunks[0].offsets) and all(shape):
        return
    volume = 0
    for chunk in chunks:
        for offset, size, whole in zip(chunk.offsets, chunk.sizes, shape, strict=True):
            if offset < 0 or size <= 0 or offset + size > whole:
                raise CkptconvError(
                    "a shard lies outside its tensor",
                    where=chunk.file,
                    found=f"offsets {list(chunk.offsets)}, sizes {list(chunk.sizes)}",
                    wanted=f"inside {list(shape)}",
                    kind=Kind.DAMAGED,
                )
        volume += prod(chunk.sizes)
    if len(chunks) > 1:
        _check_disjoint(chunks)
    if volume != prod(shape):
        raise CkptconvError(
            "the shards do not cover their tensor",
            found=f"{volume:,} elements",
            wanted=f"{prod(shape):,} elements",
            kind=Kind.DAMAGED,
        )


def _check_disjoint(chunks: Sequence[Placed]) -> None:
    """Cut the tensor along any dim where no box crosses the cut; groups that cannot be cut are compared box by box."""
    groups = [list(chunks)]
    while groups:
        group = groups.pop()
        for dim in range(len(group[0].sizes)):
            slabs = _slabs(group, dim)
            if len(slabs) > 1:
                groups += (slab for slab in slabs if len(slab) > 1)
                break
        else:
            _compare_boxes(group)


def _slabs(chunks: list[Placed], dim: int) -> list[list[Placed]]:
    """The groups of boxes between the cuts along a dim that cross no box."""
    slabs: list[list[Placed]] = []
    end = -1
    for chunk in sorted(chunks, key=lambda c: c.offsets[dim]):
        begin = chunk.offsets[dim]
        if begin >= end:
            slabs.append([])
        slabs[-1].append(chunk)
        end = max(end, begin + chunk.sizes[dim])
    return slabs


def _compare_boxes(chunks: Sequence[Placed]) -> None:
    """Sweep along the dim with the most cuts; only boxes that are open together are compared."""
    dims = range(len(chunks[0].sizes))
    sweep = max(dims, key=lambda dim: len({c.offsets[dim] for c in chunks}), default=None)
    if sweep is None:
        raise CkptconvError("two shards hold the same scalar", where=chunks[1].file, kind=Kind.DAMAGED)
    open_boxes: list[Placed] = []
    for chunk in sorted(chunks, key=lambda c: c.offsets[sweep]):
        begin = chunk.offsets[sweep]
        open_boxes = [other for other in open_boxes if other.offsets[sweep] + other.sizes[sweep] > begin]
        for other in open_boxes:
            if Box(chunk.offsets, chunk.sizes).overlaps(Box(other.offsets, other.sizes)):
                raise CkptconvError(
                    "two shards hold the same part of a tensor",
                    where=f"{other.file} and {chunk.file}",
                    found=f"offsets {list(other.offsets)} and {list(chunk.offsets)}",
                    kind=Kind.DAMAGED,
                )
        open_boxes.append(chunk)
