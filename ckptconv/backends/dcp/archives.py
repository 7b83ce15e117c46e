"""Read the archives inside `__R_T.distcp` files. Each file is opened once and read from front to back.

The metadata of a chunk is checked against the archive's own directory and pickle. A large mixture of experts usually has
tens of thousands of chunks in thousands of files.
"""

from __future__ import annotations

import filecmp
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import NamedTuple

from ckptconv.backends.fsdp.shared_pickles import remembering
from ckptconv.errors import CkptconvError, Incomplete, Kind
from ckptconv.formats.stand_ins import TensorRecord
from ckptconv.formats.torch_zip import Load, torch_zip_at
from ckptconv.tensors.view import View

_LEAST = 1 << 10  # bytes; two files may hold equal ones and zeros in fewer bytes of parts
_READERS = 8  # threads, which hide the latency of shared file systems


class Piece(NamedTuple):
    """One stored chunk of a tensor: its box and dtype, and the range of its archive in a file.

    Attributes:
        name: of the tensor.
        dtype: of the tensor; None if the metadata does not record it.
        offsets: of the chunk's box in the tensor, in elements.
        sizes: of the chunk's box, in elements.
        file: the name of the file that holds the archive.
        start: the archive's first byte in the file.
        length: of the archive, in bytes.
    """

    name: str
    dtype: str | None
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


class _Archive(NamedTuple):
    """A piece's archive. `crc` is the CRC-32 of its storage in the archive's directory; 0 if none was written."""

    view: View
    crc: int


def read_archives(pieces: Iterable[Piece], folders: Sequence[Path]) -> dict[Piece, View]:
    """Return a view for every piece, after a check against its archive.

    Args:
        pieces: the chunks that the metadata lists.
        folders: the folders that may hold their files.

    Raises:
        CkptconvError: a file is missing or short, an archive contradicts the metadata, two folders hold a file with
            different bytes, or one file is a copy of another.
    """
    by_file: dict[str, list[Piece]] = {}
    for piece in pieces:
        by_file.setdefault(piece.file, []).append(piece)
    paths = [_find(file, folders) for file in by_file]
    load = remembering()
    archives: dict[Piece, _Archive] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for found in pool.map(lambda path, inside: _archives(path, inside, load), paths, by_file.values()):
            archives.update(found)
    _check_no_copies(by_file, archives, folders[0])
    return {piece: archive.view for piece, archive in archives.items()}


def _check_no_copies(by_file: dict[str, list[Piece]], archives: dict[Piece, _Archive], folder: Path) -> None:
    """Refuse two files that list different parts of the same tensors, but whose storages all have the same checksums."""
    alike: dict[tuple[object, ...], str] = {}
    for file, pieces in by_file.items():
        held = [piece for piece in pieces if archives[piece].crc]
        if not held:
            continue
        largest = max(held, key=lambda piece: (prod(piece.sizes), piece.name))
        other = alike.setdefault((largest.name, largest.sizes, archives[largest].crc), file)
        if other != file and _are_copies(pieces, by_file[other], archives):
            raise CkptconvError(
                f"{file} and {other} hold the same bytes for different parts of the same tensors",
                where=folder,
                found=f"every storage has the other's checksum, {largest.name} among {len(pieces)}",
                wanted="one file per rank, each with its own parts",
                hint="one is a copy of the other: copy the right one again from the node where it was written",
            )


def _are_copies(one: list[Piece], two: list[Piece], archives: dict[Piece, _Archive]) -> bool:
    """Return True if all checksums of two files are equal although enough of their parts differ."""
    first, second = (Counter((p.name, p.sizes, archives[p].crc) for p in pieces) for pieces in (one, two))
    own = {(piece.name, piece.offsets) for piece in two}
    apart = [piece for piece in one if (piece.name, piece.offsets) not in own]
    return (first <= second or second <= first) and sum(archives[p].view.nbytes for p in apart) >= _LEAST


def _find(file: str, folders: Sequence[Path]) -> str:
    """Return the file's path; refuse a file that is in none of the folders, or in two with different bytes."""
    paths = [folder / file for folder in folders if (folder / file).is_file()]
    if not paths:
        raise Incomplete(
            f"{file} is missing from the checkpoint",
            where=folders[0],
            hint="copy it from the node where it was written, or name its folder with --also",
        )
    for other in paths[1:]:
        if not filecmp.cmp(paths[0], other, shallow=False):
            raise CkptconvError(
                f"two files named {file} have different bytes",
                where=f"{paths[0]} and {other}",
                hint="they are from different saves, or one is damaged; omit one of the folders",
            )
    return str(paths[0])


def _archives(path: str, pieces: list[Piece], load: Load) -> list[tuple[Piece, _Archive]]:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise CkptconvError(
            f"cannot be read: {error.strerror or error}", where=path, kind=Kind.ENVIRONMENT
        ) from error
    try:
        size = os.fstat(handle).st_size
        ordered = sorted(pieces, key=lambda piece: piece.start)
        return [(piece, _archive(path, handle, size, piece, load)) for piece in ordered]
    finally:
        os.close(handle)


def _archive(path: str, handle: int, size: int, piece: Piece, load: Load) -> _Archive:
    if piece.start + piece.length > size:
        raise CkptconvError(
            "the file ends before its tensors do",
            where=path,
            found=f"{size:,} bytes",
            wanted=f"at least {piece.start + piece.length:,}, for {piece.name}",
            hint="copy it again from the node where it was written",
        )
    archive = torch_zip_at(path, handle, piece.start, piece.length, load)
    if not isinstance(archive.root, TensorRecord):
        raise CkptconvError(f"{piece.name} is stored, but not as a tensor", where=path)
    view = archive.view(archive.root)
    if view.shape != piece.sizes or (piece.dtype is not None and view.dtype != piece.dtype):
        raise CkptconvError(
            f"the stored part of {piece.name} does not match the metadata",
            where=path,
            found=f"{view.dtype} {list(view.shape)}",
            wanted=f"{piece.dtype} {list(piece.sizes)}",
        )
    entry = archive.entries.get(archive.root.storage.key)
    return _Archive(view, entry.crc if entry is not None else 0)
