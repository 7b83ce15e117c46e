"""Assemble one tensor from all ranks' pieces: decide which parts make the whole, and which are replicas.

Within a tensor's own mesh the placements say what is cut and what is replicated. A mesh may span only some of the ranks,
and the files do not say what the other ranks hold: the same norms under FSDP + TP, other experts under expert parallelism.
verl's VeOmni engine (verl/workers/engine/veomni/, veomni/distributed/parallel_plan.py) cuts experts along dim 0 over the
mesh dim "ep" before FSDP sees them, and their DTensors record only the mesh ("ep_fsdp",). So parts of different "ep"
indices are joined along dim 0, and other parts from outside the mesh are replicas only if their bytes are equal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ckptconv.backends.fsdp.piece import Piece, Pieces
from ckptconv.errors import CkptconvError, Incomplete, Kind
from ckptconv.tensors.boxes import Box
from ckptconv.tensors.checkpoint import StoredTensor
from ckptconv.tensors.tiling import check_tiling
from ckptconv.tensors.view import View, cat

_EXPERTS = "ep"  # the mesh dim over which VeOmni cuts experts


class _Copies:
    """The replicas of a tensor that were found, and whether their bytes are known to be equal."""

    def __init__(self) -> None:
        self.views: list[tuple[tuple[int, ...], View]] = []
        self.implied = False
        self._same: set[bool | None] = set()

    def add(self, used: Piece, copy: Piece, offsets: tuple[int, ...]) -> None:
        self.views.append((offsets, copy.view))
        self._same.add(used.same(copy))
        known = used.position is not None and used.position.first is not None
        self.implied |= not (known and _own_mesh(used) == _own_mesh(copy))

    @property
    def equal(self) -> bool | None:
        """True if the checksums of all replicas equal those of the used bytes; None if only reading the bytes can decide."""
        return (
            None if not self._same else False if False in self._same else None if None in self._same else True
        )


def assemble(name: str, found: Pieces, missing: Sequence[int], world_size: int, folder: Path) -> StoredTensor:
    """Return the whole tensor and its replicas.

    Args:
        name: the name of the tensor.
        found: the pieces of all ranks whose files exist.
        missing: ranks whose files do not exist.
        world_size: the number of ranks that saved.
        folder: the folder of the checkpoint, for error messages.

    Raises:
        Incomplete: the parts do not tile the tensor, and a rank file is missing.
        CkptconvError: the parts do not tile the tensor, although every rank file exists.
    """
    first, copies = found.pieces[0], _Copies()
    whole = first.whole
    if first.box is None:
        for piece in found.pieces[1:]:
            copies.add(first, piece, (0,) * len(whole.shape))
        return StoredTensor(first.view, "", tuple(copies.views), copies.equal, copies.implied)
    groups: dict[int, list[Piece]] = defaultdict(list)
    sizes, experts = set(), dict[int, tuple[int, int]]()
    for piece in found.pieces:
        if piece.position is None and piece.box is not None and 0 in piece.box.sizes:
            continue  # a rank outside the mesh
        outside = piece.position.outside if piece.position is not None else ()
        size, index = experts.get(id(outside)) or experts.setdefault(id(outside), _experts(piece))
        sizes.add(size)
        groups[index].append(piece)
    if len(sizes) > 1 or (max(sizes, default=1) > 1 and not whole.shape):
        raise CkptconvError(f"ranks disagree on how the experts of {name} are cut", where=folder)
    size = max(sizes, default=1)
    try:
        lost = sorted(set(range(size)) - groups.keys()) if sizes else []
        if lost:
            raise CkptconvError(
                f"no rank holds the experts of index {lost} along the mesh dim {_EXPERTS!r}",
                kind=Kind.INCOMPLETE,
            )
        views = [_joined(name, groups[index] or found.pieces, index, copies) for index in range(size)]
    except CkptconvError as error:
        if missing:
            raise incomplete(missing, world_size, folder) from error
        raise error.within(inside=name, where=folder) from error
    if size == 1:
        return StoredTensor(views[0], whole.placement, tuple(copies.views), copies.equal, copies.implied)
    placement = f"{whole.placement}, {_EXPERTS} {size} along dim 0"
    return StoredTensor(cat(views, 0), placement, tuple(copies.views), copies.equal, copies.implied)


def _joined(name: str, pieces: list[Piece], index: int, copies: _Copies) -> View:
    """Return the tensor that one group of ranks holds; further pieces of the same box become replicas."""
    whole, parts = pieces[0].whole, dict[Box, Piece]()
    for piece in pieces:
        box = piece.box
        if box is None or piece.chunk is None:
            continue
        used = parts.setdefault(box, piece)
        if used is piece:
            continue
        if (
            _own_mesh(piece) == _own_mesh(used)
            and "Replicate" not in piece.whole.placement
            and _index(piece) != _index(used)
        ):
            raise CkptconvError(
                f"two ranks hold the same part of {name}, but nothing says that it is replicated"
            )
        start = box.offsets
        if index:
            start = (box.offsets[0] + index * whole.shape[0], *box.offsets[1:])
        copies.add(used, piece, start)
    chunks = tuple(part.chunk for part in parts.values() if part.chunk is not None)
    check_tiling(whole.shape, chunks)
    return View(whole.shape, whole.dtype, chunks)


def _experts(piece: Piece) -> tuple[int, int]:
    """Return (size, index) of the dim outside the tensor's mesh over which experts are cut; (1, 0) if there is none."""
    outside = piece.position.outside if piece.position is not None else ()
    return next(((dim.size, dim.at) for dim in outside if dim.name == _EXPERTS), (1, 0))


def _own_mesh(piece: Piece) -> int | None:
    return piece.position.first if piece.position is not None else None


def _index(piece: Piece) -> tuple[int, ...]:
    return piece.position.index if piece.position is not None else ()


def incomplete(missing: Sequence[int], world_size: int, folder: Path) -> Incomplete:
    """Return the error for missing rank files.

    Args:
        missing: ranks whose files do not exist.
        world_size: the number of ranks that saved.
        folder: the folder of the checkpoint.
    """
    found = " ".join("✗" if rank in missing else str(rank) for rank in range(world_size))
    word = "rank" if len(missing) == 1 else "ranks"
    return Incomplete(
        f"{word} {spans(missing)} of {world_size} {'is' if len(missing) == 1 else 'are'} missing from the checkpoint",
        where=folder,
        found=found if world_size <= 64 else f"{world_size - len(missing)} rank files",
        wanted=f"model_world_size_{world_size}_rank_{missing[0]}.pt",
        hint=f"copy it from the node where rank {missing[0]} ran, or name its folder with --also",
    )


def spans(ranks: Sequence[int]) -> str:
    """Return ascending ranks as text: [1, 2, 3, 7] becomes "1-3, 7"."""
    found: list[list[int]] = []
    for rank in ranks:
        if found and found[-1][1] == rank - 1:
            found[-1][1] = rank
        else:
            found.append([rank, rank])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in found)
