"""Read ZeRO's flat partitions: every parameter becomes a view on the ranks' vectors. No data moves.

Stages 1 and 2: the parameters of a group are contiguous in one vector, which is padded at its end, and each rank has an
equal part of it (deepspeed/runtime/zero/stage_1_and_2.py, runtime/bf16_optimizer.py). Stage 3: each parameter is cut
separately into ceil(numel / ranks) elements per rank, and padded at its own end (runtime/zero/partition_parameters.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.inert import field_of, items
from ckptconv.formats.stand_ins import TensorRecord
from ckptconv.formats.torch_zip import TorchZip
from ckptconv.tensors.boxes import Chunk
from ckptconv.tensors.view import View, cat, narrow, unflatten

Shapes = dict[str, tuple[int, ...]]
_OTHER_SAVES = "the model files and the optimizer files are from different saves"


@dataclass(frozen=True, slots=True)
class Partition:
    """The vectors of one rank, one for each parameter group (at stage 3, for each sub group).

    maps: for each group, name -> (start, elements) in the rank's vector, as the rank recorded it; () in files
    of DeepSpeed before 0.7 and at stage 3.
    """

    path: str
    groups: tuple[View, ...]
    maps: tuple[dict[str, tuple[int, int]], ...] = ()


def partition(file: TorchZip, state: dict[str, Any], key: str) -> Partition:
    """Return a rank's master weights, from its optimizer state.

    Args:
        file: the optimizer file.
        state: the optimizer state in it.
        key: the key of the flat vectors in the state.

    Raises:
        CkptconvError: the state has no flat vectors.
    """
    groups, maps = state.get(key), state.get("param_slice_mappings")
    if not isinstance(groups, list | tuple) or not all(isinstance(group, TensorRecord) for group in groups):
        raise CkptconvError(
            "the optimizer file has no flat fp32 master weights",
            where=file.path,
            wanted=f"{key}, a vector for each parameter group",
            hint="elastic checkpoints of old DeepSpeed versions are not read: load and save it again",
            kind=Kind.UNSUPPORTED,
        )
    views = tuple(file.view(group) for group in groups)
    if any(len(view.shape) != 1 for view in views):
        raise CkptconvError("a flat partition has more than one dim", where=file.path)
    stated = [group for group in maps if isinstance(group, dict)] if isinstance(maps, list) else []
    return Partition(file.path, views, tuple(map(_addresses, stated)))


def one_group(
    ranks: Sequence[Partition], number: int, shapes: Shapes, gaps: Any, where: str
) -> dict[str, View]:
    """Return the parameters of one group of stages 1 and 2.

    Args:
        ranks: the partitions of the ranks that share the group, in rank order.
        number: the number of the group.
        shapes: name -> shape of the group's parameters.
        gaps: for each group, the number of unused elements after each parameter; None if there are no gaps.
        where: the checkpoint, for error messages.

    Raises:
        CkptconvError: vectors are too short, longer than padding explains, or disagree with a rank's own map.
    """
    found: dict[str, View] = {}
    flat = _Flat(cat([rank.groups[number] for rank in ranks], 0))
    free = _gaps(gaps, number, where) if gaps is not None else (0,) * len(shapes)
    if len(free) != len(shapes):
        raise CkptconvError("a group has different numbers of paddings and parameters", where=where)
    at, places = 0, {}
    for (name, shape), gap in zip(shapes.items(), free, strict=True):
        found[name] = _piece(flat.part(at, prod(shape)), shape, name, where)
        places[name] = at, at + prod(shape)
        at += prod(shape) + gap
    # The padded length is a multiple of 2 × ranks; the vector that the last rank saves ends before that padding.
    align = 2 * len(ranks)
    if ceil(at / align) != ceil(flat.size / align):
        raise CkptconvError(
            f"parameter group {number} does not fill its partitions",
            where=where,
            found=f"{flat.size:,} elements",
            wanted=f"{at:,} and padding up to a multiple of {align}",
            hint=_OTHER_SAVES,
        )
    _check_maps(ranks, number, places)
    return found


def by_parameter(ranks: Sequence[Partition], shapes: Sequence[Shapes], where: str) -> dict[str, View]:
    """Return the parameters of stage 3.

    Args:
        ranks: the partitions, in rank order.
        shapes: name -> shape for each sub group.
        where: the checkpoint, for error messages.

    Raises:
        CkptconvError: the parameters do not fill every rank's vectors exactly.
    """
    flats = [_Flat(cat(rank.groups, 0)) for rank in ranks if rank.groups]
    found: dict[str, View] = {}
    at = 0
    for name, shape in (item for group in shapes for item in group.items()):
        each = ceil(prod(shape) / len(ranks))
        if any(at + each > flat.size for flat in flats):
            raise _too_short(name, where)
        found[name] = whole([flat.part(at, each) for flat in flats], shape, name, where)
        at += each
    for rank, flat in zip(ranks, flats, strict=True):
        if flat.size != at:
            raise CkptconvError(
                "the parameters do not fill a rank's partition",
                where=rank.path,
                found=f"{flat.size:,} elements",
                wanted=f"{at:,}",
                hint=_OTHER_SAVES,
            )
    return found


def whole(pieces: Sequence[View], shape: Sequence[int], name: str, where: str) -> View:
    """Return a parameter from the ranks' vectors, of which the last may be padded.

    Args:
        pieces: the vectors, in rank order.
        shape: the shape of the parameter.
        name: the name of the parameter, for the error message.
        where: the checkpoint, for the error message.
    """
    return _piece(cat(pieces, 0), shape, name, where)


def _piece(flat: View, shape: Sequence[int], name: str, where: str) -> View:
    size = prod(shape)
    if size > flat.numel:
        raise _too_short(name, where)
    return unflatten(narrow(flat, 0, 0, size), 0, shape)


class _Flat:
    """A long vector of consecutive chunks. A part of it visits only the chunks that it touches."""

    def __init__(self, view: View) -> None:
        self.size = view.numel
        self._view = view
        self._starts = [chunk.offsets[0] for chunk in view.chunks]

    def part(self, at: int, size: int) -> View:
        """Return the elements at .. at+size-1; fewer if the vector ends before."""
        end, chunks = min(at + size, self.size), self._view.chunks
        found: list[Chunk] = []
        for number in range(max(bisect_right(self._starts, at) - 1, 0), len(chunks)):
            (low,), (length,), file, start, strides = chunks[number]
            if low >= end:
                break
            begin, stop = max(low, at), min(low + length, end)
            if begin < stop:
                place = start + (begin - low) * strides[0]
                found.append(Chunk((begin - at,), (stop - begin,), file, place, strides))
        return View((max(end - at, 0),), self._view.dtype, tuple(found))


def _gaps(gaps: Any, number: int, where: str) -> tuple[int, ...]:
    groups = items(gaps)
    free = items(groups[number] if number < len(groups) else None)
    if not all(type(gap) is int and 0 <= gap < 1 << 63 for gap in free):
        raise CkptconvError("the paddings between parameters are not integers", where=where)
    return tuple(free)


def check_counts(ranks: Sequence[Partition], groups: int, where: str) -> None:
    """Check that every rank has a vector for each of `groups` groups; `where` is the checkpoint, for error messages."""
    for rank in ranks:
        if len(rank.groups) != groups:
            raise CkptconvError(
                "the numbers of parameter groups differ between a rank and the model file",
                where=rank.path,
                found=len(rank.groups),
                wanted=f"{groups}, as in {where}",
                hint=_OTHER_SAVES,
            )


def _check_maps(ranks: Sequence[Partition], number: int, places: dict[str, tuple[int, int]]) -> None:
    """Check each rank's map against `places`: name -> (begin, end) of its elements in the whole vector."""
    names = list(places)
    ends = [end for _, end in places.values()]
    low = 0
    for rank in ranks:
        high = low + rank.groups[number].numel
        if number < len(rank.maps):
            stated = {name: address for name, address in rank.maps[number].items() if address[1]}
            mine = {}
            for at in range(bisect_right(ends, low), len(names)):  # places are in ascending order
                name = names[at]
                begin, end = places[name]
                if begin >= high:
                    break
                if max(begin, low) < min(end, high):
                    mine[name] = (max(begin, low) - low, min(end, high) - max(begin, low))
            for name in {**mine, **stated}:
                if mine.get(name) != stated.get(name):
                    raise CkptconvError(
                        f"a rank's own map places {name} elsewhere in its partition",
                        where=rank.path,
                        found=f"start and length {stated.get(name)}",
                        wanted=f"{mine.get(name)}, by the model file",
                        hint=_OTHER_SAVES,
                    )
        low = high


def _addresses(group: dict[Any, Any]) -> dict[str, tuple[int, int]]:
    """Return a group's param_slice_mappings: name -> fragment_address(numel, start) (deepspeed/utils/tensor_fragment.py)."""
    return {
        name: (start, numel)
        for name, address in group.items()
        if isinstance(name, str)
        and type(start := field_of(address, "start")) is int
        and type(numel := field_of(address, "numel")) is int
    }


def _too_short(name: str, where: str) -> CkptconvError:
    return CkptconvError(
        f"the partitions end before {name} does",
        where=where,
        hint=f"{_OTHER_SAVES}, or the masters were swapped to NVMe and are not in them",
    )
