"""Compute where the entries of a torch zip begin from the central directory alone, and check it once they are read.

An entry's bytes begin after its local header, which has a name and padding of its own: to read it costs one small read per
tensor and rank. torch (caffe2/serialize/inline_container.cc, getPadding) pads every header so that the bytes begin at a
multiple of 64, or of the number that `torch.utils.serialization.config.save.storage_alignment` sets, which the entry
`.storage_alignment` records. miniz writes a data descriptor after the bytes, right before the next header: 16 bytes, or 24
for an entry with zip64 sizes, or none for an empty one (mz_zip_writer_add_mem_ex_v2). So the bytes' end follows from the
next header, and their beginning from the own one. Where the two agree the header is read later, next to the bytes that it
precedes; where they do not, the file has another writer, and the header is read at once.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.zip_directory import COPY_AGAIN, LOCAL_HEADER, Window, ZipEntry, data_start, header_end
from ckptconv.tensors.storage import Ranges
from ckptconv.tensors.stored_file import StoredFile

USUAL_ALIGNMENT = 64  # bytes
_ALIGNMENT = ".storage_alignment"
_MOST_ALIGNMENT = 1 << 30  # bytes
_WIDE = 0xFFFFFFFF  # from here on sizes and offsets take 8 bytes, in an extra field of the local header
_EXTRA = 4  # bytes of the header of an extra field: its kind and its size
_DESCRIPTOR, _WIDE_DESCRIPTOR = 16, 24  # bytes


def stated_alignment(window: Window, entries: Sequence[ZipEntry], prefix: str) -> int:
    """Return the alignment in bytes that an archive records; torch's default where it records none.

    Args:
        window: the archive.
        entries: of its directory.
        prefix: of all names.
    """
    entry = next((entry for entry in entries if entry.name == f"{prefix}{_ALIGNMENT}"), None)
    if entry is None or entry.nbytes > len(str(_MOST_ALIGNMENT)):
        return USUAL_ALIGNMENT
    stated = window.read(data_start(window, entry), entry.nbytes)
    return int(stated) if stated.isdigit() and 0 < int(stated) <= _MOST_ALIGNMENT else USUAL_ALIGNMENT


def computed_start(entry: ZipEntry, following: int, alignment: int = USUAL_ALIGNMENT) -> int | None:
    """Return the offset of an entry's bytes, or None if only its local header tells it.

    Args:
        entry: the entry of the central directory.
        following: the offset of the next local header, or of the central directory.
        alignment: the number of bytes of which the offset is a multiple.
    """
    first, descriptor = entry.header + LOCAL_HEADER + len(entry.name) + _EXTRA, _DESCRIPTOR
    if entry.nbytes >= _WIDE or entry.header >= _WIDE:
        first += _EXTRA + 16 * (entry.nbytes >= _WIDE) + 8 * (entry.header >= _WIDE)
        descriptor = _WIDE_DESCRIPTOR
    start = -(-first // alignment) * alignment
    return start if start + entry.nbytes + (descriptor if entry.nbytes else 0) == following else None


class Computed(NamedTuple):
    """The entries of an archive whose places were computed, in file order. Like files share it.

    Attributes:
        starts: the offset of each entry's bytes, ascending.
        headers: the offset of each one's local header.
        names: their names without the archive's prefix, one after another.
        ends: where each name ends in `names`.
    """

    starts: array[int]
    headers: array[int]
    names: str
    ends: array[int]

    @classmethod
    def of(cls, entries: Sequence[tuple[ZipEntry, int]], prefix: str) -> Computed:
        """Make the record.

        Args:
            entries: each entry, and the offset of its bytes.
            prefix: of all names.
        """
        names = [entry.name.removeprefix(prefix) for entry, _ in entries]
        return cls(
            array("q", [start for _, start in entries]),
            array("q", [entry.header for entry, _ in entries]),
            "".join(names),
            array("q", accumulate(map(len, names))),
        )

    def name(self, number: int) -> str:
        """Return the name of an entry."""
        return self.names[self.ends[number - 1] if number else 0 : self.ends[number]]


class ZipFile(StoredFile):
    """A .pt file in which the places of some entries were computed.

    Args:
        path: the file.
        computed: these entries.
        prefix: of all names.
    """

    __slots__ = ("_checked", "_computed", "_prefix")
    _computed: Computed
    _prefix: str
    _checked: set[int]

    def __new__(cls, path: str, computed: Computed, prefix: str) -> ZipFile:  # type: ignore[override]
        self = super().__new__(cls, path)
        self._computed, self._prefix, self._checked = computed, prefix, set()
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return ZipFile, (StoredFile(str(self), self.far), self._computed, self._prefix)

    def check(self, handle: Ranges, start: int) -> None:
        """Check the local header of the entry that holds `start`, once.

        Raises:
            CkptconvError: the header is missing, belongs to another entry, or says that its bytes begin elsewhere.
        """
        starts = self._computed.starts
        number = bisect_right(starts, start) - 1
        if number < 0 or number in self._checked:
            return
        name, header = self._prefix + self._computed.name(number), self._computed.headers[number]
        data = handle.read(header, LOCAL_HEADER + len(name.encode()))
        found = header + header_end(data, name, str(self))
        if found != starts[number]:
            raise CkptconvError(
                "a zip entry's header and the central directory disagree on where its bytes begin",
                where=f"{self}:{name}",
                found=f"byte {found:,}",
                wanted=f"byte {starts[number]:,}, as the directory's sizes tell",
                hint=COPY_AGAIN,
                kind=Kind.DAMAGED,
            )
        self._checked.add(number)
