"""Read a zip's central directory as torch writes it: stored entries, one disk, no comment. It reads files or ranges.

PKWARE APPNOTE 4.3.12 (central directory) and 4.3.14-16 (its end records) define the format. torch ends every archive with
the zip64 end record and omits sizes from local headers (caffe2/serialize/inline_container.cc), so only the directory
has them.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.look import opened
from ckptconv.tensors.storage import Ranges

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LENGTHS = struct.Struct("<HH")
# What helps against a damaged file of a checkpoint.
COPY_AGAIN = "copy it again from the node where it was written, or take an earlier step"
LOCAL_HEADER = 30  # bytes, before the name
EDGE = 1 << 11  # bytes read at both ends: they hold a DCP tensor's whole directory and pickle
_SMALL = 1 << 16  # bytes of an archive that is read as a whole
_MAX_DIRECTORY = 1 << 30
_MOST_KEPT = 1 << 26  # bytes
_ENCRYPTED = 0x1


class NotAZip(Exception):
    """The range does not end in a zip directory."""


class Directory(NamedTuple):
    """A central directory.

    Attributes:
        entries: in its order.
        begin: its offset in the range, in bytes.
    """

    entries: list[ZipEntry]
    begin: int


class ZipEntry(NamedTuple):
    """An entry of the directory.

    Attributes:
        name: the name of the entry.
        header: the offset of its local header in the range, in bytes.
        nbytes: the nbytes of its data.
        crc: the CRC-32 of its data; 0 if none was written.
        stored: True if the entry is neither compressed nor encrypted.
    """

    name: str
    header: int
    nbytes: int
    crc: int
    stored: bool


class RawDirectory(NamedTuple):
    """The bytes of a central directory, its number of entries, and its offset in the range, in bytes."""

    data: bytes
    total: int
    begin: int


class Window:
    """A range of a file that reads like a whole file. Both ends are cached, so an archive of DCP takes one read or two."""

    def __init__(self, path: str, handle: Ranges, start: int, size: int) -> None:
        self.path, self.start, self.size = path, start, size
        self._handle: Ranges | None = handle
        self._head: bytes | None = None
        tail = max(size - EDGE, 0) if size > _SMALL else 0
        self._tail_at, self._tail = tail, self._stored(size - tail, tail)
        self._kept_at, self._kept = 0, b""

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return bytes at an offset in the range; fewer if the range or the file ends before."""
        nbytes = max(min(nbytes, self.size - offset), 0)
        if offset < 0:
            return b""
        if self._kept_at <= offset and offset + nbytes <= self._kept_at + len(self._kept):
            return self._kept[offset - self._kept_at : offset - self._kept_at + nbytes]
        if offset >= self._tail_at:
            return self._tail[offset - self._tail_at : offset - self._tail_at + nbytes]
        if offset + nbytes <= EDGE:
            if self._head is None:
                self._head = self._stored(min(EDGE, self.size), 0)
            return self._head[offset : offset + nbytes]
        return self._stored(nbytes, offset)

    def keep(self, offset: int, nbytes: int) -> None:
        """Read a stretch at once that `read` will be asked for piece by piece."""
        is_kept = self._kept_at <= offset and offset + nbytes <= self._kept_at + len(self._kept)
        if nbytes <= _MOST_KEPT and not is_kept:
            self._kept_at, self._kept = offset, self.read(offset, nbytes)

    def release(self) -> None:
        """Forget the open file: what was not read yet is read from the file that `path` names then."""
        self._handle = None

    def _stored(self, nbytes: int, offset: int) -> bytes:
        if self._handle is not None:
            return self._handle.read(self.start + offset, nbytes)
        with opened(self.path) as handle:
            return handle.read(self.start + offset, nbytes)


def read_directory(window: Window) -> Directory:
    """Return all entries.

    Raises:
        NotAZip: the range has no central directory, or a damaged one.
        CkptconvError: the file cannot be read.
    """
    raw = raw_directory(window)
    return Directory(entries_of(raw), raw.begin)


def raw_directory(window: Window) -> RawDirectory:
    """Return the bytes of the directory.

    Raises:
        NotAZip: the range has no central directory.
        CkptconvError: the file cannot be read.
    """
    count, size, begin = _end(window)
    if size > _MAX_DIRECTORY or begin + size > window.size or count * _ENTRY.size > size:
        raise NotAZip("its zip directory lies outside the file")
    return RawDirectory(window.read(begin, size), count, begin)


def entries_of(raw: RawDirectory) -> list[ZipEntry]:
    """Return all entries.

    Raises:
        NotAZip: the directory is damaged.
    """
    entries, at = [], 0
    for _ in range(raw.total):
        entry, at = entry_at(raw.data, at)
        entries.append(entry)
    return entries


def entry_at(data: bytes, at: int) -> tuple[ZipEntry, int]:
    """Return the entry at an offset of a directory's bytes, and the offset of the next one.

    Raises:
        NotAZip: there is no entry.
    """
    if at + _ENTRY.size > len(data) or data[at : at + 4] != b"PK\x01\x02":
        raise NotAZip("its directory is damaged")
    found = _ENTRY.unpack_from(data, at)
    flags, method, crc, packed, nbytes = found[3], found[4], found[7], found[8], found[9]
    name_size, extra_size, comment_size, header = found[10], found[11], found[12], found[16]
    at += _ENTRY.size
    name = data[at : at + name_size].decode("utf-8", "replace")
    extra = data[at + name_size : at + name_size + extra_size]
    nbytes, _, header = _wide(extra, nbytes, packed, header)
    entry = ZipEntry(name, header, nbytes, crc, method == 0 and not flags & _ENCRYPTED)
    return entry, at + name_size + extra_size + comment_size


def data_start(window: Window, entry: ZipEntry) -> int:
    """Return the offset of an entry's data in the range: the end of its local header, whose own lengths count.

    Raises:
        CkptconvError: the local header is missing, or belongs to another entry.
    """
    header = window.read(entry.header, LOCAL_HEADER + len(entry.name.encode()))
    return entry.header + header_end(header, entry.name, window.path)


def header_end(header: bytes, name: str, path: str) -> int:
    """Return the size of a local header, after which the entry's data begins.

    Args:
        header: its first bytes, up to the end of the name.
        name: the name of the entry in the directory.
        path: the file, for the error message.

    Raises:
        CkptconvError: it is no local header, or one of another entry.
    """
    wanted = name.encode()
    if len(header) < LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise CkptconvError(
            "an entry's header is not where the directory says", where=f"{path}:{name}", kind=Kind.DAMAGED
        )
    length, extra = _LENGTHS.unpack_from(header, 26)
    if int(length) != len(wanted) or header[LOCAL_HEADER:] != wanted:
        raise CkptconvError(
            "a zip entry's header belongs to another entry", where=f"{path}:{name}", kind=Kind.DAMAGED
        )
    return LOCAL_HEADER + int(length) + int(extra)


def _end(window: Window) -> tuple[int, int, int]:
    """Return (entries, bytes, offset) of the directory, from the end record and the zip64 end record."""
    last = window.read(window.size - _END.size, _END.size)
    if len(last) < _END.size or last[:4] != b"PK\x05\x06":
        raise NotAZip("its directory, the last thing written, is not at its end")
    _, _, _, _, count, size, begin, _ = _END.unpack(last)
    at = window.size - _END.size - _LOCATOR.size
    locator = window.read(at, _LOCATOR.size)
    if len(locator) == _LOCATOR.size and locator[:4] == b"PK\x06\x07":
        end64 = window.read(_LOCATOR.unpack(locator)[2], _END64.size)
        if len(end64) < _END64.size or end64[:4] != b"PK\x06\x06":
            raise NotAZip("its zip64 record is not where it should be")
        found = _END64.unpack(end64)
        count, size, begin = found[7], found[8], found[9]
    return count, size, begin


def _wide(extra: bytes, nbytes: int, packed: int, header: int) -> tuple[int, int, int]:
    """Return sizes and offset; where one is all ones, its 64-bit value comes from the extra field."""
    values = [nbytes, packed, header]
    if 0xFFFFFFFF not in values:
        return nbytes, packed, header
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            wide = iter(struct.iter_unpack("<Q", extra[at + 4 : at + 4 + size - size % 8]))
            values = [next(wide, (value,))[0] if value == 0xFFFFFFFF else value for value in values]
        at += 4 + size
    return values[0], values[1], values[2]
