"""Load one pickle for all rank files whose pickles are equal, or differ only in their per-rank fields.

FSDP's ranks pickle the same names, shapes and placements thousands of times. Two kinds of field differ per rank: the
coordinates of the meshes (`_coordinate_on_dim`), and numbers that ckptconv never uses, which are a mesh's `_rank` and the
`_hash` of meshes and specs (torch/distributed/device_mesh.py and tensor/_dtensor_spec.py, protocol 2). This module finds
these fields in the bytes by their names, which is a guess, and then checks the guess: it writes sentinel values there, loads
the pickle, and requires that exactly these fields have changed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ckptconv.errors import CkptconvError
from ckptconv.formats.inert import Inert
from ckptconv.formats.stand_ins import WrapperRecord
from ckptconv.formats.torch_zip import Load
from ckptconv.formats.unpickle import safe_load

_COORDINATE, _OWN = b"_coordinate_on_dim", (b"_hash", b"_rank")
_NUMBERS = rb"((?:K.|M..){1,4})"
# A tuple of one to three numbers, a longer tuple, or a list.
_COORDINATES = (
    b"(?:" + _NUMBERS + rb"[\x85\x86\x87]|\(" + _NUMBERS + rb"t|\](?:q.|r....)\(?" + _NUMBERS + b"[ae])"
)
_LONG = b"|".join(b"\x8a" + re.escape(bytes([size])) + b"." * size for size in range(1, 10))
_NUMBER = b"(?:K.|M..|J....|" + _LONG + b")"
_NO_NUMBER = b"J\0\0\0\0"
_MOST = 1 << 26  # bytes of cached pickles; their objects take several times as much memory
_Span = tuple[int, int]


def remembering() -> Load:
    """Return a `safe_load` with a cache, because many files have equal pickles. Callers must not change the result."""
    seen: dict[bytes, Any] = {}
    size = 0

    def load(data: bytes, where: str) -> Any:
        nonlocal size
        root = seen.get(data)
        if root is None:
            if size + len(data) > _MOST:
                seen.clear()
                size = 0
            root = seen[data] = safe_load(data, where)
            size += len(data)
        return root

    return load


class _Known(NamedTuple):
    """A loaded pickle.

    Attributes:
        root: its object.
        meshes: the states of its meshes, in the order of their coordinates in the pickle; None if it cannot be shared.
    """

    root: Any
    meshes: list[dict[str, Any]] | None


class RankPickles:
    """Load the pickles of one checkpoint's rank files, one after another."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Known] = {}
        self._size = 0

    def load(self, data: bytes, where: str) -> Any:
        """Load a pickle as `safe_load` does.

        Several ranks may get the same object with other coordinates, so use the result before the next call.
        """
        places = _values(data, _COORDINATE, _COORDINATES)
        if not 0 < len(places) < 256:
            return safe_load(data, where)
        key = _without_own(_filled(data, places, [0] * len(places), [], 0))
        known = self._known.get(key)
        if known is None:
            self._forget(len(key))
            own = _apart(span for name in _OWN for span in _values(data, name, b"(" + _NUMBER + b")"))
            known = self._known[key] = _tried(data, places, own, where)
            self._size += len(key)
        if known.meshes is None or len(known.meshes) != len(places):
            return safe_load(data, where)
        for span, mesh in zip(places, known.meshes, strict=True):
            mesh[_COORDINATE.decode()] = tuple(_numbers(data[slice(*span)]))
        return known.root

    def _forget(self, more: int) -> None:
        while self._known and self._size + more > _MOST:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._size -= len(oldest)


def _tried(data: bytes, places: list[_Span], own: list[_Span], where: str) -> _Known:
    """Unpickle with coordinate n replaced by (n, n, …) and every other per-rank field by one random sentinel.

    A hash may hold the bytes of a field: such a place is no coordinate, and a pickle that cannot be loaded with sentinels is
    not shared.
    """
    places = [place for place in places if not any(begin <= place[0] < end for begin, end in own)]
    numbers, mark = range(1, len(places) + 1), (1 << 30) + (int.from_bytes(os.urandom(4), "little") >> 2)
    try:
        root = safe_load(_filled(data, places, numbers, own, mark), where)
    except CkptconvError:
        return _Known(None, None)
    tables = list({id(table): table for table in _tables(root)}.values())
    marked = sum(table.get(name.decode()) == mark for table in tables for name in _OWN)
    found: dict[Any, dict[str, Any]] = {}
    for table in tables:
        coordinate = table.get(_COORDINATE.decode(), ())
        if isinstance(coordinate, tuple | list) and coordinate:
            found[coordinate[0] if len(set(coordinate)) == 1 else None] = table
    sizes = [len(_numbers(data[slice(*span)])) for span in places]
    if marked != len(own) or list(map(str, numbers)) != sorted(
        map(str, found), key=lambda text: (len(text), text)
    ):
        return _Known(None, None)
    meshes = [found[number] for number in numbers]
    if [len(mesh[_COORDINATE.decode()]) for mesh in meshes] != sizes:
        return _Known(None, None)
    return _Known(root, meshes)


def _tables(root: Any) -> Iterator[dict[Any, Any]]:
    """Yield the states of a state dict's specs, of their meshes, and of the meshes from which those were sliced."""
    meshes: dict[int, Inert] = {}
    for value in root.values() if isinstance(root, dict) else ():
        spec = value.state.get("_spec") if isinstance(value, WrapperRecord) else None
        if isinstance(spec, Inert):
            yield from _parts(spec)
            if isinstance(mesh := spec.get("mesh"), Inert):
                meshes[id(mesh)] = mesh
    left = list(meshes.values())
    while left:
        mesh = left.pop()
        yield from _parts(mesh)
        flattened = mesh.get("_flatten_mapping")
        for other in (mesh.get("_root_mesh"), *(flattened.values() if isinstance(flattened, dict) else ())):
            if isinstance(other, Inert) and id(other) not in meshes:
                meshes[id(other)] = other
                left.append(other)


def _parts(record: Inert) -> Iterator[dict[Any, Any]]:
    """Yield the fields of a pickled object: one dict, or two for a class with slots."""
    for part in record.state if isinstance(record.state, tuple) else (record.state,):
        if isinstance(part, dict):
            yield part


def _named(data: bytes, name: bytes) -> tuple[int, bytes] | None:
    """Return where a field's name ends, which a pickle writes once, and how it refers to the name later; or None."""
    start = b"X" + len(name).to_bytes(4, "little") + name
    first = re.compile(re.escape(start) + b"(q.|r....)", re.DOTALL).search(data)
    if first is None:
        return None
    place = int.from_bytes(first[1][1:], "little")
    return first.end(), b"h" + bytes([place]) if place < 256 else b"j" + place.to_bytes(4, "little")


def _values(data: bytes, name: bytes, value: bytes) -> list[_Span]:
    """Return the spans of a field's values."""
    named = _named(data, name)
    if named is None:
        return []
    begin, get = named
    here = re.compile(value, re.DOTALL).match(data, begin)
    later = re.compile(re.escape(get) + value, re.DOTALL).finditer(data, begin)
    return [found.span(found.lastindex or 0) for found in (*([here] if here else []), *later)]


def _apart(spans: Iterable[_Span]) -> list[_Span]:
    """Return the spans in order, without those that begin inside another one."""
    found: list[_Span] = []
    for begin, end in sorted(spans):
        if not found or begin >= found[-1][1]:
            found.append((begin, end))
    return found


def _without_own(data: bytes) -> bytes:
    """Return the pickle with zeros in the per-rank fields that ckptconv never uses; a file may have hundreds of them."""
    for name in _OWN:
        named = _named(data, name)
        if named is None:
            continue
        begin, get = named
        here = re.compile(_NUMBER, re.DOTALL).match(data, begin)
        parts = re.split(re.escape(get) + _NUMBER, data[here.end() if here else begin :], flags=re.DOTALL)
        data = data[:begin] + (_NO_NUMBER if here else b"") + (get + _NO_NUMBER).join(parts)
    return data


def _filled(
    data: bytes, places: Sequence[_Span], numbers: Sequence[int], own: Sequence[_Span], mark: int
) -> bytes:
    """Return the pickle with other values in its per-rank fields.

    Args:
        data: the pickle.
        places: the spans of the coordinates.
        numbers: the new value of every index in each coordinate, encoded in as many bytes as before.
        own: the spans of the other per-rank fields.
        mark: the new value of those, below 2^31.
    """
    changes = {span: b"J" + mark.to_bytes(4, "little") for span in own}
    for (begin, end), number in zip(places, numbers, strict=True):
        changes[begin, end] = re.sub(
            b"K.|M..",
            lambda match: match[0][:1] + number.to_bytes(len(match[0]) - 1, "little"),  # noqa: B023
            data[begin:end],
            flags=re.DOTALL,
        )
    parts, at = [], 0
    for (begin, end), changed in sorted(changes.items()):
        parts += [data[at:begin], changed]
        at = end
    return b"".join([*parts, data[at:]])


def _numbers(data: bytes) -> list[int]:
    return [int.from_bytes(part[1:], "little") for part in re.findall(b"K.|M..", data, re.DOTALL)]
