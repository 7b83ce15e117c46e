"""The .pt container: a zip of one pickle and raw storages. Read without torch, into views with byte offsets.

Layout: caffe2/serialize/inline_container.cc (pytorch). Entries are stored uncompressed under one prefix: `data.pkl`,
`data/KEY` a storage each, `byteorder`. Local headers carry no sizes, so the central directory is what counts; an
entry's bytes begin after its local header, whose name and extra lengths are the local ones.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from ckptconv.backends.stand_ins import Storage, TensorRecord, safe_load
from ckptconv.dtypes import itemsize
from ckptconv.errors import CkptconvError
from ckptconv.view import View, stored

_RESAVE = "load it with the torch that wrote it and torch.save it again (the zip form is the default since torch 1.6)"
_MAX_PICKLE = 1 << 30


class Entry(NamedTuple):
    """One storage: where its bytes begin in the file, how many, and their CRC-32."""

    start: int
    nbytes: int
    crc: int


@dataclass(frozen=True, slots=True)
class TorchZip:
    """An opened .pt: its object as stand-ins, and the place of every storage."""

    path: str
    root: Any
    entries: dict[str, Entry]

    def view(self, tensor: TensorRecord) -> View:
        """A pickled tensor as a view. Raises CkptconvError when it reaches outside its storage."""
        storage, item = tensor.storage, itemsize(tensor.storage.dtype)
        entry = self.entries.get(storage.key)
        if entry is None:
            raise CkptconvError(
                "a tensor names a storage that is not in the file", where=self.path, found=storage.key
            )
        last = tensor.offset + sum(
            (size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True)
        )
        if 0 not in tensor.shape and (last + 1) * item > entry.nbytes:
            raise CkptconvError(
                "a tensor reaches outside its storage",
                where=f"{self.path}:data/{storage.key}",
                found=f"byte {(last + 1) * item:,}",
                wanted=f"at most {entry.nbytes:,}",
            )
        return stored(
            self.path, entry.start + tensor.offset * item, tensor.shape, storage.dtype, stride=tensor.stride
        )

    def ints(self, tensor: TensorRecord) -> list[int]:
        """The values of a small integer tensor (a mesh's ranks)."""
        view = self.view(tensor)
        item = itemsize(view.dtype)
        if view.numel > 1 << 20 or view.dtype not in ("int64", "int32"):
            raise CkptconvError("a mesh is not a small tensor of integers", where=self.path, found=view.dtype)
        with open(self.path, "rb") as file:
            values = []
            for index in product(*map(range, view.shape)):  # in C order; a submesh is a strided window
                chunk = view.chunks[0]
                file.seek(chunk.start + sum(map(int.__mul__, index, chunk.strides)))
                values.append(int.from_bytes(file.read(item), "little", signed=True))
        return values


def open_torch_zip(path: str) -> TorchZip:
    """Read the directory and the pickle of a .pt file; no storage is read.

    Raises CkptconvError for a truncated, compressed, big-endian, pre-zip or otherwise foreign file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            main = next((info for info in infos if info.filename.endswith("/data.pkl")), None)
            if main is None:
                raise CkptconvError("a zip file without data.pkl is no torch file", where=path)
            prefix = main.filename.removesuffix("data.pkl")
            _check(path, prefix, archive, infos, main)
            pickled = archive.read(main)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error) as error:
        raise _not_a_zip(path, error) from error
    except OSError as error:
        raise CkptconvError(f"cannot be read: {error.strerror or error}", where=path) from error
    data = f"{prefix}data/"
    entries = dict(_entries(path, [info for info in infos if info.filename.startswith(data)], len(data)))
    return TorchZip(path, safe_load(pickled, f"{path}:{main.filename}"), entries)


def check_crcs(path: str, block: int = 1 << 20) -> Iterator[tuple[int, str | None]]:
    """Read every entry and compare its CRC-32: yields (bytes read, name of a damaged entry or None)."""
    buffer = bytearray(block)
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for info in archive.infolist():
            file.seek(_data_start(path, file.fileno(), info))
            left, crc = info.file_size, 0
            while left:
                got = file.readinto(memoryview(buffer)[: min(block, left)])
                if not got:
                    break
                crc = zlib.crc32(memoryview(buffer)[:got], crc)
                left -= got
            yield info.file_size, info.filename if left or crc != info.CRC else None


def _check(path: str, prefix: str, archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo], main: Any) -> None:
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
            raise CkptconvError(
                "a compressed entry is not a torch storage", where=f"{path}:{info.filename}", hint=_RESAVE
            )
    if main.file_size > _MAX_PICKLE:
        raise CkptconvError("the pickle is too large", where=path, found=f"{main.file_size:,} bytes")
    order = next((info for info in infos if info.filename == f"{prefix}byteorder"), None)
    if order is not None and archive.read(order) not in (b"little", b""):
        raise CkptconvError("the file was written on a big-endian machine", where=path, hint=_RESAVE)


def _entries(path: str, infos: list[zipfile.ZipInfo], prefix: int) -> Iterator[tuple[str, Entry]]:
    """The storages; each must lie inside the file, and no two on the same bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        size, end = os.fstat(handle).st_size, 0
        for info in sorted(infos, key=lambda info: info.header_offset):
            start = _data_start(path, handle, info)
            if start < end or start + info.file_size > size:
                raise CkptconvError(
                    "a storage lies outside the file or on another one", where=f"{path}:{info.filename}"
                )
            end = start + info.file_size
            yield info.filename[prefix:], Entry(start, info.file_size, info.CRC)
    finally:
        os.close(handle)


def _data_start(path: str, handle: int, info: zipfile.ZipInfo) -> int:
    header = os.pread(handle, 30, info.header_offset)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise CkptconvError(
            "an entry's header is not where the directory says", where=f"{path}:{info.filename}"
        )
    name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    return info.header_offset + 30 + name + extra


def _not_a_zip(path: str, error: Exception) -> CkptconvError:
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return CkptconvError("the file is empty", where=path)
    if head[:4] == b"PK\x03\x04":
        size = os.path.getsize(path)
        return CkptconvError(
            "the file is truncated or damaged: its directory, the last thing written, cannot be read",
            where=path,
            found=f"{size:,} bytes; {error}",
            hint="copy it again from the node where it was written, or take an earlier step",
        )
    if head[:2] == b"\x80\x02" or head[257:262] == b"ustar":
        return CkptconvError(
            "the file has torch's old form from before 1.6, which is no zip", where=path, hint=_RESAVE
        )
    return CkptconvError("not a file that torch.save wrote", where=path, found=repr(head[:8]))


__all__ = ["Entry", "Storage", "TorchZip", "check_crcs", "open_torch_zip"]
