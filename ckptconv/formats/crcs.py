"""Check the CRC-32 of every entry of a .pt file, and compare two files by theirs."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.same import same_bytes
from ckptconv.formats.torch_zip import directory_of
from ckptconv.formats.zip_directory import data_start
from ckptconv.tensors.look import opened
from ckptconv.tensors.stored_file import path_of


class CheckedEntry(NamedTuple):
    """The result of the CRC-32 check of one entry.

    Attributes:
        name: the name of the entry.
        nbytes: the size in bytes of the entry.
        is_checked: False if the file records no CRC for the entry, which is then not read. torch writes 0 under
            `set_crc32_options(False)`, and for storages that `skip_data` reserves without writing them.
        is_damaged: True if the bytes do not match the CRC, or some are missing.
    """

    name: str
    nbytes: int
    is_checked: bool
    is_damaged: bool


def check_crcs(path: str, block: int = 1 << 20) -> Iterator[CheckedEntry]:
    """Read every entry of a .pt file and compare its CRC-32.

    Args:
        path: a file that torch.save wrote.
        block: the size of one read, in bytes.

    Raises:
        CkptconvError: the file is not such an archive, cannot be read, or has overlapping entries.
    """
    with opened(path) as handle:
        window, directory = directory_of(path, handle, 0, handle.nbytes)
        end = 0
        for entry in sorted(directory.entries, key=lambda entry: entry.header):
            at, left, crc = data_start(window, entry), entry.nbytes, 0
            is_checked = (
                bool(entry.crc) or not entry.nbytes
            )  # a CRC of 0 is that of an empty entry; for others it means that torch wrote none
            if at < end:
                raise CkptconvError(
                    "two zip entries overlap", where=f"{path}:{entry.name}", kind=Kind.DAMAGED
                )
            end = at + left
            while left and is_checked:
                data = handle.read(at, min(block, left))
                if not data:
                    break
                crc = zlib.crc32(data, crc)
                at, left = at + len(data), left - len(data)
            is_damaged = is_checked and (left > 0 or crc != entry.crc)
            yield CheckedEntry(entry.name, entry.nbytes, is_checked, is_damaged)


def same_archive(one: str, two: str) -> bool:
    """Return True if two .pt files hold the same entries.

    The CRCs in the directories are compared, or the bytes of the files if an entry has no CRC.
    """
    entries = []
    for path in (one, two):
        with opened(path) as handle:
            entries.append(directory_of(path, handle, 0, handle.nbytes)[1].entries)
    if entries[0] != entries[1]:
        return False
    return all(entry.crc or not entry.nbytes for entry in entries[0]) or same_bytes(
        path_of(one), path_of(two)
    )
