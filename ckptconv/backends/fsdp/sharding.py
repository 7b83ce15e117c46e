"""Compute which box of a tensor a rank holds, from its mesh coordinate and the placements, as torch.distributed.tensor does.

Every cut follows torch.chunk: each part has ceil(n / parts) elements, and the last parts may be shorter or empty
(torch/distributed/tensor/placement_types.py, Shard.local_shard_size_and_offset).
"""

from __future__ import annotations

from typing import NamedTuple

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.boxes import Box

PLACEMENTS = ("Shard", "_StridedShard", "Replicate")  # a tensor with any other placement cannot be assembled


class Placement(NamedTuple):
    """The placement of one mesh dim: its kind, one of PLACEMENTS, and the tensor dim that it cuts."""

    kind: str
    dim: int = 0
    split_factor: int = 1  # of a _StridedShard: the number of parts after the cuts before it

    def __str__(self) -> str:
        return self.kind if self.kind == "Replicate" else f"{self.kind}({self.dim})"


def local_box(
    shape: tuple[int, ...],
    mesh: tuple[int, ...],
    coordinate: tuple[int, ...],
    placements: tuple[Placement, ...],
    shard_order: tuple[tuple[int, tuple[int, ...]], ...] = (),
) -> Box:
    """Return the box that the rank at a mesh coordinate holds, in elements.

    Mesh dims cut from left to right, except a `_StridedShard`: its split factor is the number of parts into which dims to
    its right cut the tensor before it.

    Args:
        shape: the shape of the whole tensor.
        mesh: the size of each mesh dim.
        coordinate: the rank's index in each mesh dim.
        placements: one for each mesh dim.
        shard_order: (tensor dim, mesh dims) pairs, with which newer torch records the order of the cuts.

    Raises:
        CkptconvError: a placement is Partial or unknown, or cuts a dim that the tensor does not have.
    """
    for kind, *_ in placements:
        if kind == "Partial":
            raise CkptconvError(
                "a tensor is still unreduced (a Partial placement)",
                hint="all-reduce it before saving",
                kind=Kind.UNSUPPORTED,
            )
        if kind not in PLACEMENTS:
            raise CkptconvError(
                f"a placement that ckptconv does not know: {kind}",
                wanted=", ".join(PLACEMENTS),
                hint="update ckptconv, or report it with the torch version",
                kind=Kind.UNSUPPORTED,
            )
    order = [m for _, dims in shard_order for m in dims] if shard_order else _order(mesh, placements)
    offsets, sizes = [0] * len(shape), list(shape)
    for mesh_dim in order:
        dim = placements[mesh_dim].dim
        dim = dim + len(shape) if dim < 0 else dim
        if not 0 <= dim < len(shape):
            raise CkptconvError(f"a placement cuts dim {dim} of a tensor with {len(shape)} dims")
        size, parts, index = sizes[dim], mesh[mesh_dim], coordinate[mesh_dim]
        step = -(-size // parts)
        begin = min(index * step, size)
        offsets[dim] += begin
        sizes[dim] = min(step, size - begin)
    return Box(tuple(offsets), tuple(sizes))


def _order(mesh: tuple[int, ...], placements: tuple[Placement, ...]) -> list[int]:
    """Return the mesh dims in the order of their cuts, left to right except for each _StridedShard."""
    cuts: dict[int, list[int]] = {}
    for mesh_dim in reversed(range(len(mesh))):
        kind, dim, factor = placements[mesh_dim]
        if kind == "Replicate":
            continue
        before, at, parts = cuts.setdefault(dim, []), 0, 1
        while parts != factor and at < len(before):
            parts *= mesh[before[at]]
            at += 1
        if parts != factor:
            raise CkptconvError(
                f"a _StridedShard says that {factor} parts were cut before it", found=f"mesh {list(mesh)}"
            )
        before.insert(at, mesh_dim)
    return [mesh_dim for before in cuts.values() for mesh_dim in before]
