"""Find the tensors' bytes in the archives inside `__R_T.distcp` files, and check each archive once its bytes are read.

A large mixture of experts has tens of thousands of chunks in thousands of files, and every one is an archive of its own
(torch/distributed/checkpoint/filesystem.py). Archives of one kind have one form: parts of like tensors (`layers.*.weight`)
with the same sizes, dtype and length in bytes. One archive of each kind is looked at, and the places in the others follow
from it. When elements are read, the archive around them is checked against the metadata (`archive_file`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path

from ckptconv.backends.dcp.archive_file import Archive, ArchiveFile, Piece, check_length, read_archive
from ckptconv.backends.dcp.looks import MOST_RANGES, choose_samples, ranges_of
from ckptconv.backends.fsdp.shared_pickles import remembering
from ckptconv.errors import CkptconvError, Incomplete
from ckptconv.formats.in_order import in_order
from ckptconv.formats.same import same_bytes
from ckptconv.formats.stretches import Stretches
from ckptconv.tensors.boxes import Box, Chunk, contiguous_strides
from ckptconv.tensors.checkpoint import starred
from ckptconv.tensors.dtypes import itemsize
from ckptconv.tensors.look import is_file, opened, size_of

_LEAST = 1 << 10  # bytes; two files may hold equal ones and zeros in fewer bytes of parts


def read_archives(
    pieces: Sequence[Piece], folders: Sequence[Path], elements: bool
) -> list[tuple[str, Chunk]]:
    """Find the elements of every piece.

    Args:
        pieces: the chunks that the metadata lists, none of them empty.
        folders: the folders that may hold their files.
        elements: False if no elements will be read. Then at most 8 ranges of a file are read, however many kinds of archives
            are in it, and a read of elements whose place stayed unknown is refused.

    Returns:
        For each piece its dtype, and its chunk of the tensor.

    Raises:
        CkptconvError: a file is missing or short, an archive that is looked at contradicts the metadata, two folders hold
            a file with different bytes, or one file is a copy of another.
    """
    files = _Files(pieces, folders)
    kinds: dict[object, list[int]] = {}
    alike: dict[str, str] = {}  # a tensor's name -> the same with `*` for numbers
    for number, (name, dtype, _, sizes, _, _, length) in enumerate(pieces):
        if name not in alike:
            alike[name] = starred(name)
        kinds.setdefault((alike[name], dtype, sizes, length), []).append(number)
    samples = choose_samples(
        pieces, list(kinds.values()), files.inside, files.largest, None if elements else MOST_RANGES
    )
    files.look([*files.largest.values(), *samples.values()])
    found: list[tuple[str, Chunk] | None] = [None] * len(pieces)
    for which, kind in enumerate(kinds.values()):
        first = pieces[samples.get(which, kind[0])]
        begin = files.looked[samples[which]].place_in(first) if which in samples else None
        if first.dtype is None or (elements and begin is None):
            files.look(kind)
            for number in kind:
                chunk = files.looked[number].view.chunks[0]
                offsets = Box(chunk.offsets, chunk.sizes).shifted(pieces[number].offsets).offsets
                found[number] = files.looked[number].view.dtype, chunk._replace(offsets=offsets)
            continue
        strides = contiguous_strides(first.sizes, itemsize(first.dtype))
        for number in kind:
            piece = pieces[number]
            place = piece.start + (begin or 0)  # no elements are there: a read is refused
            path = files.computed[piece.file]
            path.parts.append((place, piece))
            found[number] = first.dtype, Chunk(piece.offsets, first.sizes, path, place, strides)
    files.check_no_copies(folders[0])
    return [item for item in found if item is not None]


class _Files:
    """The `.distcp` files of one checkpoint.

    Attributes:
        inside: file -> the numbers of its pieces.
        largest: file -> the number of its largest piece.
        looked: number of a piece -> its archive, if it was opened.
        computed: file -> its path for pieces whose places are computed.
    """

    def __init__(self, pieces: Sequence[Piece], folders: Sequence[Path]) -> None:
        self._pieces, self.inside = pieces, dict[str, list[int]]()
        for number, piece in enumerate(pieces):
            self.inside.setdefault(piece.file, []).append(number)
        self._paths = {file: _find(file, folders) for file in self.inside}
        self.computed = {file: ArchiveFile(path, []) for file, path in self._paths.items()}
        for file, numbers in self.inside.items():
            last = max((pieces[number] for number in numbers), key=lambda piece: piece.start + piece.length)
            check_length(self._paths[file], size_of(self._paths[file]), last)
        self.largest = {file: max(numbers, key=self._size) for file, numbers in self.inside.items()}
        self.looked: dict[int, Archive] = {}
        self._load = remembering()

    def _size(self, number: int) -> tuple[int, str]:
        piece = self._pieces[number]
        return prod(piece.sizes), piece.name

    def look(self, numbers: Iterable[int]) -> None:
        """Open archives, several files at a time, each file from front to back."""
        wanted: dict[str, set[int]] = {}
        for number in numbers:
            if number not in self.looked:
                wanted.setdefault(self._pieces[number].file, set()).add(number)
        for found in in_order(self._open, list(wanted.items())):
            self.looked.update(found)

    def _open(self, wanted: tuple[str, set[int]]) -> list[tuple[int, Archive]]:
        file, numbers = wanted
        path = self._paths[file]
        ordered = sorted(numbers, key=lambda number: self._pieces[number].start)
        with opened(path) as handle:
            few = Stretches(handle, ranges_of(self._pieces[n] for n in ordered))
            return [(n, read_archive(path, few, self._pieces[n], self._load)) for n in ordered]

    def check_no_copies(self, folder: Path) -> None:
        """Refuse two files that list different parts of the same tensors, but whose storages all have the same checksums.

        The largest storages of the files are compared, another one of two files in which these are equal, and all of them
        where that one is equal too.
        """
        alike: dict[tuple[object, ...], str] = {}
        for file, number in self.largest.items():
            largest, crc = self._pieces[number], self.looked[number].crc
            other = alike.setdefault((largest.name, largest.sizes, crc), file) if crc else file
            if other == file:
                continue
            if self._second_is_equal(file, other) and self._are_copies(self.inside[file], self.inside[other]):
                raise CkptconvError(
                    f"{file} and {other} hold the same bytes for different parts of the same tensors",
                    where=folder,
                    found=f"every storage has the other's checksum, {largest.name} among {len(self.inside[file])}",
                    wanted="one file per rank, each with its own parts",
                    hint="one is a copy of the other: copy the right one again from the node where it was written",
                )

    def _second_is_equal(self, one: str, two: str) -> bool:
        """Return False if the largest parts of two files but one tell them apart, so that no more has to be read."""
        few, many = sorted((self.inside[one], self.inside[two]), key=len)
        at = {(self._pieces[n].name, self._pieces[n].sizes): n for n in many}
        second = max((n for n in few if n not in self.largest.values()), key=self._size, default=None)
        if second is None:
            return True
        other = at.get((self._pieces[second].name, self._pieces[second].sizes))
        if other is None:
            return False
        self.look([second, other])
        return self.looked[second].crc == self.looked[other].crc

    def _are_copies(self, one: list[int], two: list[int]) -> bool:
        """Return True if all checksums of two files are equal although enough of their parts differ."""
        self.look([*one, *two])
        first, second = (
            Counter((self._pieces[n].name, self._pieces[n].sizes, self.looked[n].crc) for n in numbers)
            for numbers in (one, two)
        )
        own = {(self._pieces[n].name, self._pieces[n].offsets) for n in two}
        apart = [n for n in one if (self._pieces[n].name, self._pieces[n].offsets) not in own]
        nbytes = sum(self.looked[n].view.nbytes for n in apart)
        return (first <= second or second <= first) and nbytes >= _LEAST


def _find(file: str, folders: Sequence[Path]) -> str:
    """Return the file's path; refuse a file that is in none of the folders, or in two with different bytes."""
    paths = [folder / file for folder in folders if is_file(folder / file)]
    if not paths:
        raise Incomplete(
            f"{file} is missing from the checkpoint",
            where=folders[0],
            hint="copy it from the node where it was written, or name its folder with --also",
        )
    for other in paths[1:]:
        if not same_bytes(paths[0], other):
            raise CkptconvError(
                f"two files named {file} have different bytes",
                where=f"{paths[0]} and {other}",
                hint="they are from different saves, or one is damaged; omit one of the folders",
            )
    return str(paths[0])
