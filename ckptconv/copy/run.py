"""Runs a plan: headers first, every byte once, through fixed buffers, on a few threads.

A file is written in blocks. Each worker takes the next block, reads what it is made of, casts in pieces that stay in
a core's cache, hashes it and writes it in its place. When the last block of a file is there, the file is fsynced and
renamed inside the work folder; a later run finds it and does not write it again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from ckptconv.compute import Block, views_of
from ckptconv.copy.output_file import PAGE, OutputFile, block_buffer, in_place
from ckptconv.errors import CkptconvError, cannot_write
from ckptconv.plan import Output, Plan
from ckptconv.plan.shards import OutFile
from ckptconv.read.reader import SCRATCH, Array, Reader
from ckptconv.read.workers import count, for_each
from ckptconv.tensors.dtypes import itemsize

HASH_BLOCK = 4 << 20  # bytes of a tensor under one digest; a constant of the receipt's format
HASH = "xxh3-128/4MiB"
_STORED = 2 * HASH_BLOCK  # float32 masters of a bfloat16 block
_PER_WORKER = HASH_BLOCK + PAGE + SCRATCH + _STORED


class _Tile(NamedTuple):
    """One block of one tensor: elements low..high-1, the number of its digest."""

    file: int
    key: str
    output: Output
    low: int
    high: int
    number: int


@dataclass(slots=True)
class _Target:
    """An output file while it is written."""

    out: OutFile
    file: OutputFile
    left: int = 0
    digests: dict[str, list[bytes]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy did: tensor name -> hash, bytes written and read, files that an earlier run had finished."""

    hashes: dict[str, str]
    written: int
    read: int
    resumed: tuple[str, ...]


def buffer_memory(workers: int) -> int:
    """Bytes of buffers that so many workers hold."""
    return workers * _PER_WORKER


def workers_for(max_memory: int, wanted: int | None = None) -> int:
    """How many workers fit into a bound on buffers; one a core when nothing is asked for."""
    fit = max(max_memory // _PER_WORKER, 0)
    if not fit:
        raise CkptconvError(
            "--max-memory is too small for one worker's buffers",
            found=f"{max_memory:,} bytes",
            wanted=f"at least {_PER_WORKER:,}",
            hint="raise --max-memory",
        )
    return min(count(wanted), fit)


def copy(plan: Plan, work: Path, workers: int, on_bytes: Callable[[int, str], None] | None = None) -> Copied:
    """Write every file of the plan into the folder `work`; returns hashes. on_bytes(bytes written, file name).

    Raises CkptconvError for a full or unwritable disk and for sources that end early. KeyboardInterrupt passes
    through after the workers have stopped.
    """
    hashes: dict[str, str] = {}
    resumed = []
    todo = []
    for out in plan.files:
        done = finished(work, out)
        if done is None:
            todo.append(out)
        else:
            hashes.update(done)
            resumed.append(out.name)
            if on_bytes:
                on_bytes(out.nbytes, out.name)
    run = _Run(plan, work, todo, on_bytes)
    run.go(workers)
    return Copied(hashes | run.hashes, sum(out.nbytes for out in todo), run.read, tuple(resumed))


class _Run:
    """The state that the workers share; everything under one lock, held for microseconds."""

    def __init__(
        self, plan: Plan, work: Path, files: list[OutFile], on_bytes: Callable[[int, str], None] | None
    ) -> None:
        self.hashes: dict[str, str] = {}
        self.read = 0
        self._plan, self._work, self._files, self._on_bytes = plan, work, files, on_bytes
        self._lock = threading.Lock()
        self._targets: dict[int, _Target] = {}
        self._large = _moved(plan) > _memory() // 2

    def go(self, workers: int) -> None:
        try:
            for_each(self._all_tiles(), self._open_worker, workers)
        finally:
            for target in self._targets.values():
                target.file.close()

    def _all_tiles(self) -> Iterator[tuple[_Tile, _Target]]:
        for number, out in enumerate(self._files):
            target = self._targets[number] = self._create(out)
            tiles = []
            for key in out.offsets:
                output = self._plan.outputs[key]
                step = HASH_BLOCK // itemsize(output.dtype)
                numel = output.nbytes // itemsize(output.dtype)
                lows = range(0, numel, step) if numel else range(1)
                target.digests[key] = [b""] * len(lows)
                tiles += [
                    _Tile(number, key, output, low, min(low + step, numel), i) for i, low in enumerate(lows)
                ]
            target.left = len(tiles)
            if not tiles:
                self._finish(number, target)
            for tile in tiles:
                yield tile, target

    def _create(self, out: OutFile) -> _Target:
        path = self._work / f"{out.name}.part"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return _Target(out, OutputFile(path, out.header, out.nbytes))
        except OSError as error:
            raise cannot_write(path, error) from error

    @contextmanager
    def _open_worker(self) -> Iterator[Callable[[tuple[_Tile, _Target]], None]]:
        """One thread's buffers and open files; what it yields writes a tile."""
        blocks: dict[str, Block] = {}
        buffer, scratch = block_buffer(HASH_BLOCK), np.empty(_STORED, np.uint8)
        with Reader(drop_behind=self._large) as reader:

            def write(item: tuple[_Tile, _Target]) -> None:
                tile, target = item
                if tile.key not in blocks:
                    blocks.clear()  # a block's tables are only needed while its tensor is written
                    blocks[tile.key] = Block(tile.output.source, tile.output.dtype)
                item_size = itemsize(tile.output.dtype)
                offset = target.out.offsets[tile.key] + tile.low * item_size
                out = in_place(buffer, offset, (tile.high - tile.low) * item_size)
                try:
                    blocks[tile.key].fill(reader, tile.low, tile.high, out, scratch)
                except CkptconvError as error:
                    error.where = error.where or tile.key
                    raise
                self._put(tile, target, out, offset)

            yield write
            with self._lock:
                self.read += reader.nbytes

    def _put(self, tile: _Tile, target: _Target, data: Array, offset: int) -> None:
        digest = xxhash.xxh3_128_digest(data)
        try:
            target.file.write(data, offset)
        except OSError as error:
            raise cannot_write(target.file.path, error) from error
        with self._lock:
            target.digests[tile.key][tile.number] = digest
            target.left -= 1
            last = target.left == 0
            if self._on_bytes:
                self._on_bytes(data.nbytes, target.out.name)
        if last:
            self._finish(tile.file, target)

    def _finish(self, number: int, target: _Target) -> None:
        hashes = {key: combine(digests) for key, digests in target.digests.items()}
        final = self._work / target.out.name
        try:
            target.file.finish()
            del self._targets[number]
            record = _record(self._work, target.out.name)
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps({"nbytes": target.out.nbytes, "hashes": hashes}))
            os.replace(target.file.path, final)
        except OSError as error:
            raise cannot_write(target.file.path, error) from error
        self.hashes.update(hashes)


def _moved(plan: Plan) -> int:
    """Bytes that pass through the page cache: read and written."""
    return plan.nbytes + sum(
        view.nbytes for output in plan.outputs.values() for view in views_of(output.source)
    )


def _memory() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def combine(digests: list[bytes]) -> str:
    """A tensor's hash from its blocks' digests: the digest itself, or the digest of all of them in order."""
    return digests[0].hex() if len(digests) == 1 else xxhash.xxh3_128_hexdigest(b"".join(digests))


def _record(work: Path, name: str) -> Path:
    """Where it is noted that a file is finished: beside the work folder, which holds the model and nothing else."""
    return work.with_name(f"{work.name}.done") / f"{name}.json"


def hand_over(own: Path, work: Path, out: OutFile) -> None:
    """Move a finished file and its note from one work folder into another, which is on the same disk and still there."""
    record, final = _record(work, out.name), work / out.name
    try:
        for folder in (work.with_name(f"{work.name}.done"), record.parent, final.parent):
            folder.mkdir(exist_ok=True)
        os.replace(_record(own, out.name), record)
        os.replace(own / out.name, final)
    except OSError as error:
        raise cannot_write(final, error) from error


def finished(work: Path, out: OutFile) -> dict[str, str] | None:
    """The hashes of a file that an earlier run of the same plan finished, else None."""
    path = work / out.name
    record = _record(work, out.name)
    if not (path.is_file() and record.is_file() and path.stat().st_size == out.nbytes):
        return None
    try:
        data = json.loads(record.read_text())
        with open(path, "rb") as file:
            same = file.read(len(out.header)) == out.header
        hashes: dict[str, str] = data["hashes"]
    except (OSError, ValueError, KeyError):
        return None
    return hashes if same else None
