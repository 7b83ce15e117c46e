"""A pickled DeviceMesh: its sizes, and the seat of the rank that wrote the file.

torch pickles `_layout` and `_rank_map` since 2.9, the `mesh` tensor before (torch/distributed/device_mesh.py).
A seat is where the rank's data belongs along each mesh dim. Collectives order it by the process group, and a process
group sorts its ranks; so a mesh whose ranks are not ascending has seats that differ from `_coordinate_on_dim`.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from ckptconv.backends.stand_ins import Inert, TensorRecord
from ckptconv.backends.torch_zip import TorchZip
from ckptconv.checkpoint import Mesh
from ckptconv.errors import CkptconvError
from ckptconv.view import contiguous_strides

_Axis = list[int]  # where in the rank map each index along a mesh dim lies, from the dim's first


def read_mesh(file: TorchZip, mesh: Inert) -> tuple[Mesh, tuple[int, ...] | None]:
    """The mesh and this rank's seat; None for a rank outside the mesh."""
    grid, layout = mesh.get("mesh"), mesh.get("_layout")
    if isinstance(grid, TensorRecord):
        axes = [
            [i * step for i in range(n)]
            for n, step in zip(grid.shape, contiguous_strides(grid.shape, 1), strict=True)
        ]
        ranks = file.ints(grid)
    elif isinstance(layout, Inert):
        axes = _axes(layout)
        table = mesh.get("_rank_map")
        ranks = file.ints(table) if isinstance(table, TensorRecord) else []
    else:
        raise CkptconvError("a DeviceMesh of an unknown form", hint="please report it with the torch version")
    names = tuple(mesh.get("_mesh_dim_names") or mesh.get("mesh_dim_names") or ())
    shape = tuple(map(len, axes))
    found = Mesh(shape, names if len(names) == len(shape) else ())
    coordinate = mesh.get("_coordinate_on_dim")
    if coordinate is None:
        return found, None
    coordinate = tuple(coordinate)
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
    seat = []
    for axis, index in zip(axes, coordinate, strict=True):
        line = [ranks[here - axis[index] + step] for step in axis]
        seat.append(sorted(line).index(line[index]))
    return tuple(seat)


def _axes(layout: Inert) -> list[_Axis]:
    """The dims of a _MeshLayout: `axes`, a _FlatLayout each, or one shape and stride whose items may nest."""
    axes = layout.get("axes")
    if axes is not None:
        return [_positions(axis.get("shape"), axis.get("stride")) for axis in axes]
    shape, stride = layout.get("shape"), layout.get("stride")
    if shape is None and len(layout.args) == 2:
        shape, stride = layout.args
    if isinstance(shape, int):
        shape, stride = (shape,), (stride,)
    return [_positions(size, step) for size, step in zip(shape, stride, strict=True)]


def _positions(shape: Any, stride: Any) -> _Axis:
    """Offsets of one dim, row-major over its parts: a dim that was flattened from several has several."""
    sizes, steps = _flat(shape), _flat(stride)
    return [sum(map(int.__mul__, index, steps)) for index in product(*map(range, sizes))]


def _flat(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else [number for item in value for number in _flat(item)]
