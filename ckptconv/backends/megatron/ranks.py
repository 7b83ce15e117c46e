"""Finds the coordinates of the ranks of a torch_dist checkpoint, from the random states that are saved per (PP, TP).

A rank of the data-parallel group of (PP, TP) writes `rng_state/shard_PP.TP_PPS.TPS` (megatron/training/checkpointing.py,
get_rng_state). If all of these ranks are numbered in Megatron's default order (megatron/core/parallel_state.py, order
tp-cp-ep-dp-pp), the coordinates of all other ranks follow.
"""

from __future__ import annotations

import re

from ckptconv.backends.dcp.metadata import DcpMetadata
from ckptconv.tensors.checkpoint import Mesh

_STATE = "rng_state/"
_RNG = re.compile(rf"^{_STATE}shard_(\d+)\.(\d+)_(\d+)\.(\d+)$")
_FILE = re.compile(r"^__(\d+)_\d+\.distcp$")
Coordinate = tuple[tuple[str, int], ...]


def ranks_of(metadata: DcpMetadata) -> tuple[Mesh | None, dict[int, Coordinate]]:
    """The mesh of TP and PP, and rank -> coordinate for the ranks whose coordinate is known.

    Args:
        metadata: the checkpoint's `.metadata`.

    Returns:
        (None, {}) if no random states are stored.
    """
    owners: dict[tuple[int, int], int] = {}
    sizes = (0, 0)
    files: set[str] = set()
    for (name, _), (file, _, _) in metadata.infos.items():
        files.add(file)
        if name.startswith(_STATE) and (found := _RNG.match(name)) and (written := _FILE.match(file)):
            pp, tp, *whole = map(int, found.groups())
            owners[pp, tp], sizes = int(written[1]), (whole[0], whole[1])
    if not owners or not all(sizes):
        return None, {}
    stages, parts = sizes
    world = 1 + max(int(written[1]) for file in files if (written := _FILE.match(file)))
    mesh = Mesh((parts, stages), ("tp", "pp"))
    each, left = divmod(world, stages)
    usual = not left and not each % parts
    usual = usual and all((rank // each, rank % parts) == coordinate for coordinate, rank in owners.items())
    if usual:
        return mesh, {rank: _coordinate(rank // each, rank % parts, sizes) for rank in range(world)}
    return mesh, {rank: _coordinate(pp, tp, sizes) for (pp, tp), rank in owners.items()}


def _coordinate(pp: int, tp: int, sizes: tuple[int, int]) -> Coordinate:
    """The coordinate along the axes that have more than one rank. `sizes` is (PP, TP)."""
    return tuple((axis, at) for axis, at, size in zip(("pp", "tp"), (pp, tp), sizes, strict=True) if size > 1)
