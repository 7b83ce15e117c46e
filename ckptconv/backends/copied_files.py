"""Recognises a rank's file that is a copy of another rank's, by the CRC-32s in the zip directories; no storage is read."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from ckptconv.errors import CkptconvError
from ckptconv.formats.stand_ins import TensorRecord
from ckptconv.formats.torch_zip import Entry, TorchZip

_SHORT = 64  # bytes; shorter storages (counters, norms of a few elements) are not compared
_LEAST = 256  # the minimum number of bytes that two files must have in common
_MOST_CONSTANT = 64 << 20  # bytes; longer storages are not compared with constant values
_CONSTANTS = (
    b"\x00\x00\x00\x00",
    b"\x00\x00\x80\x3f",
    b"\x80\x3f\x80\x3f",
    b"\x00\x3c\x00\x3c",
)  # 0, and 1 in three dtypes


def refuse_copies(files: Iterable[tuple[TorchZip, Iterable[TensorRecord] | None]]) -> None:
    """Refuse two files that hold the same bytes in all of their storages.

    Storages without a checksum, and storages of zeros or ones (padding, new norms), are no evidence of a copy.

    Args:
        files: each file with its tensors that differ between any two ranks; None instead of the tensors compares all
            storages of the file.

    Raises:
        CkptconvError: names both files.
    """
    known: dict[tuple[Entry, ...], TorchZip] = {}
    for file, own in files:
        keys = file.entries if own is None else dict.fromkeys(record.storage.key for record in own)
        held = [entry for key in keys if (entry := file.entries.get(key)) and entry.nbytes >= _SHORT]
        marks = tuple(sorted(entry._replace(start=0) for entry in held))
        if sum(entry.nbytes for entry in marks) < _LEAST or not all(entry.crc for entry in marks):
            continue
        first = known.setdefault(marks, file)
        if first is not file and not all(map(_is_constant, marks)):
            raise CkptconvError(
                "one rank's file is a copy of another rank's",
                where=file.path,
                found=f"all {len(marks)} of its storages have the checksums of those in {first.path}",
                wanted="the parts that this rank saved",
                hint="copy the file again from the node where this rank ran",
            )


def _is_constant(entry: Entry) -> bool:
    """True if the checksum is that of zeros, or of ones in float32, bfloat16 or float16."""
    if entry.nbytes > _MOST_CONSTANT:
        return False
    return any(
        entry.crc == zlib.crc32((unit * (entry.nbytes // 4 + 1))[: entry.nbytes]) for unit in _CONSTANTS
    )
