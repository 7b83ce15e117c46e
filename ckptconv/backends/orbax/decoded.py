"""A compressed array as a file that is read by ranges: each Zarr chunk is decoded once, to a place in a scratch file.

A view needs elements at fixed bytes, and a chunk of zstd has none. So the array is presented as a file (`FarFile`) of its
chunks, uncompressed and one after another; the first read of a chunk decodes it. The scratch file has no name and goes with
the process. It is in the folder for temporary files (TMPDIR), and grows to the size of what was read.
"""

from __future__ import annotations

import os
import tempfile
import threading
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, product
from math import prod
from pathlib import Path
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.boxes import Box, Chunk, Shape, contiguous_strides
from ckptconv.tensors.dtypes import itemsize
from ckptconv.tensors.file_state import fingerprint, stamps_under
from ckptconv.tensors.storage import FarFile, FarGroup, FileState
from ckptconv.tensors.stored_file import StoredFile
from ckptconv.tensors.view import View


class Scratch(FarGroup):
    """The scratch file of all arrays of one checkpoint.

    Args:
        folder: the checkpoint.

    Attributes:
        state: the state of the checkpoint's files together.
    """

    def __init__(self, folder: Path) -> None:
        self.budget = 0  # nothing is fetched ahead
        self._folder, self._end, self._lock = folder, 0, threading.Lock()
        self._file: Any = None
        self.state = self._present()

    def states_now(self, files: Sequence[FarFile]) -> list[FileState | None]:
        """See `FarGroup`: an array has changed if any file of the checkpoint has."""
        now = self._present()
        return [now._replace(nbytes=file.nbytes) for file in files]

    def place(self, nbytes: int) -> tuple[int, int]:
        """Reserve room.

        Returns:
            The descriptor of the scratch file, and the byte at which the room begins.

        Raises:
            CkptconvError: the disk has too little room.
        """
        with self._lock:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it is open as long as its arrays
            disk = os.fstatvfs(self._file.fileno())
            if disk.f_bavail * disk.f_frsize < nbytes:
                raise _no_room(disk.f_bavail * disk.f_frsize, nbytes)
            start, self._end = self._end, self._end + nbytes
            return self._file.fileno(), start

    def _present(self) -> FileState:
        files = stamps_under([self._folder], leave=lambda path: False)
        newest = max((state.changed for state in files.values()), default=0)
        return FileState(0, newest, 0, fingerprint(files))


class DecodedArray(FarFile):
    """A Zarr array as a file of its decoded chunks, in row-major order of the chunk grid, each row-major. Threads share it.

    Args:
        folder: the checkpoint.
        name: the array's name in it.
        array: tensorstore's open array.
        chunk: the shape of a chunk; those at the ends of the array are smaller.
        dtype: a name from `dtypes`.
        scratch: where chunks are decoded to.
    """

    def __init__(
        self, folder: Path, name: str, array: Any, chunk: Shape, dtype: str, scratch: Scratch
    ) -> None:
        self._folder, self._name, self._array, self.dtype = folder, name, array, dtype
        self.shape: Shape = tuple(array.shape)
        grid = [range(0, size, step) for size, step in zip(self.shape, chunk, strict=True)]
        self.boxes = [
            Box(at, tuple(map(min, chunk, (size - low for size, low in zip(self.shape, at, strict=True)))))
            for at in product(*grid)
        ]
        self._ends = list(accumulate(box.volume * itemsize(dtype) for box in self.boxes))
        self.nbytes, self.group = prod(self.shape) * itemsize(dtype), scratch
        self.state = scratch.state._replace(nbytes=self.nbytes)
        self._done: set[int] = set()
        self._lock, self._scratch = threading.Lock(), scratch
        self._place: tuple[int, int] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        from ckptconv.backends.orbax.arrays import again  # another process decodes for itself

        return again, (str(self._folder), self._name)

    @property
    def path(self) -> Path:
        """See `FarFile`: the file does not exist under this path."""
        return self._folder / self._name

    @property
    def view(self) -> View:
        """The array as a tensor, one chunk of the view for each chunk of the array."""
        file, item = StoredFile(str(self.path), self), itemsize(self.dtype)
        chunks = [
            Chunk(box.offsets, box.sizes, file, end - box.volume * item, contiguous_strides(box.sizes, item))
            for box, end in zip(self.boxes, self._ends, strict=True)
        ]
        return View(self.shape, self.dtype, tuple(chunks) if self.nbytes else ())

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """See `FarFile`: nothing is decoded ahead."""

    def fill(self, start: int, memory: memoryview) -> int:
        """See `FarFile`.

        Raises:
            CkptconvError: a chunk cannot be read or decoded, or there is no room for it.
        """
        end = min(start + len(memory), self.nbytes)
        if end <= start:
            return 0
        descriptor, base = self._decoded(bisect_right(self._ends, start), bisect_right(self._ends, end - 1))
        got = 0
        while got < end - start:
            n = os.preadv(descriptor, [memory[got : end - start]], base + start + got)
            if not n:
                break
            got += n
        return got

    def _decoded(self, first: int, last: int) -> tuple[int, int]:
        """The descriptor of the scratch file and where the array begins in it, once the chunks first..last are there."""
        with self._lock:
            if self._place is None:
                self._place = self._scratch.place(self.nbytes)
            descriptor, base = self._place
            for number in range(first, last + 1):
                if number not in self._done:
                    self._decode(number, descriptor, base)
                    self._done.add(number)
            return self._place

    def _decode(self, number: int, descriptor: int, base: int) -> None:
        box = self.boxes[number]
        try:
            part = self._array[tuple(map(slice, box.offsets, box.ends))].read(order="C").result()
        except Exception as error:  # tensorstore raises ValueError for what is absent or damaged
            raise CkptconvError(
                "a chunk of an array cannot be read",
                where=self.path,
                found=said(error),
                hint="copy the step again, with the files of all processes",
                kind=Kind.DAMAGED,
            ) from error
        data = memoryview(part.reshape(-1).view("u1"))
        at, start = 0, base + self._ends[number] - len(data)
        try:
            while at < len(data):
                at += os.pwrite(descriptor, data[at:], start + at)
        except OSError as error:
            raise _no_room(0, len(data)) from error


def said(error: Exception) -> str:
    """What tensorstore says, without the places in its sources."""
    return str(error).partition(" [source locations")[0][:300]


def _no_room(found: int, wanted: int) -> CkptconvError:
    return CkptconvError(
        "there is no room to decode compressed arrays",
        where=tempfile.gettempdir(),
        found=f"{found:,} bytes free",
        wanted=f"{wanted:,} bytes",
        hint="name a folder on a larger disk: export TMPDIR=FOLDER",
        kind=Kind.ENVIRONMENT,
    )
