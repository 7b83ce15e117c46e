"""One `.distcp` file: an archive of torch.save for each piece of a tensor, whose place may be computed and checked later."""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter
from typing import NamedTuple

from ckptconv.backends.fsdp.shared_pickles import remembering
from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.stand_ins import TensorRecord
from ckptconv.formats.torch_zip import Load, torch_zip_at
from ckptconv.formats.zip_directory import COPY_AGAIN
from ckptconv.tensors.boxes import contiguous_strides
from ckptconv.tensors.dtypes import itemsize
from ckptconv.tensors.storage import Ranges
from ckptconv.tensors.stored_file import StoredFile
from ckptconv.tensors.view import View


class Piece(NamedTuple):
    """One stored chunk of a tensor: its box and dtype, and the range of its archive in a file.

    Attributes:
        name: the name of the tensor.
        dtype: the dtype of the tensor; None if the metadata does not record it.
        offsets: the offsets of the chunk's box in the tensor, in elements.
        sizes: the sizes of the chunk's box, in elements.
        file: the name of the file that holds the archive.
        start: the archive's first byte in the file.
        length: the length of the archive, in bytes.
    """

    name: str
    dtype: str | None
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


class Archive(NamedTuple):
    """A piece's archive that was opened.

    Attributes:
        view: the view of its tensor.
        crc: the CRC-32 of its storage in the archive's directory; 0 if none was written.
        slack: the bytes of its storage that the tensor does not use.
    """

    view: View
    crc: int
    slack: int

    def place_in(self, piece: Piece) -> int | None:
        """Return the offset of the elements in the archive if they are contiguous and fill the storage, else None."""
        (chunk,) = self.view.chunks
        if self.slack or chunk.strides != contiguous_strides(chunk.sizes, itemsize(self.view.dtype)):
            return None
        return chunk.start - piece.start


class ArchiveFile(StoredFile):
    """A `.distcp` file in which the places of some pieces were computed.

    Args:
        path: the file.
        parts: (the first byte of the elements in the file, the piece) for each of them.
    """

    __slots__ = ("_checked", "_load", "_ordered", "parts")
    parts: list[tuple[int, Piece]]
    _ordered: list[tuple[int, Piece]] | None
    _checked: set[int]
    _load: Load

    def __new__(cls, path: str, parts: list[tuple[int, Piece]]) -> ArchiveFile:  # type: ignore[override]
        self = super().__new__(cls, path)
        self.parts, self._ordered = parts, None
        self._checked, self._load = set(), remembering()
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return ArchiveFile, (StoredFile(str(self), self.far), self.parts)

    def check(self, handle: Ranges, start: int) -> None:
        """Check the archive that holds `start` against the metadata, once.

        Raises:
            CkptconvError: the archive is damaged, contradicts the metadata, or has its elements elsewhere.
        """
        if self._ordered is None:
            self._ordered = sorted(self.parts, key=itemgetter(0))
        number = bisect_right(self._ordered, start, key=itemgetter(0)) - 1
        if number < 0 or number in self._checked:
            return
        begin, piece = self._ordered[number]
        found = read_archive(str(self), handle, piece, self._load)
        place, wanted = found.place_in(piece), begin - piece.start  # 0 if it was not looked up
        if place not in (None, wanted) and wanted:
            raise CkptconvError(
                f"the headers of the stored part of {piece.name} and of the parts of tensors like it disagree on where its "
                "elements begin",
                where=str(self),
                found=f"byte {found.view.chunks[0].start:,}",
                wanted=f"byte {begin:,}",
                hint=COPY_AGAIN,
                kind=Kind.DAMAGED,
            )
        if place != wanted:
            (chunk,) = found.view.chunks
            raise CkptconvError(
                f"the stored part of {piece.name} has another form than the parts of tensors like it",
                where=str(self),
                found=f"byte strides {list(chunk.strides)} from byte {chunk.start:,}",
                wanted=f"contiguous elements from byte {begin:,}",
                hint="load it with dcp.load and save it again with dcp.save",
                kind=Kind.UNSUPPORTED,
            )
        self._checked.add(number)


def read_archive(path: str, handle: Ranges, piece: Piece, load: Load) -> Archive:
    """Read the directory, the headers and the pickle of a piece's archive.

    Args:
        path: the file.
        handle: the open file.
        piece: what the metadata says.
        load: unpickles as `safe_load` does; it may cache the result.

    Raises:
        CkptconvError: the archive is outside the file, is damaged, or contradicts the metadata.
    """
    check_length(path, handle.nbytes, piece)
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
    entry = archive.entries[archive.root.storage.key]
    return Archive(view, entry.crc, entry.nbytes - view.nbytes)


def check_length(path: str, size: int, piece: Piece) -> None:
    """Raise CkptconvError if a piece's archive ends after the file's `size` bytes."""
    if piece.start + piece.length > size:
        raise CkptconvError(
            "the file ends before its tensors do",
            where=path,
            found=f"{size:,} bytes",
            wanted=f"at least {piece.start + piece.length:,}, for {piece.name}",
            hint="copy it again from the node where it was written",
        )
