"""ZeRO's flat partitions: every parameter as views on the pieces that the ranks hold. No data moves.

Stages 1 and 2: the parameters of a group lie one after another in one vector, padded at its end, and each rank has an
equal part of it (deepspeed/runtime/zero/stage_1_and_2.py, runtime/bf16_optimizer.py). Stage 3: each parameter is cut
by itself, ceil(numel / ranks) elements a rank, padded at its own end (runtime/zero/partition_parameters.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.stand_ins import TensorRecord, field_of, items
from ckptconv.formats.torch_zip import TorchZip
from ckptconv.tensors.boxes import Chunk
from ckptconv.tensors.view import View, cat, narrow, unflatten

Shapes = dict[str, tuple[int, ...]]
_OTHER_SAVES = "the model files and the optimizer files are from different saves"


@dataclass(frozen=True, slots=True)
class Partition:
    """What one rank holds: a vector for each parameter group (stage 3: sub group).

    maps: for each group, name -> (start, elements) in the rank's vector, as the rank wrote it down; () in files
    from before DeepSpeed 0.7 and at stage 3.
    """

    path: str
    groups: tuple[View, ...]
    maps: tuple[dict[str, tuple[int, int]], ...] = ()


def partition(file: TorchZip, state: dict[str, Any], key: str) -> Partition:
    """A rank's masters, from its optimizer state. Raises CkptconvError for a state without flat vectors."""
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


def by_group(ranks: Sequence[Partition], shapes: Sequence[Shapes], gaps: Any, where: str) -> dict[str, View]:
    """Stages 1 and 2. gaps: for each group, the elements left free after each parameter; None for none.

    Raises CkptconvError where vectors are too short, longer than padding explains, or a rank's own map disagrees.
    """
    _check_counts(ranks, len(shapes), where)
    found: dict[str, View] = {}
    for number, group in enumerate(shapes):
        flat = _Flat(cat([rank.groups[number] for rank in ranks], 0))
        free = _gaps(gaps, number, where) if gaps is not None else (0,) * len(group)
        if len(free) != len(group):
            raise CkptconvError("a group has different numbers of paddings and parameters", where=where)
        at, places = 0, {}
        for (name, shape), gap in zip(group.items(), free, strict=True):
            found[name] = _piece(flat.part(at, prod(shape)), shape, name, where)
            places[name] = at, at + prod(shape)
            at += prod(shape) + gap
        # The padded length is a multiple of 2 × ranks; what the last rank saves ends before that padding.
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
    """Stage 3. Raises CkptconvError unless the parameters fill every rank's vectors exactly."""
    _check_counts(ranks, len(shapes), where)
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
    """A parameter from the vectors that the ranks hold of it, the last ones padded."""
    return _piece(cat(pieces, 0), shape, name, where)


def _piece(flat: View, shape: Sequence[int], name: str, where: str) -> View:
    size = prod(shape)
    if size > flat.numel:
        raise _too_short(name, where)
    return unflatten(narrow(flat, 0, 0, size), 0, shape)


class _Flat:
    """A long vector in chunks, one after another: a part looks at those chunks alone that it touches."""

    def __init__(self, view: View) -> None:
        self.size = view.numel
        self._view = view
        self._starts = [chunk.offsets[0] for chunk in view.chunks]

    def part(self, at: int, size: int) -> View:
        """Elements at .. at+size-1; fewer where the vector ends."""
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


def _check_counts(ranks: Sequence[Partition], groups: int, where: str) -> None:
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
    """places: name -> the elements of the whole vector that are its own. Each rank's map must say the same."""
    names = list(places)
    ends = [end for _, end in places.values()]
    low = 0
    for rank in ranks:
        high = low + rank.groups[number].numel
        if number < len(rank.maps):
            stated = {name: address for name, address in rank.maps[number].items() if address[1]}
            mine = {}
            for at in range(bisect_right(ends, low), len(names)):  # places ascend
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
    """A group's param_slice_mappings: name -> fragment_address(numel, start) (deepspeed/utils/tensor_fragment.py)."""
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
