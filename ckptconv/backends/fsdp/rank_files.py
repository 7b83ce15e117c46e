"""Find the rank files of a checkpoint: exactly one per rank, and no copy of one rank's file under another rank's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

from ckptconv.backends.fsdp.layout import RANK_FILE
from ckptconv.backends.fsdp.mesh import Position
from ckptconv.backends.fsdp.piece import Piece, Pieces
from ckptconv.errors import CkptconvError, Kind, brief
from ckptconv.formats.bounds import check_ranks
from ckptconv.formats.crcs import same_archive
from ckptconv.formats.json import read_table
from ckptconv.formats.zip_directory import COPY_AGAIN
from ckptconv.tensors.checkpoint import Mesh
from ckptconv.tensors.dtypes import itemsize
from ckptconv.tensors.look import are_same, names_in, size_of

_LEAST = 1 << 10  # bytes; two ranks may hold equal ones and zeros in fewer bytes of shards


def find_rank_files(folders: Sequence[Path]) -> tuple[int, dict[int, Path]]:
    """Return (world size, rank -> its file).

    Args:
        folders: the checkpoint's folder, and further folders of it from other nodes' disks.

    Raises:
        CkptconvError: a rank has two files with different bytes, or the files have several world sizes.
    """
    found: dict[int, dict[int, Path]] = {}
    for folder in folders:
        for name in sorted(filter(RANK_FILE.match, names_in(folder))):
            path, match = folder / name, RANK_FILE.match(name)
            if match:
                world, rank = int(match.group(1)), int(match.group(2))
                first = found.setdefault(world, {}).setdefault(rank, path)
                if first is not path:
                    _check_same(rank, first, path)
    if not found:
        raise CkptconvError(
            "no FSDP rank files in this folder",
            where=folders[0],
            wanted="model_world_size_W_rank_R.pt",
            kind=Kind.NOT_A_CHECKPOINT,
        )
    if len(found) > 1:
        raise CkptconvError(
            "the folder has rank files of different world sizes",
            where=folders[0],
            found=", ".join(map(str, sorted(found))),
            hint="they are from different saves; move the files of one save away",
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


def _check_same(rank: int, first: Path, other: Path) -> None:
    """Refuse two files of one rank in one folder, or with different bytes in two folders."""
    if first.parent == other.parent:
        raise CkptconvError(
            f"rank {rank} has two files in one folder",
            where=first.parent,
            found=f"{first.name} and {other.name}",
            hint="move away the file of the other save",
        )
    if size_of(first) != size_of(other):
        raise CkptconvError(f"two files of rank {rank} have different sizes", where=f"{first} and {other}")
    if not are_same(first, other) and not same_archive(str(first), str(other)):
        raise CkptconvError(
            f"two files of rank {rank} have different bytes",
            where=f"{first} and {other}",
            hint="they are from different saves, or one is damaged; omit one of the folders",
        )


def check_no_copies(pieces: Mapping[str, Pieces], paths: Mapping[int, Path]) -> None:
    """Check that no rank's file is a copy of another rank's, and that all describe one mesh.

    Two files with the same position in a mesh are copies. So are two files with different parts of the tensors whose
    storages all have the same checksums.

    Raises:
        CkptconvError: two files are copies, or describe two meshes.
    """
    largest: dict[int, tuple[int, str, Piece]] = {}
    checked = set[tuple[int, ...]]()
    for name, found in pieces.items():
        if found.pieces[0].box is None or len(found.ranks) != len(found.pieces):
            continue
        positions = [piece.position for piece in found.pieces]
        numbers = tuple(map(id, positions))  # the tensors of one mesh share them
        if numbers not in checked:
            checked.add(numbers)
            _check_meshes(name, found.ranks, positions, paths)
            _check_positions(found.ranks, positions, paths)
        for rank, piece in zip(found.ranks, found.pieces, strict=True):
            if piece.crc and piece.chunk is not None:
                size = _nbytes(piece), name
                if rank not in largest or size > largest[rank][:2]:
                    largest[rank] = *size, piece
    alike: dict[tuple[object, ...], int] = {}
    for rank, (_, name, piece) in sorted(largest.items()):
        other = alike.setdefault((name, piece.crc, piece.extent), rank)
        if other != rank and _are_copies(_shards(pieces, rank), _shards(pieces, other)):
            raise _copied(other, rank, paths, "every shard has the other's checksum")


def _check_meshes(
    name: str, ranks: Sequence[int], positions: Sequence[Position | None], paths: Mapping[int, Path]
) -> None:
    """Refuse ranks whose files describe the mesh of a tensor differently, or a mesh that lists a rank twice.

    The ranks of another group of a submesh have a list of their own, which shares no rank with this one.
    """
    first: dict[int, tuple[int, Position]] = {}  # a rank -> the file that lists it first
    seen = set[tuple[int, Mesh]]()
    for rank, position in zip(ranks, positions, strict=True):
        if position is None or (id(position.ranks), position.mesh) in seen:
            continue
        seen.add((id(position.ranks), position.mesh))
        if len(set(position.ranks)) < len(position.ranks):
            raise CkptconvError(
                f"the mesh of {name} lists a rank twice",
                where=paths[rank],
                found=_mesh(position),
                hint=COPY_AGAIN,
                kind=Kind.DAMAGED,
            )
        other, known = next((first[listed] for listed in position.ranks if listed in first), (rank, position))
        if (known.mesh, known.ranks) != (position.mesh, position.ranks):
            raise CkptconvError(
                f"ranks disagree on the mesh of {name}",
                where=f"{paths[other]} and {paths[rank].name}",
                found=f"{_mesh(position)} on rank {rank}",
                wanted=f"{_mesh(known)}, as on rank {other}",
                hint="the rank files are from different saves; copy all of one step again",
            )
        if known is position:
            first.update(dict.fromkeys(position.ranks, (rank, position)))


def _mesh(position: Position) -> str:
    return f"{position.mesh} over the ranks {brief(position.ranks)}"


def _check_positions(
    ranks: Sequence[int], positions: Sequence[Position | None], paths: Mapping[int, Path]
) -> None:
    """Refuse two ranks with one position in the mesh of a tensor."""
    places: dict[tuple[object, ...], int] = {}
    for rank, position in zip(ranks, positions, strict=True):
        if position is not None and position.first is not None:
            other = places.setdefault((position.first, position.coordinate, position.outside), rank)
            if other != rank:
                raise _copied(other, rank, paths, f"both are {list(position.coordinate)} in the mesh")


def _shards(pieces: Mapping[str, Pieces], rank: int) -> dict[str, Piece]:
    """Return the parts of tensors that a rank holds and that have a checksum, by the tensors' names."""
    held = {}
    for name, found in pieces.items():
        if found.pieces[0].box is not None and len(found.ranks) == len(found.pieces) and rank in found.ranks:
            piece = found.pieces[found.ranks.index(rank)]
            if piece.crc and piece.chunk is not None:
                held[name] = piece
    return held


def _are_copies(one: Mapping[str, Piece], two: Mapping[str, Piece]) -> bool:
    """Return True if all checksums are equal although the parts of the tensors differ."""
    apart = [name for name in one if name in two and _part(one[name]) != _part(two[name])]
    return (
        one.keys() == two.keys()
        and all((one[name].crc, one[name].extent) == (two[name].crc, two[name].extent) for name in one)
        and sum(_nbytes(one[name]) for name in apart) >= _LEAST
    )


def _part(piece: Piece) -> tuple[object, ...]:
    return piece.box, piece.position.outside if piece.position is not None else ()


def _nbytes(piece: Piece) -> int:
    return prod(piece.chunk.sizes) * itemsize(piece.whole.dtype) if piece.chunk is not None else 0


def _copied(one: int, two: int, paths: Mapping[int, Path], found: str) -> CkptconvError:
    return CkptconvError(
        f"the files of rank {one} and rank {two} hold the same rank's shards",
        where=f"{paths[one]} and {paths[two].name}",
        found=found,
        wanted="one file per rank, each with its own shards",
        hint="one is a copy of the other: copy the right one again from the node where it was written",
    )
