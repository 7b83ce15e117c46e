"""Read a pickled DeviceMesh: its sizes, and the coordinate of the rank that wrote the file.

torch pickles `_layout`, `_rank_map` and `_root_mesh` since 2.10, and a `mesh` tensor before
(torch/distributed/device_mesh.py).

Order: the index of a shard along a mesh dim is the index of its rank in that dim's process group. `new_group` sorts the
ranks of a group, so on a mesh whose ranks do not ascend this index differs from `_coordinate_on_dim`. The ranks are not
sorted under torch 2.15's DeviceMesh(preserve_rank_order=True), nor by torch 2.14's `split_group`, which names a group by a
hash.

Submeshes: the submesh ('ep_fsdp',) of a mesh ('ep_fsdp', 'ep') over ranks 0-3 spans the ranks (0, 2) on ranks 0 and 2, and
the ranks (1, 3) on ranks 1 and 3. Its rank map is that of the root, so only the root mesh says to which submesh a rank
belongs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

from ckptconv.backends.fsdp.attributes import require_known
from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.bounds import MOST_DIMS, MOST_RANKS, check_name, whole_numbers
from ckptconv.formats.inert import Inert, items
from ckptconv.formats.stand_ins import TensorRecord
from ckptconv.formats.torch_zip import TorchZip
from ckptconv.tensors.boxes import contiguous_strides
from ckptconv.tensors.checkpoint import Mesh

_Axis = list[int]  # the offset in the rank map of each index along a mesh dim
Index = tuple[int, ...]


class Outside(NamedTuple):
    """A dim of the root mesh that a submesh does not span, and the rank's index along it."""

    name: str
    size: int
    at: int


@dataclass(frozen=True, slots=True)
class Position:
    """The position of one rank in a mesh.

    Attributes:
        index: the index of the rank's shard along each mesh dim.
        coordinate: the rank's index along each mesh dim in the order of the mesh, as torch pickles it.
        first: the first rank of the rank's own (sub)mesh, which identifies it within the root; None if unknown.
        outside: the dims of the root that the mesh does not span.
        mesh: the mesh.
        ranks: the ranks of the mesh or of its root, as the rank's file lists them.
    """

    index: Index
    coordinate: Index
    first: int | None
    outside: tuple[Outside, ...]
    mesh: Mesh
    ranks: list[int] = field(compare=False, repr=False)


class _Layout(NamedTuple):
    """A mesh as offsets into a list of ranks.

    Attributes:
        dims: one axis per mesh dim.
        ranks: the list.
        names: the names of the mesh dims; empty if they have none.
        coordinate: the coordinate of the rank that wrote the file; None if the mesh does not contain it.
    """

    dims: list[_Axis]
    ranks: list[int]
    names: tuple[str, ...]
    coordinate: Index | None

    @property
    def mesh(self) -> Mesh:
        shape = tuple(map(len, self.dims))
        return Mesh(shape, self.names if len(self.names) == len(shape) else ())

    def place(self) -> int:
        """Return the offset of the rank in the list, relative to the start of its mesh."""
        return sum(dim[index] for dim, index in zip(self.dims, self.coordinate or (), strict=True))


def read_mesh(file: TorchZip, mesh: Inert) -> tuple[Mesh, Position | None]:
    """Return the mesh and the rank's position in it, or None as the position if the mesh does not contain the rank.

    Raises:
        CkptconvError: the mesh has unknown attributes, or the order of its ranks is unknown.
    """
    found = _read(file, mesh)
    if found.coordinate is None:
        return found.mesh, None
    root_record = mesh.get("_root_mesh")
    root = _read(file, root_record) if isinstance(root_record, Inert) else None
    begin, outside = 0, tuple[Outside, ...]()
    if root is not None and root.coordinate is not None:
        if root.ranks != found.ranks:
            raise CkptconvError("a submesh has other ranks than its root mesh", where=file.path)
        begin = root.place() - found.place()
        outside = _outside(found, root)
    elif found.mesh.shape and prod(found.mesh.shape) != len(found.ranks):
        index = _index(file, mesh, found, None)
        return found.mesh, Position(index, found.coordinate, None, (), found.mesh, found.ranks)
    if begin < 0 or begin + sum(dim[-1] for dim in found.dims if dim) >= max(len(found.ranks), 1):
        raise CkptconvError("a DeviceMesh names more places than it has ranks", where=file.path)
    first = found.ranks[begin] if found.ranks else None
    index = _index(file, mesh, found, begin)
    return found.mesh, Position(index, found.coordinate, first, outside, found.mesh, found.ranks)


def read_root(file: TorchZip, mesh: Inert) -> tuple[Mesh, Position | None]:
    """Return the root of a mesh, which may be the mesh itself, and the rank's position in the root."""
    root = mesh.get("_root_mesh")
    return read_mesh(file, root if isinstance(root, Inert) else mesh)


def _read(file: TorchZip, mesh: Inert) -> _Layout:
    require_known(mesh, "DeviceMesh")
    grid, layout = mesh.get("mesh"), mesh.get("_layout")
    if isinstance(grid, TensorRecord):
        ranks = file.ints(grid)
        axes = [
            [i * step for i in range(n if ranks else 0)]
            for n, step in zip(grid.shape, contiguous_strides(grid.shape, 1), strict=True)
        ]
    elif isinstance(layout, Inert):
        axes = _axes(layout)
        table = mesh.get("_rank_map")
        ranks = file.ints(table) if isinstance(table, TensorRecord) else []
    else:
        raise _unknown()
    if prod(map(len, axes)) > MOST_RANKS:
        raise _unknown()
    names = tuple(items(mesh.get("_mesh_dim_names") or mesh.get("mesh_dim_names")))
    for name in names:
        check_name(name, file.path)
    return _Layout(axes, ranks, names, _coordinate(mesh, tuple(map(len, axes))))


def _coordinate(mesh: Inert, shape: Index) -> Index | None:
    coordinate = mesh.get("_coordinate_on_dim")
    if coordinate is None:
        return None
    coordinate = whole_numbers(coordinate, "a mesh coordinate")
    if len(coordinate) != len(shape) or any(not 0 <= i < n for i, n in zip(coordinate, shape, strict=True)):
        raise CkptconvError(
            "a mesh coordinate lies outside its mesh", found=coordinate, wanted=f"inside {list(shape)}"
        )
    return coordinate


def _outside(mesh: _Layout, root: _Layout) -> tuple[Outside, ...]:
    """Return the root's dims along which the mesh has only one index: the offset of the second index is not in the mesh."""
    inside = {sum(places) for places in product(*mesh.dims)}
    names = root.names or tuple(f"dim{n}" for n in range(len(root.dims)))
    return tuple(
        Outside(name, len(dim), index)
        for name, dim, index in zip(names, root.dims, root.coordinate or (), strict=True)
        if len(dim) > 1 and dim[1] not in inside
    )


def _index(file: TorchZip, mesh: Inert, found: _Layout, begin: int | None) -> Index:
    """Return the rank's index in the process group of each mesh dim."""
    ranks, coordinate = found.ranks, found.coordinate or ()
    if ranks == sorted(ranks) or mesh.get("_preserve_rank_order"):
        return coordinate
    if begin is None:
        raise CkptconvError(
            "a DeviceMesh does not say which of its root's ranks are its own", where=file.path
        )
    here, index = begin + found.place(), []
    for number, (axis, at) in enumerate(zip(found.dims, coordinate, strict=True)):
        line = [ranks[here - axis[at] + step] for step in axis]
        if line != sorted(line) and not _is_sorted_group(mesh, number):
            raise CkptconvError(
                "a DeviceMesh's ranks do not ascend, and nothing tells whether its process groups sort them",
                where=file.path,
                found=f"ranks {line} along dim {number}",
                hint="gather the model in the trainer (a full state dict) and convert that",
                kind=Kind.UNSUPPORTED,
            )
        index.append(sorted(line).index(line[at]))
    return tuple(index)


def _is_sorted_group(mesh: Inert, dim: int) -> bool:
    """Return True if new_group made the group: then its name is a counter. torch before 2.8 pickles (tag, ranks, name)."""
    groups = items(mesh.get("_dim_group_names") or mesh.get("_dim_group_infos"))
    group = groups[dim] if dim < len(groups) else None
    name = group[-1] if isinstance(group, list | tuple) and group else group
    return isinstance(name, str) and name.isdecimal()


def _axes(layout: Inert) -> list[_Axis]:
    """Return the dims of a _MeshLayout, which has one _FlatLayout per dim (`axes`), or a shape and stride that may nest."""
    require_known(layout, "_MeshLayout")
    axes = layout.get("axes")
    if axes is not None:
        flat = [require_known(axis, "_FlatLayout") for axis in items(axes)]
        return [_positions(axis.get("shape"), axis.get("stride")) for axis in flat]
    shape, stride = layout.get("shape"), layout.get("stride")
    if shape is None and len(layout.args) == 2:
        shape, stride = layout.args
    if isinstance(shape, int):
        shape, stride = (shape,), (stride,)
    sizes, steps = items(shape), items(stride)
    if len(sizes) != len(steps):
        raise _unknown()
    return [_positions(size, step) for size, step in zip(sizes, steps, strict=True)]


def _positions(shape: Any, stride: Any) -> _Axis:
    """Return the offsets of one mesh dim; one that was flattened from several is row-major over them."""
    sizes, steps = _flat(shape), _flat(stride)
    if len(sizes) != len(steps) or prod(sizes) > MOST_RANKS:
        raise _unknown()
    return _row_major(tuple(sizes), tuple(steps))


@lru_cache(maxsize=64)  # every rank's file repeats its meshes
def _row_major(sizes: Index, steps: Index) -> _Axis:
    return [sum(map(int.__mul__, index, steps)) for index in product(*map(range, sizes))]


def _flat(value: Any, depth: int = 0) -> list[int]:
    """Return the numbers in nested tuples; each flattening of dims adds one level."""
    if type(value) is int and 0 <= value < 1 << 63:
        return [value]
    if depth > MOST_DIMS or not isinstance(value, tuple | list) or len(value) > MOST_DIMS:
        raise _unknown()
    found: list[int] = []
    for item in value:
        found += _flat(item, depth + 1)
        if len(found) > MOST_DIMS:
            raise _unknown()
    return found


def _unknown() -> CkptconvError:
    return CkptconvError(
        "a DeviceMesh of an unknown form",
        hint="please report it with the torch version",
        kind=Kind.UNSUPPORTED,
    )
