"""A zip's central directory, strictly as torch writes it: stored entries, one disk, no comment. Whole files or ranges.

Format: PKWARE APPNOTE 4.3.12 (central directory), 4.3.14-16 (its ends). torch closes every archive with the zip64 end
record and leaves sizes out of local headers (caffe2/serialize/inline_container.cc), so only the directory counts.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from ckptconv.errors import CkptconvError, Kind

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LENGTHS = struct.Struct("<HH")
_LOCAL = 30
_EDGE = 1 << 11  # read at once at both ends: a DCP tensor's whole directory and pickle lie there
_MAX_DIRECTORY = 1 << 30
_ENCRYPTED = 0x1


class NotAZip(Exception):
    """The range does not end in a zip directory."""


class ZipEntry(NamedTuple):
    """An entry: its name, where its local header begins in the range, its bytes and their CRC-32 (0: none was written)."""

    name: str
    header: int
    nbytes: int
    crc: int
    stored: bool


class Window:
    """A range of a file that reads like a file of its own; both ends are kept, so small archives cost two reads."""

    def __init__(self, path: str, handle: int, start: int, size: int) -> None:
        self.path, self.start, self.size = path, start, size
        self._handle = handle
        self._head = self._stored(min(_EDGE, size), 0)
        tail = max(size - _EDGE, 0)
        self._tail_at, self._tail = tail, self._stored(size - tail, tail)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Bytes at an offset in the range; fewer where the range or the file ends."""
        nbytes = max(min(nbytes, self.size - offset), 0)
        if offset < 0:
            return b""
        if offset + nbytes <= len(self._head):
            return self._head[offset : offset + nbytes]
        if offset >= self._tail_at:
            return self._tail[offset - self._tail_at : offset - self._tail_at + nbytes]
        return self._stored(nbytes, offset)

    def _stored(self, nbytes: int, offset: int) -> bytes:
        """From the file, whose system may give less at a time than was asked for."""
        data = b""
        try:
            while len(data) < nbytes:
                more = os.pread(self._handle, nbytes - len(data), self.start + offset + len(data))
                if not more:
                    break
                data = data + more if data else more
        except OSError as error:
            raise CkptconvError(
                f"cannot be read: {error.strerror or error}", where=self.path, kind=Kind.ENVIRONMENT
            ) from error
        return data


def read_directory(window: Window) -> list[ZipEntry]:
    """All entries, in the directory's order. Raises NotAZip where there is no directory, or not a whole one."""
    count, size, begin = _end(window)
    if size > _MAX_DIRECTORY or begin + size > window.size or count * _ENTRY.size > size:
        raise NotAZip("its zip directory lies outside the file")
    data = window.read(begin, size)
    entries, at = [], 0
    for _ in range(count):
        if at + _ENTRY.size > len(data) or data[at : at + 4] != b"PK\x01\x02":
            raise NotAZip("its directory is damaged")
        found = _ENTRY.unpack_from(data, at)
        flags, method, crc, packed, nbytes = found[3], found[4], found[7], found[8], found[9]
        name_size, extra_size, comment_size, header = found[10], found[11], found[12], found[16]
        at += _ENTRY.size
        name = data[at : at + name_size].decode("utf-8", "replace")
        extra = data[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size + comment_size
        nbytes, _, header = _wide(extra, nbytes, packed, header)
        stored = method == 0 and not flags & _ENCRYPTED
        entries.append(ZipEntry(name, header, nbytes, crc, stored))
    return entries


def data_start(window: Window, entry: ZipEntry) -> int:
    """Where an entry's bytes begin in the range: after its local header, whose name and extra lengths are its own."""
    wanted = entry.name.encode()
    header = window.read(entry.header, _LOCAL + len(wanted))
    if len(header) < _LOCAL or header[:4] != b"PK\x03\x04":
        raise CkptconvError(
            "an entry's header is not where the directory says",
            where=f"{window.path}:{entry.name}",
            kind=Kind.DAMAGED,
        )
    name, extra = _LENGTHS.unpack_from(header, 26)
    if int(name) != len(wanted) or header[_LOCAL:] != wanted:
        raise CkptconvError(
            "a zip entry's header belongs to another entry",
            where=f"{window.path}:{entry.name}",
            kind=Kind.DAMAGED,
        )
    return entry.header + _LOCAL + int(name) + int(extra)


def _end(window: Window) -> tuple[int, int, int]:
    """(entries, bytes, begin) of the directory, from the last record and its zip64 form."""
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
    """Sizes and offset with the 64-bit values that the extra field holds for those that are all ones."""
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
