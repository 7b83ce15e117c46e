"""Read a .pt file without torch, into views with byte offsets. The file is a zip of one pickle and raw storages.

PyTorch's caffe2/serialize/inline_container.cc defines the layout. The entries are stored uncompressed under one prefix:
`data.pkl`, one `data/KEY` per storage, and `byteorder`. Local headers carry no sizes, so the reader takes them from the
central directory. The bytes of an entry begin after its local header, whose own name and extra lengths count there.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.in_order import in_order
from ckptconv.formats.stand_ins import Storage, TensorRecord
from ckptconv.formats.unpickle import safe_load
from ckptconv.formats.zip_directory import (
    COPY_AGAIN,
    Directory,
    NotAZip,
    RawDirectory,
    Window,
    entries_of,
    entry_at,
    raw_directory,
    read_directory,
)
from ckptconv.formats.zip_forms import RESAVE, Form, Forms, Ints, Place, form_of
from ckptconv.formats.zip_pickle import MOST, pickle_of
from ckptconv.formats.zip_places import ZipFile
from ckptconv.tensors.boxes import contiguous_strides
from ckptconv.tensors.dtypes import itemsize
from ckptconv.tensors.look import opened
from ckptconv.tensors.storage import Ranges
from ckptconv.tensors.stored_file import StoredFile
from ckptconv.tensors.view import View, stored

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")  # of the files that torch.save writes
_BEGINNING = 512  # bytes that tell what a file is, if it is not a zip
_MOST_INTS = 1 << 23  # bytes of the storage of a mesh's ranks
_NEXT = 1024  # bytes after the pickle that hold the byte order, and torch's other small entries
_OTHERS = {  # how the files begin that are made of a torch file -> what to do
    b"\x1f\x8b": "it is compressed by gzip: decompress it with gunzip",
    b"version https://git-lfs": "it is a pointer of Git LFS: get the file with git lfs pull",
}
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
    """The directory of a .pt file: its object as stand-ins, and the place of every storage by key.

    Attributes:
        path: the path of the file.
        root: its object.
        form: the directory without its checksums; like files may share it.
        crcs: the CRC-32 of every entry, in the directory's order.
    """

    path: str
    root: Any
    form: Form
    crcs: Sequence[int]
    _ints: Ints = field(default_factory=dict, compare=False, repr=False)
    _entries: dict[str, Entry] = field(default_factory=dict, compare=False, repr=False)

    @property
    def entries(self) -> dict[str, Entry]:
        """Key -> storage, in file order."""
        if not self._entries:
            for key, (start, nbytes, number) in self.form.places.items():
                self._entries[key] = Entry(start, nbytes, self.crcs[number])
        return self._entries

    def view(self, tensor: TensorRecord) -> View:
        """Return a pickled tensor as a view.

        Raises:
            CkptconvError: the tensor's storage is not in the file, the tensor reaches outside it, or is far larger.
        """
        storage, item = tensor.storage, itemsize(tensor.storage.dtype)
        entry = self.form.places.get(storage.key)
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
                hint="if this is intended, save x.contiguous()",
                kind=Kind.DAMAGED,
            )
        return stored(
            self.path, entry.start + tensor.offset * item, tensor.shape, storage.dtype, stride=tensor.stride
        )

    def ints(self, tensor: TensorRecord) -> list[int]:
        """Read the values of a small integer tensor (the ranks of a mesh), in row-major order.

        Ranks store the same mesh: of files that were opened with the same `Forms`, a storage of equal checksum is read once.

        Raises:
            CkptconvError: its storage is larger than 8 MiB or damaged, or its dtype is not int32 or int64.
        """
        view, entry = self.view(tensor), self.form.places[tensor.storage.key]
        known = tensor, entry.nbytes, self.crcs[entry.number] or self.path
        if known not in self._ints:
            self._ints[known] = self._read_ints(view, entry)
        return self._ints[known]

    def _read_ints(self, view: View, place: Place) -> list[int]:
        item, crc = itemsize(view.dtype), self.crcs[place.number]
        if max(place.nbytes, view.nbytes) > _MOST_INTS or view.dtype not in ("int64", "int32"):
            raise CkptconvError(
                "a mesh is not a small tensor of integers",
                where=self.path,
                found=f"{view.dtype}, {place.nbytes:,} bytes",
                kind=Kind.DAMAGED,
            )
        if not view.chunks:
            return []
        (chunk,) = view.chunks
        with opened(self.path) as file:
            if isinstance(self.path, StoredFile):
                self.path.check(file, chunk.start)
            data = file.read(place.start, place.nbytes)
        if len(data) < place.nbytes or (crc and zlib.crc32(data) != crc):
            raise CkptconvError(
                "the file is damaged: the ranks of a mesh do not match their checksum",
                where=self.path,
                hint=COPY_AGAIN,
                kind=Kind.DAMAGED,
            )
        first, code = chunk.start - place.start, "q" if item == 8 else "i"
        if chunk.strides == contiguous_strides(view.shape, item):
            return list(struct.unpack_from(f"<{view.numel}{code}", data, first))
        number = struct.Struct(f"<{code}")
        return [
            number.unpack_from(data, first + sum(map(int.__mul__, index, chunk.strides)))[0]
            for index in product(*map(range, view.shape))
        ]  # in row-major order; a submesh is a strided window


@lru_cache(maxsize=4096)  # thousands of files have the same few shapes
def _reach(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, int]:
    """Return (the distance from the first element to the last, the number of elements), both in elements."""
    return sum((size - 1) * step for size, step in zip(shape, stride, strict=True)), prod(shape)


def open_torch_zip(path: str, load: Load = safe_load, forms: Forms | None = None) -> TorchZip:
    """Read the directory and the pickle of a .pt file. No storage is read, and no local header where its end is computed.

    Args:
        path: the file.
        load: unpickles as `safe_load` does; it may cache the result.
        forms: the forms of the files before it, which spare the work for a like one.

    Raises:
        CkptconvError: the file is truncated, compressed, big-endian, older than the zip form, or not from torch.save.
    """
    with opened(path) as handle:
        return _read(path, handle, 0, handle.nbytes, load, forms or Forms())


def open_torch_zips(
    paths: Sequence[str], load: Load = safe_load, forms: Forms | None = None
) -> Iterator[TorchZip]:
    """Open many files, in their order; on a slow disk several at a time. See `open_torch_zip`.

    The objects of two files are made one after another, so `load` may return one that the next call changes.
    """
    forms = forms or Forms()
    for fetched in in_order(_fetch, paths):
        yield _decode(fetched, load, forms)


def torch_zip_at(path: str, handle: Ranges, start: int, size: int, load: Load = safe_load) -> TorchZip:
    """Read the directory, the pickle and all local headers of an archive inside an open file, as DCP has one per tensor.

    Args:
        path: the file, for the views and the error messages.
        handle: the open file.
        start: the first byte of the archive in the file.
        size: the size of the archive, in bytes.
        load: unpickles as `safe_load` does; it may cache the result.

    Raises:
        CkptconvError: the archive is truncated, compressed, big-endian, or not from torch.save.
    """
    return _read(path, handle, start, size, load, None)


def _read(path: str, handle: Ranges, start: int, size: int, load: Load, forms: Forms | None) -> TorchZip:
    """`forms`: None if every local header is read; else those of storages are left to the reader of their bytes."""
    return _decode(_fetched(path, handle, start, size), load, forms)


class _Fetched(NamedTuple):
    """What is read of an archive before its directory is understood."""

    window: Window
    raw: RawDirectory


def _fetch(path: str) -> _Fetched:
    """Read the directory of a file, and the pickle where torch puts it: it is the archive's first entry."""
    with opened(path) as handle:
        fetched = _fetched(path, handle, 0, handle.nbytes)
        with _zips_only(path, handle, 0, fetched.window.size):
            first = entry_at(fetched.raw.data, 0)[0] if fetched.raw.total else None
        if first is not None and first.nbytes <= MOST:
            fetched.window.keep(first.header, first.nbytes + _NEXT)
    fetched.window.release()
    return fetched


def _fetched(path: str, handle: Ranges, start: int, size: int) -> _Fetched:
    with _zips_only(path, handle, start, size):
        window = Window(path, handle, start, size)
        return _Fetched(window, raw_directory(window))


def _decode(fetched: _Fetched, load: Load, forms: Forms | None) -> TorchZip:
    window, raw = fetched
    path = window.path
    found = forms.find(raw, window.size) if forms is not None else None
    if found is None:
        try:
            entries = entries_of(raw)
        except NotAZip as error:
            raise _not_a_zip(path, window.read(0, _BEGINNING), window.size, error) from error
        found = form_of(window, Directory(entries, raw.begin), compute=forms is not None)
        if forms is not None:
            forms.add(found.form, raw, window.size)
    form, crcs, main, order = found
    pickled = pickle_of(window, main, order)
    file = ZipFile(path, form.computed, found.prefix) if form.computed.starts else path
    known = forms.ints if forms is not None else {}
    return TorchZip(file, load(pickled, f"{path}:{main.name}"), form, crcs, known)


def directory_of(path: str, handle: Ranges, start: int, size: int) -> tuple[Window, Directory]:
    """Return an archive's range of the file, and its central directory.

    Raises:
        CkptconvError: the range is no archive of torch.save, or cannot be read.
    """
    with _zips_only(path, handle, start, size):
        window = Window(path, handle, start, size)
        return window, read_directory(window)


@contextmanager
def _zips_only(path: str, handle: Ranges, start: int, size: int) -> Iterator[None]:
    try:
        yield
    except NotAZip as error:
        raise _not_a_zip(path, handle.read(start, _BEGINNING), size, error) from error


def _not_a_zip(path: str, head: bytes, size: int, error: Exception) -> CkptconvError:
    if not head:
        return CkptconvError(
            "the file is empty",
            where=path,
            hint=f"is it still being written? Else {COPY_AGAIN}",
            kind=Kind.DAMAGED,
        )
    if head[:4] == b"PK\x03\x04":
        return CkptconvError(
            "the file is truncated or damaged",
            where=path,
            found=f"{size:,} bytes; {error}",
            hint=f"is it still being written? Else {COPY_AGAIN}",
            kind=Kind.DAMAGED,
        )
    if head[:2] == b"\x80\x02" or head[257:262] == b"ustar":
        return CkptconvError(
            "legacy (pre-1.6) torch.save file, not a zip", where=path, hint=RESAVE, kind=Kind.UNSUPPORTED
        )
    return CkptconvError(
        "not a torch.save file",
        where=path,
        found=repr(head[:8]),
        hint=next((hint for begin, hint in _OTHERS.items() if head.startswith(begin)), None),
        kind=Kind.DAMAGED,
    )


__all__ = [
    "Entry",
    "Storage",
    "TorchZip",
    "directory_of",
    "open_torch_zip",
    "open_torch_zips",
    "torch_zip_at",
]
