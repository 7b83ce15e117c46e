"""Read a .pt file without torch, into views with byte offsets. The file is a zip of one pickle and raw storages.

PyTorch's caffe2/serialize/inline_container.cc defines the layout. The entries are stored uncompressed under one prefix:
`data.pkl`, one `data/KEY` per storage, and `byteorder`. Local headers carry no sizes, so the reader takes them from the
central directory. The bytes of an entry begin after its local header, whose own name and extra lengths count there.
"""

from __future__ import annotations

import filecmp
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.stand_ins import Storage, TensorRecord
from ckptconv.formats.unpickle import safe_load
from ckptconv.formats.zip_directory import NotAZip, Window, ZipEntry, data_start, read_directory
from ckptconv.tensors.dtypes import itemsize
from ckptconv.tensors.view import View, contiguous_strides, stored

_RESAVE = "load it with the torch that wrote it and torch.save it again (the zip form is the default since torch 1.6)"
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")  # of the files that torch.save writes
_MAX_PICKLE = 1 << 30
Load = Callable[[bytes, str], Any]  # (the pickle's bytes, its place for error messages) -> its object
# A tensor with strides of 0 is larger than its storage. Beyond this many bytes it is refused; trainers' masks are smaller.
_MOST_EXPANDED = 1 << 30


class Entry(NamedTuple):
    """One storage: its first byte in the file, its length in bytes, and its CRC-32."""

    start: int
    nbytes: int
    crc: int


@dataclass(frozen=True, slots=True)
class TorchZip:
    """The directory of a .pt file: its object as stand-ins, and the place of every storage by key."""

    path: str
    root: Any
    entries: dict[str, Entry]

    def view(self, tensor: TensorRecord) -> View:
        """Return a pickled tensor as a view.

        Raises:
            CkptconvError: the tensor's storage is not in the file, the tensor reaches outside it, or is far larger.
        """
        storage, item = tensor.storage, itemsize(tensor.storage.dtype)
        entry = self.entries.get(storage.key)
        if entry is None:
            raise CkptconvError(
                "a tensor refers to a storage that is not in the file",
                where=self.path,
                found=storage.key,
                kind=Kind.DAMAGED,
            )
        reach, numel = _reach(tensor.shape, tensor.stride)
        last = tensor.offset + reach
        if numel and (last + 1) * item > entry.nbytes:
            raise CkptconvError(
                "a tensor reaches outside its storage",
                where=f"{self.path}:data/{storage.key}",
                found=f"byte {(last + 1) * item:,}",
                wanted=f"at most {entry.nbytes:,}",
                kind=Kind.DAMAGED,
            )
        nbytes = numel * item
        if nbytes > _MOST_EXPANDED and nbytes > entry.nbytes:
            raise CkptconvError(
                "a tensor is far larger than its storage",
                where=f"{self.path}:data/{storage.key}",
                found=f"{nbytes:,} bytes from {entry.nbytes:,}",
                hint="save x.contiguous() if it is meant so",
                kind=Kind.DAMAGED,
            )
        return stored(
            self.path, entry.start + tensor.offset * item, tensor.shape, storage.dtype, stride=tensor.stride
        )

    def ints(self, tensor: TensorRecord) -> list[int]:
        """Read the values of a small integer tensor (the ranks of a mesh), in row-major order.

        Raises:
            CkptconvError: the tensor has more than 2^20 elements, or its dtype is not int32 or int64.
        """
        view = self.view(tensor)
        item = itemsize(view.dtype)
        if view.numel > 1 << 20 or view.dtype not in ("int64", "int32"):
            raise CkptconvError(
                "a mesh is not a small tensor of integers",
                where=self.path,
                found=view.dtype,
                kind=Kind.DAMAGED,
            )
        with open(self.path, "rb") as file:
            if view.chunks and view.chunks[0].strides == contiguous_strides(view.shape, item):
                file.seek(view.chunks[0].start)
                return list(
                    struct.unpack(f"<{view.numel}{'q' if item == 8 else 'i'}", file.read(view.nbytes))
                )
            values = []
            for index in product(
                *map(range, view.shape)
            ):  # in row-major order; a submesh is a strided window
                chunk = view.chunks[0]
                file.seek(chunk.start + sum(map(int.__mul__, index, chunk.strides)))
                values.append(int.from_bytes(file.read(item), "little", signed=True))
        return values


@lru_cache(maxsize=4096)  # thousands of files have the same few shapes
def _reach(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, int]:
    """Return (the distance from the first element to the last, the number of elements), both in elements."""
    return sum((size - 1) * step for size, step in zip(shape, stride, strict=True)), prod(shape)


def open_torch_zip(path: str, load: Load = safe_load) -> TorchZip:
    """Read the directory and the pickle of a .pt file. No storage is read.

    Args:
        path: the file.
        load: unpickles as `safe_load` does; it may cache the result.

    Raises:
        CkptconvError: the file is truncated, compressed, big-endian, older than the zip form, or not from torch.save.
    """
    with _opened(path) as handle:
        return torch_zip_at(path, handle, 0, os.fstat(handle).st_size, load)


def torch_zip_at(path: str, handle: int, start: int, size: int, load: Load = safe_load) -> TorchZip:
    """Read the directory and the pickle of an archive inside an open file. DCP writes one archive per tensor into a file.

    Args:
        path: the file, for the views and the error messages.
        handle: an open file descriptor of it.
        start: the first byte of the archive in the file.
        size: of the archive, in bytes.
        load: unpickles as `safe_load` does; it may cache the result.

    Raises:
        CkptconvError: the archive is truncated, compressed, big-endian, or not from torch.save.
    """
    window, entries = _directory(path, handle, start, size)
    if len({entry.name for entry in entries}) != len(entries):
        raise CkptconvError("two entries of a torch file have one name", where=path, kind=Kind.DAMAGED)
    main = next((entry for entry in entries if entry.name.endswith("/data.pkl")), None)
    if main is None:
        raise CkptconvError("not a torch.save file: the zip has no data.pkl", where=path, kind=Kind.DAMAGED)
    prefix = main.name.removesuffix("data.pkl")
    for entry in entries:
        if not entry.stored:
            raise CkptconvError(
                "a compressed entry is not a torch storage",
                where=f"{path}:{entry.name}",
                hint=_RESAVE,
                kind=Kind.DAMAGED,
            )
    order = next((entry for entry in entries if entry.name == f"{prefix}byteorder"), None)
    if order is not None and _small_entry(window, order) not in (b"little", b""):
        raise CkptconvError(
            "the file was written on a big-endian machine", where=path, hint=_RESAVE, kind=Kind.UNSUPPORTED
        )
    pickled = _small_entry(window, main)
    data = f"{prefix}data/"
    storages = dict(_storages(window, [entry for entry in entries if entry.name.startswith(data)], len(data)))
    return TorchZip(path, load(pickled, f"{path}:{main.name}"), storages)


class CheckedEntry(NamedTuple):
    """The result of the CRC-32 check of one entry.

    Attributes:
        name: of the entry.
        nbytes: of the entry.
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
    buffer = memoryview(bytearray(block))
    with _opened(path) as handle:
        window, entries = _directory(path, handle, 0, os.fstat(handle).st_size)
        end = 0
        for entry in sorted(entries, key=lambda entry: entry.header):
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
                got = os.preadv(handle, [buffer[: min(block, left)]], at)
                if not got:
                    break
                crc = zlib.crc32(buffer[:got], crc)
                at, left = at + got, left - got
            is_damaged = is_checked and (left > 0 or crc != entry.crc)
            yield CheckedEntry(entry.name, entry.nbytes, is_checked, is_damaged)


def same_archive(one: str, two: str) -> bool:
    """Return True if two .pt files hold the same entries.

    The CRCs in the directories are compared, or the bytes of the files if an entry has no CRC.
    """
    entries = []
    for path in (one, two):
        with _opened(path) as handle:
            entries.append(_directory(path, handle, 0, os.fstat(handle).st_size)[1])
    if entries[0] != entries[1]:
        return False
    return all(entry.crc or not entry.nbytes for entry in entries[0]) or filecmp.cmp(one, two, shallow=False)


@contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for a writer
    except OSError as error:
        raise CkptconvError(
            f"cannot be read: {error.strerror or error}", where=path, kind=Kind.ENVIRONMENT
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise CkptconvError(
                "not a torch.save file but a folder, pipe or device", where=path, kind=Kind.DAMAGED
            )
        yield handle
    finally:
        os.close(handle)


def _directory(path: str, handle: int, start: int, size: int) -> tuple[Window, list[ZipEntry]]:
    try:
        window = Window(path, handle, start, size)
        return window, read_directory(window)
    except NotAZip as error:
        raise _not_a_zip(path, os.pread(handle, 512, start), size, error) from error
    except OSError as error:
        raise CkptconvError(
            f"cannot be read: {error.strerror or error}", where=path, kind=Kind.ENVIRONMENT
        ) from error


def _small_entry(window: Window, entry: ZipEntry) -> bytes:
    """Read an entry that is not a storage and check its CRC; a CRC of 0 means that torch was configured to write none."""
    where = f"{window.path}:{entry.name}"
    if entry.nbytes > _MAX_PICKLE:
        raise CkptconvError(
            "the pickle is too large", where=where, found=f"{entry.nbytes:,} bytes", kind=Kind.UNSUPPORTED
        )
    data = window.read(data_start(window, entry), entry.nbytes)
    if len(data) != entry.nbytes or (entry.crc and zlib.crc32(data) != entry.crc):
        raise CkptconvError(
            "the file is damaged: an entry does not match its checksum",
            where=where,
            hint="copy it again from the node where it was written, or take an earlier step",
            kind=Kind.DAMAGED,
        )
    return data


def _storages(window: Window, entries: list[ZipEntry], prefix: int) -> Iterator[tuple[str, Entry]]:
    """Yield (key, entry) in file order; refuse a storage that is outside the archive or overlaps another."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header):
        start = data_start(window, entry)
        if start < end or start + entry.nbytes > window.size:
            raise CkptconvError(
                "a storage lies outside the file or overlaps another one",
                where=f"{window.path}:{entry.name}",
                kind=Kind.DAMAGED,
            )
        end = start + entry.nbytes
        yield entry.name[prefix:], Entry(window.start + start, entry.nbytes, entry.crc)


def _not_a_zip(path: str, head: bytes, size: int, error: Exception) -> CkptconvError:
    if not head:
        return CkptconvError("the file is empty", where=path, kind=Kind.DAMAGED)
    if head[:4] == b"PK\x03\x04":
        return CkptconvError(
            "the file is truncated or damaged",
            where=path,
            found=f"{size:,} bytes; {error}",
            hint="copy it again from the node where it was written, or take an earlier step",
            kind=Kind.DAMAGED,
        )
    if head[:2] == b"\x80\x02" or head[257:262] == b"ustar":
        return CkptconvError(
            "legacy (pre-1.6) torch.save file, not a zip", where=path, hint=_RESAVE, kind=Kind.UNSUPPORTED
        )
    return CkptconvError("not a torch.save file", where=path, found=repr(head[:8]), kind=Kind.DAMAGED)


__all__ = [
    "CheckedEntry", "Entry", "Storage", "TorchZip", "check_crcs", "open_torch_zip", "same_archive", "torch_zip_at",
]  # fmt: skip
