"""Which box of a tensor a rank holds, from mesh coordinate and placements, as torch.distributed.tensor cuts it.

Every cut is torch.chunk's: ceil(n / parts) elements each, the last ones short or empty
(torch/distributed/tensor/placement_types.py, Shard.local_shard_size_and_offset).
"""

from __future__ import annotations

from typing import NamedTuple

from ckptconv.errors import CkptconvError


class Placement(NamedTuple):
    """One mesh dim's placement: kind "Shard", "_StridedShard" or "Replicate", and the tensor dim that it cuts."""

    kind: str
    dim: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "Replicate" else f"{self.kind}({self.dim})"


class Box(NamedTuple):
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def local_box(
    shape: tuple[int, ...],
    mesh: tuple[int, ...],
    coordinate: tuple[int, ...],
    placements: tuple[Placement, ...],
    shard_order: tuple[tuple[int, tuple[int, ...]], ...] = (),
) -> Box:
    """The box that the rank at a mesh coordinate holds.

    Mesh dims cut from left to right; a `_StridedShard` says that the dims to its right have cut before it, so
    then it is right to left. shard_order: newer torch states the order itself, (tensor dim, mesh dims) pairs.
    """
    order = list(range(len(mesh)))
    if any(placement.kind == "_StridedShard" for placement in placements):
        order.reverse()
    elif shard_order:
        stated = [dim for _, dims in shard_order for dim in dims]
        order = stated + [dim for dim in order if dim not in stated]
    offsets, sizes = [0] * len(shape), list(shape)
    for mesh_dim in order:
        kind, dim = placements[mesh_dim]
        if kind == "Replicate":
            continue
        if kind not in ("Shard", "_StridedShard"):
            raise CkptconvError(
                f"a {kind} placement is no finished value", hint="save the checkpoint after the reduction"
            )
        dim = dim + len(shape) if dim < 0 else dim
        if not 0 <= dim < len(shape):
            raise CkptconvError(f"a placement cuts dim {dim} of a tensor with {len(shape)} dims")
        size, parts, index = sizes[dim], mesh[mesh_dim], coordinate[mesh_dim]
        step = -(-size // parts)
        begin = min(index * step, size)
        offsets[dim] += begin
        sizes[dim] = min(step, size - begin)
    return Box(tuple(offsets), tuple(sizes))
