"""verl's FSDP checkpoints: one model_world_size_W_rank_R.pt a rank, of DTensors, ShardedTensors or plain tensors.

Written by verl/utils/checkpoint/fsdp_checkpoint_manager.py with torch.save of the sharded state dict. Placements say
what is cut and what is replicated; values never do. A plain tensor is whole on every rank.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from ckptconv.backends.fsdp.pieces import Meshes, Piece, Reader
from ckptconv.backends.fsdp.sharding import Box
from ckptconv.backends.runs import Place
from ckptconv.errors import CkptconvError, Incomplete
from ckptconv.formats.bounds import check_ranks
from ckptconv.formats.json import read_table
from ckptconv.tensors.checkpoint import Checkpoint, Lora, RankFile, Skipped, StoredTensor
from ckptconv.tensors.view import place

NAME = "fsdp"
_RANK_FILE = re.compile(r"^model_world_size_(\d+)_rank_(\d+)\.pt$")


def is_mine(folder: Path) -> bool:
    """True for a folder with at least one rank file."""
    return any(_RANK_FILE.match(path.name) for path in folder.iterdir())


def read(place_: Place, also: Sequence[Path] = ()) -> Checkpoint:
    """Read every rank's metadata. also: further folders of the same checkpoint, from other nodes' disks.

    Raises CkptconvError for a missing rank, ranks that disagree, and shards that do not tile their tensor.
    """
    folders = [place_.folder, *also]
    world_size, paths = _rank_files(folders)
    pieces: dict[str, _Pieces] = defaultdict(_Pieces)
    reader, held = Reader(), 0
    for rank, path in sorted(paths.items()):
        nbytes, found = reader.read(str(path), rank)
        held += nbytes
        for name, piece in found:
            pieces[name].add(name, rank, piece)
    missing = [rank for rank in range(world_size) if rank not in paths]
    _check_same_names(pieces, sorted(paths), folders[0])
    tensors = {
        name: _assemble(name, found, missing, world_size, folders[0]) for name, found in pieces.items()
    }
    used = sum(t.view.nbytes + t.replica_bytes for t in tensors.values())
    notes = place_.notes()
    if missing:
        notes.append(
            f"rank files {_spans(missing)} are missing, but the replicas on other ranks are complete"
        )
    skipped = [
        *_skipped(folders),
        Skipped("storage padding", max(held - used, 0), "belongs to no tensor"),
    ]
    seats = _seats(reader.meshes)
    config = read_table(place_.folder / "fsdp_config.json")
    version = config.get("FSDP_version")
    return Checkpoint(
        backend=NAME,
        layout=f"verl FSDP{version or ''}, one file per rank",
        root=place_.folder,
        world_size=world_size,
        files=tuple(
            RankFile(rank, str(path), path.stat().st_size, seats.get(rank, ()))
            for rank, path in sorted(paths.items())
        ),
        tensors=tensors,
        meshes=tuple(reader.meshes),
        step=place_.step,
        role=place_.role,
        assets=next(
            (f / "huggingface" for f in folders if (f / "huggingface" / "config.json").is_file()), None
        ),
        skipped=tuple(item for item in skipped if item.nbytes),
        lora=Lora(_lora_meta(folders)),
        extras={"fsdp_config": config},
        notes=tuple(notes),
    )


def _seats(meshes: Meshes) -> dict[int, tuple[tuple[str, int], ...]]:
    """rank -> coordinate in the largest mesh. None of a mesh of one dim, which says no more than the rank does, nor of
    one whose ranks stand in another order than they were sorted in: two ranks may have one seat there."""
    mesh = max(meshes, key=lambda mesh: (prod(mesh.shape), len(mesh.shape)), default=None)
    if mesh is None or len(mesh.shape) < 2 or len(set(meshes[mesh].values())) < len(meshes[mesh]):
        return {}
    names = mesh.names or tuple(f"dim{n}" for n in range(len(mesh.shape)))
    return {rank: tuple(zip(names, seat, strict=True)) for rank, seat in meshes[mesh].items()}


@dataclass(slots=True)
class _Pieces:
    """All ranks' pieces of one tensor."""

    ranks: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)

    def add(self, name: str, rank: int, piece: Piece) -> None:
        if self.pieces:
            first = self.pieces[0]
            if (piece.shape, piece.dtype, piece.box is None) != (first.shape, first.dtype, first.box is None):
                raise CkptconvError(
                    f"ranks disagree on {name}",
                    found=f"rank {rank}: {_say(piece)}",
                    wanted=f"as rank {self.ranks[0]}: {_say(first)}",
                    hint="the rank files are from different saves; copy all of one step again",
                )
        if not self.ranks or self.ranks[-1] != rank:
            self.ranks.append(rank)
        self.pieces.append(piece)


def _rank_files(folders: Sequence[Path]) -> tuple[int, dict[int, Path]]:
    found: dict[int, dict[int, Path]] = {}
    for folder in folders:
        for path in sorted(folder.iterdir()):
            match = _RANK_FILE.match(path.name)
            if match:
                world, rank = int(match.group(1)), int(match.group(2))
                first = found.setdefault(world, {}).setdefault(rank, path)
                if first.stat().st_size != path.stat().st_size:
                    raise CkptconvError(
                        f"rank {rank} is there twice, with different sizes", where=f"{first} and {path}"
                    )
    if not found:
        raise CkptconvError("no rank files here", where=folders[0], wanted="model_world_size_W_rank_R.pt")
    if len(found) > 1:
        raise CkptconvError(
            "the folder has rank files of different world sizes",
            where=folders[0],
            found=", ".join(map(str, sorted(found))),
            hint="they are from different saves; move one set away",
        )
    ((world, paths),) = found.items()
    check_ranks(world, folders[0])
    stated = read_table(folders[0] / "fsdp_config.json").get("world_size")
    if stated is not None and stated != world:
        raise CkptconvError(
            "fsdp_config.json and the file names disagree on the world size",
            where=folders[0],
            found=f"{stated} and {world}",
        )
    extra = [rank for rank in paths if rank >= world]
    if extra or not world:
        raise CkptconvError(f"rank {extra} is outside world size {world}", where=folders[0])
    return world, paths


def _assemble(name: str, found: _Pieces, missing: list[int], world_size: int, folder: Path) -> StoredTensor:
    first = found.pieces[0]
    if first.box is None:
        replicas = tuple(((0,) * len(first.shape), piece.view) for piece in found.pieces[1:])
        return StoredTensor(first.view, "", replicas)
    parts: dict[Box, Piece] = {}
    copies = []
    for piece in found.pieces:
        box = piece.box
        if box is None or 0 in box.sizes or 0 in first.shape:
            continue
        if box not in parts:
            parts[box] = piece
            continue
        # A mesh may span only some of the ranks (norms under FSDP + TP): ranks in the same seat hold the same part.
        if "Replicate" not in piece.placement and piece.seat != parts[box].seat:
            raise CkptconvError(
                f"two ranks hold the same part of {name}, but nothing says that it is replicated",
                where=folder,
            )
        copies.append((box.offsets, piece.view))
    try:
        view = place(first.shape, first.dtype, [(box.offsets, part.view) for box, part in parts.items()])
    except CkptconvError as error:
        if missing:
            raise _missing(missing, world_size, folder) from error
        error.where = f"{name} in {error.where or folder}"
        raise
    return StoredTensor(view, first.placement, tuple(copies))


def _check_same_names(pieces: dict[str, _Pieces], ranks: list[int], folder: Path) -> None:
    for name, found in pieces.items():
        if len(found.ranks) != len(ranks):
            absent = [rank for rank in ranks if rank not in found.ranks]
            raise CkptconvError(
                f"ranks disagree on which tensors there are: rank {_spans(absent)} has no {name}",
                where=folder,
                hint="the rank files are from different saves; copy all of one step again",
            )


def _missing(missing: list[int], world_size: int, folder: Path) -> Incomplete:
    found = " ".join("✗" if rank in missing else str(rank) for rank in range(world_size))
    word = "rank" if len(missing) == 1 else "ranks"
    return Incomplete(
        f"{word} {_spans(missing)} of {world_size} {'is' if len(missing) == 1 else 'are'} missing from the checkpoint",
        where=folder,
        found=found if world_size <= 64 else f"{world_size - len(missing)} rank files",
        wanted=f"model_world_size_{world_size}_rank_{missing[0]}.pt",
        hint=f"copy it from the node where rank {missing[0]} ran, or name its folder with --also",
    )


def _spans(ranks: list[int]) -> str:
    """[1, 2, 3, 7] -> "1-3, 7"."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)


def _say(piece: Piece) -> str:
    return f"{piece.dtype} {list(piece.shape)}{' ' + piece.placement if piece.placement else ' plain'}"


def _skipped(folders: Sequence[Path]) -> list[Skipped]:
    sizes: dict[str, int] = {}
    for folder in folders:
        for path in folder.iterdir():
            kind = (
                "optimizer"
                if path.name.startswith("optim_")
                else "trainer state"
                if path.name.startswith("extra_state_")
                else ""
            )
            if kind and path.is_file():
                sizes[kind] = sizes.get(kind, 0) + path.stat().st_size
    return [Skipped(kind, nbytes, "not part of the model") for kind, nbytes in sizes.items()]


def _lora_meta(folders: Sequence[Path]) -> dict[str, Any]:
    return next((meta for folder in folders if (meta := read_table(folder / "lora_train_meta.json"))), {})
