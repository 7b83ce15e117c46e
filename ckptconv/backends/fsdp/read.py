"""Read verl's FSDP checkpoints: one model_world_size_W_rank_R.pt per rank, with DTensors, ShardedTensors or plain tensors.

verl/utils/checkpoint/fsdp_checkpoint_manager.py writes them with torch.save of the sharded state dict. The placements say
what is cut and what is replicated, so values are never compared to find out. A plain tensor is whole on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from ckptconv.backends.base import unknown_writer
from ckptconv.backends.fsdp.assemble import assemble, spans
from ckptconv.backends.fsdp.held import Meshes
from ckptconv.backends.fsdp.layout import NAME
from ckptconv.backends.fsdp.one_save import check_one_step
from ckptconv.backends.fsdp.piece import Pieces
from ckptconv.backends.fsdp.pieces import Reader
from ckptconv.backends.fsdp.rank_files import check_no_copies, find_rank_files
from ckptconv.backends.runs import Place
from ckptconv.backends.saved_at import apart
from ckptconv.errors import CkptconvError
from ckptconv.formats.json import read_table
from ckptconv.tensors.checkpoint import Checkpoint, Lora, RankFile, Skipped
from ckptconv.tensors.look import is_file, names_in, size_of

_NOT_READ = {"optim_": "optimizer", "extra_state_": "trainer state"}
saved_by = unknown_writer


def read(place_: Place, also: Sequence[Path] = ()) -> Checkpoint:
    """Read the metadata of every rank file.

    Args:
        place_: the folder of the checkpoint.
        also: further folders of the same checkpoint, from other nodes' disks.

    Raises:
        CkptconvError: a rank is missing, ranks disagree, or shards do not tile their tensor.
    """
    folders = [place_.folder, *also]
    world_size, paths = find_rank_files(folders)
    check_one_step(folders, world_size)
    reader = Reader()
    reader.read({rank: str(path) for rank, path in sorted(paths.items())})
    pieces = reader.tensors
    missing = [rank for rank in range(world_size) if rank not in paths]
    _check_same_names(pieces, sorted(paths), folders[0])
    check_no_copies(pieces, paths)
    tensors = {name: assemble(name, found, missing, world_size, folders[0]) for name, found in pieces.items()}
    used = sum(t.view.nbytes + t.replica_bytes for t in tensors.values())
    notes = [*place_.notes(), *apart(list(paths.values()))]
    if missing:
        notes.append(f"rank files {spans(missing)} are missing, but the replicas on other ranks are complete")
    skipped = [
        *_skipped(folders),
        Skipped("storage padding", max(reader.nbytes - used, 0), "belongs to no tensor"),
    ]
    coordinates = _coordinates(reader.meshes)
    version = read_table(place_.folder / "fsdp_config.json").get("FSDP_version")
    return Checkpoint(
        backend=NAME,
        layout=f"verl FSDP{version or ''}, one file per rank",
        root=place_.folder,
        world_size=world_size,
        files=tuple(
            RankFile(rank, str(path), size_of(path), coordinates.get(rank, ()))
            for rank, path in sorted(paths.items())
        ),
        tensors=tensors,
        meshes=tuple(reader.meshes),
        step=place_.step,
        role=place_.role,
        assets=next((f / "huggingface" for f in folders if is_file(f / "huggingface" / "config.json")), None),
        skipped=tuple(item for item in skipped if item.nbytes),
        lora=Lora(_lora_meta(folders)),
        notes=tuple(notes),
    )


def _coordinates(meshes: Meshes) -> dict[int, tuple[tuple[str, int], ...]]:
    """Return rank -> its coordinate in the largest mesh.

    The result is empty for a mesh of one dim, whose coordinate is the rank itself, and for a mesh whose ranks are not
    ascending, where two ranks may have the same coordinate.
    """
    mesh = max(meshes, key=lambda mesh: (prod(mesh.shape), len(mesh.shape)), default=None)
    if mesh is None or len(mesh.shape) < 2 or len(set(meshes[mesh].values())) < len(meshes[mesh]):
        return {}
    names = mesh.names or tuple(f"dim{n}" for n in range(len(mesh.shape)))
    return {rank: tuple(zip(names, coordinate, strict=True)) for rank, coordinate in meshes[mesh].items()}


def _check_same_names(pieces: dict[str, Pieces], ranks: list[int], folder: Path) -> None:
    for name, found in pieces.items():
        if len(found.ranks) != len(ranks):
            absent = [rank for rank in ranks if rank not in found.ranks]
            raise CkptconvError(
                f"ranks disagree on which tensors there are: rank {spans(absent)} has no {name}",
                where=folder,
                hint="the rank files are from different saves; copy all of one step again",
            )


def _skipped(folders: Sequence[Path]) -> list[Skipped]:
    sizes: dict[str, int] = {}
    for folder in folders:
        for name in names_in(folder):
            kind = next((kind for start, kind in _NOT_READ.items() if name.startswith(start)), None)
            if kind is not None and is_file(path := folder / name):
                sizes[kind] = sizes.get(kind, 0) + size_of(path)
    return [Skipped(kind, nbytes, "not part of the model") for kind, nbytes in sorted(sizes.items())]


def _lora_meta(folders: Sequence[Path]) -> dict[str, Any]:
    return next((meta for folder in folders if (meta := read_table(folder / "lora_train_meta.json"))), {})
