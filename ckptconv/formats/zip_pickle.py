"""The small entries of an archive of torch.save: its pickle, and the byte order of the machine that wrote it."""

from __future__ import annotations

import zlib

from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.zip_directory import COPY_AGAIN, Window, ZipEntry, data_start
from ckptconv.formats.zip_forms import RESAVE

MOST = 1 << 30  # bytes of a pickle
_ROOM = 256  # bytes; no less than a local header with torch's padding


def pickle_of(window: Window, main: ZipEntry, order: ZipEntry | None) -> bytes:
    """Return the pickle after a check of the byte order."""
    if order is not None:
        begin = min(main.header, order.header)
        if max(main.nbytes, order.nbytes) <= MOST:  # torch writes them side by side
            end = max(main.header + main.nbytes, order.header + order.nbytes)
            window.keep(begin, end + _ROOM - begin)
        if _small_entry(window, order) not in (b"little", b""):
            raise CkptconvError(
                "the file was written on a big-endian machine",
                where=window.path,
                hint=RESAVE,
                kind=Kind.UNSUPPORTED,
            )
    return _small_entry(window, main)


def _small_entry(window: Window, entry: ZipEntry) -> bytes:
    """Read an entry that is not a storage and check its CRC; a CRC of 0 means that torch was configured to write none."""
    where = f"{window.path}:{entry.name}"
    if entry.nbytes > MOST:
        raise CkptconvError(
            "the pickle is too large", where=where, found=f"{entry.nbytes:,} bytes", kind=Kind.UNSUPPORTED
        )
    data = window.read(data_start(window, entry), entry.nbytes)
    if len(data) != entry.nbytes or (entry.crc and zlib.crc32(data) != entry.crc):
        raise CkptconvError(
            "the file is damaged: an entry does not match its checksum",
            where=where,
            hint=COPY_AGAIN,
            kind=Kind.DAMAGED,
        )
    return data
