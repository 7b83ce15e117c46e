"""The archives inside `__R_T.distcp` files: each is opened once and read from front to back.

What the metadata says of a chunk is checked against the archive's own directory and pickle; tens of thousands of chunks in
thousands of files are usual for a large mixture of experts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ckptconv.backends.fsdp.shared_pickles import remembering
from ckptconv.errors import CkptconvError, Incomplete
from ckptconv.formats.stand_ins import TensorRecord
from ckptconv.formats.torch_zip import Load, torch_zip_at
from ckptconv.tensors.view import View

_READERS = 8  # for the latency of shared file systems; a local disk needs none


class Piece(NamedTuple):
    """One stored chunk of a tensor: its box and dtype, and the range that its archive has in a file.

    dtype: None where the metadata does not say.
    """

    name: str
    dtype: str | None
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


def read_archives(pieces: Iterable[Piece], folders: Sequence[Path]) -> dict[Piece, View]:
    """Every piece as its archive describes it. folders: where its file may lie.

    Raises CkptconvError for a missing file, a short one, and archives that contradict the metadata.
    """
    by_file: dict[str, list[Piece]] = {}
    for piece in pieces:
        by_file.setdefault(piece.file, []).append(piece)
    paths = [_find(file, folders) for file in by_file]
    load = remembering()
    views: dict[Piece, View] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for found in pool.map(lambda path, inside: _views(path, inside, load), paths, by_file.values()):
            views.update(found)
    return views


def _find(file: str, folders: Sequence[Path]) -> str:
    path = next((folder / file for folder in folders if (folder / file).is_file()), None)
    if path is None:
        raise Incomplete(
            f"{file} is missing from the checkpoint",
            where=folders[0],
            hint="copy it from the node where it was written, or name its folder with --also",
        )
    return str(path)


def _views(path: str, pieces: list[Piece], load: Load) -> list[tuple[Piece, View]]:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise CkptconvError(f"cannot be read: {error.strerror or error}", where=path) from error
    try:
        size = os.fstat(handle).st_size
        ordered = sorted(pieces, key=lambda piece: piece.start)
        return [(piece, _view(path, handle, size, piece, load)) for piece in ordered]
    finally:
        os.close(handle)


def _view(path: str, handle: int, size: int, piece: Piece, load: Load) -> View:
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
    return view
