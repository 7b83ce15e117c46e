"""A pickled DeviceMesh: its sizes, and the seat (effective coordinate) of the rank that wrote the file.

torch pickles `_layout` and `_rank_map` since 2.9, the `mesh` tensor before (torch/distributed/device_mesh.py).
A seat is the rank's index in each mesh dim's *sorted* process group, which is where collectives put its data. It equals
`_coordinate_on_dim` unless the ranks of the mesh are not ascending.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

from ckptconv.errors import CkptconvError
from ckptconv.formats.bounds import MOST_DIMS, MOST_RANKS, check_name, whole_numbers
from ckptconv.formats.stand_ins import Inert, TensorRecord, field_of, items
from ckptconv.formats.torch_zip import TorchZip
from ckptconv.tensors.checkpoint import Mesh
from ckptconv.tensors.view import contiguous_strides

_Axis = list[int]  # where in the rank map each index along a mesh dim lies, from the dim's first


def read_mesh(file: TorchZip, mesh: Inert) -> tuple[Mesh, tuple[int, ...] | None]:
    """The mesh and this rank's seat; None for a rank outside the mesh."""
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
    names = tuple(items(mesh.get("_mesh_dim_names") or mesh.get("mesh_dim_names")))
    for name in names:
        check_name(name, file.path)
    shape = tuple(map(len, axes))
    found = Mesh(shape, names if len(names) == len(shape) else ())
    coordinate = mesh.get("_coordinate_on_dim")
    if coordinate is None:
        return found, None
    coordinate = whole_numbers(coordinate, "a mesh coordinate")
    if len(coordinate) != len(shape) or any(not 0 <= i < n for i, n in zip(coordinate, shape, strict=True)):
        raise CkptconvError(
            "a mesh coordinate lies outside its mesh", found=coordinate, wanted=f"inside {list(shape)}"
        )
    return found, _seat(axes, ranks, coordinate)


def _seat(axes: list[_Axis], ranks: list[int], coordinate: tuple[int, ...]) -> tuple[int, ...]:
    """The index of this rank among the sorted ranks of its line, along each dim."""
    if ranks == sorted(ranks):
        return coordinate
    here = sum(axis[index] for axis, index in zip(axes, coordinate, strict=True))
    if sum(max(axis) for axis in axes) >= len(ranks):
        raise CkptconvError("a DeviceMesh has more coordinates than ranks", found=f"{len(ranks)} ranks")
    seat = []
    for axis, index in zip(axes, coordinate, strict=True):
        line = [ranks[here - axis[index] + step] for step in axis]
        seat.append(sorted(line).index(line[index]))
    return tuple(seat)


def _axes(layout: Inert) -> list[_Axis]:
    """The dims of a _MeshLayout: `axes`, a _FlatLayout each, or one shape and stride whose items may nest."""
    axes = layout.get("axes")
    if axes is not None:
        return [_positions(field_of(axis, "shape"), field_of(axis, "stride")) for axis in items(axes)]
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
    """Offsets of one dim, row-major over its parts: a dim that was flattened from several has several."""
    sizes, steps = _flat(shape), _flat(stride)
    if len(sizes) != len(steps) or prod(sizes) > MOST_RANKS:
        raise _unknown()
    return [sum(map(int.__mul__, index, steps)) for index in product(*map(range, sizes))]


def _flat(value: Any, depth: int = 0) -> list[int]:
    """The numbers of tuples in tuples, which nest once for each time that dims were flattened."""
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
    return CkptconvError("a DeviceMesh of an unknown form", hint="please report it with the torch version")
