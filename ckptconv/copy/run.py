"""Runs a plan on a few threads with fixed buffers. Each file gets its header first, and every byte is written once.

A file is written in blocks. Each worker takes the next block, reads its sources, casts in pieces that stay in a core's
cache, hashes the block and writes it at its offset. After the last block of a file, the file is fsynced and renamed inside
the work folder; a later run finds it and does not write it again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ckptconv.compute.tiles import Filler, Tile, tiles_of
from ckptconv.copy.finished import Finished, Nonfinite, note, take_over
from ckptconv.copy.hashing import HASH_BLOCK, combine
from ckptconv.copy.nonfinite import Gathered, digest_and_look
from ckptconv.copy.output_file import PAGE, OutputFile, block_buffer, in_place
from ckptconv.errors import CkptconvError, Kind, cannot_write
from ckptconv.plan import Output, Plan
from ckptconv.plan.shards import OutFile
from ckptconv.read.ahead import Read, read_ahead, reads_of
from ckptconv.read.reader import SCRATCH, Array, Prepared, Reader, prepare
from ckptconv.read.workers import count, for_each
from ckptconv.tensors.dtypes import itemsize

_STORED = 2 * HASH_BLOCK  # the float32 master weights of a bfloat16 block
_PER_WORKER = HASH_BLOCK + PAGE + SCRATCH + _STORED


class _Task(NamedTuple):
    """One tile of one tensor, and the number of the file to write it to. Each tile has its own digest."""

    file: int
    key: str
    output: Output
    tile: Tile


@dataclass(slots=True)
class _Target:
    """An output file while it is written. `left` counts the tiles that are still to be written."""

    out: OutFile
    file: OutputFile
    left: int = 0
    digests: dict[str, list[bytes]] = field(default_factory=dict)
    nonfinite: dict[str, Gathered] = field(default_factory=dict)


class Copied(NamedTuple):
    """The result of a copy.

    Args:
        hashes: tensor name -> hash.
        written: bytes of the files that this run wrote.
        read: bytes of the elements that it read.
        resumed: files of an earlier run that were kept.
        damaged: files of an earlier run that no longer had the bytes that it wrote, and were written again.
        nonfinite: the tensors that hold NaN or Inf.
    """

    hashes: dict[str, str]
    written: int
    read: int
    resumed: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    nonfinite: tuple[Nonfinite, ...] = ()


def buffer_memory(workers: int) -> int:
    """Bytes of the buffers of `workers` threads."""
    return workers * _PER_WORKER


def workers_for(max_memory: int, wanted: int | None = None) -> int:
    """The number of workers to use.

    Args:
        max_memory: the limit for the buffers of all workers, in bytes.
        wanted: the user's choice; None for one per core and one more.

    Raises:
        CkptconvError: the buffers of one worker exceed the limit.
    """
    fit = max(max_memory // _PER_WORKER, 0)
    if not fit:
        raise CkptconvError(
            "--max-memory is too small for one worker's buffers",
            found=f"{max_memory:,} bytes",
            wanted=f"at least {_PER_WORKER:,}",
            hint="raise --max-memory",
            kind=Kind.USAGE,
        )
    return min(count(wanted), fit)


def copy(
    plan: Plan,
    work: Path,
    workers: int,
    on_bytes: Callable[[int, str], None] | None = None,
    ahead: int = 0,
) -> Copied:
    """Write every file of the plan. KeyboardInterrupt passes through after the workers have stopped.

    Args:
        plan: the plan.
        work: the folder to write to.
        workers: threads.
        on_bytes: on_bytes(bytes written, file name) is called after every block, from any thread.
        ahead: bytes of memory for what is fetched from stores before it is read; 0 if every file is on a disk.

    Raises:
        CkptconvError: the disk is full or cannot be written, or a source cannot be read or ends too early.
    """
    earlier = take_over(plan, work, workers)
    if on_bytes:
        for out in plan.files:
            if out.name in earlier.kept:
                on_bytes(out.nbytes, out.name)
    run = _Run(plan, work, earlier.missing, on_bytes)
    run.go(workers, ahead)
    done = {**earlier.kept, **run.finished}
    return Copied(
        {key: digest for each in done.values() for key, digest in each.hashes.items()},
        sum(out.nbytes for out in earlier.missing),
        run.read,
        tuple(earlier.kept),
        earlier.damaged,
        tuple(item for out in plan.files for item in done[out.name].nonfinite),
    )


class _Run:
    """The state that the workers share. They change it under one lock, which they hold for microseconds."""

    def __init__(
        self, plan: Plan, work: Path, files: Sequence[OutFile], on_bytes: Callable[[int, str], None] | None
    ) -> None:
        self.finished: dict[str, Finished] = {}
        self.read = 0
        self._plan, self._work, self._files, self._on_bytes = plan, work, files, on_bytes
        self._lock = threading.Lock()
        self._targets: dict[int, _Target] = {}
        self._large = _moved(plan) > _memory() // 2

    def go(self, workers: int, ahead: int) -> None:
        """Write all files with this number of threads, and so many bytes of memory to read ahead."""
        tasks = self._all_tasks()
        try:
            for_each(
                read_ahead(tasks, _Foreseen().reads, ahead) if ahead else tasks, self._open_worker, workers
            )
        finally:
            for target in self._targets.values():
                target.file.close()

    def _all_tasks(self) -> Iterator[tuple[_Task, _Target]]:
        for number, out in enumerate(self._files):
            target = self._targets[number] = self._create(out)
            tasks = []
            for key in out.offsets:
                output = self._plan.outputs[key]
                numel = output.nbytes // itemsize(output.dtype)
                tiles = list(tiles_of(numel, output.dtype, HASH_BLOCK))
                target.digests[key] = [b""] * len(tiles)
                tasks += [_Task(number, key, output, tile) for tile in tiles]
            target.left = len(tasks)
            if not tasks:
                self._finish(number, target)
            for task in tasks:
                yield task, target

    def _create(self, out: OutFile) -> _Target:
        path = self._work / f"{out.name}.part"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return _Target(out, OutputFile(path, out.header, out.nbytes))
        except OSError as error:
            raise cannot_write(path, error) from error

    @contextmanager
    def _open_worker(self) -> Iterator[Callable[[tuple[_Task, _Target]], None]]:
        """Hold the buffers and open files of one thread; yields the function that writes a tile."""
        buffer = block_buffer(HASH_BLOCK)
        with Reader(drop_behind=self._large) as reader:
            filler = Filler(reader, np.empty(_STORED, np.uint8))

            def write(item: tuple[_Task, _Target]) -> None:
                (_, key, output, (_, low, high)), target = item
                item_size = itemsize(output.dtype)
                offset = target.out.offsets[key] + low * item_size
                out = in_place(buffer, offset, (high - low) * item_size)
                try:
                    filler.fill(output.source, output.dtype, low, high, out)
                except CkptconvError as error:
                    raise error.within(where=key) from error
                self._put(item[0], target, out, offset)

            yield write
            with self._lock:
                self.read += reader.nbytes

    def _put(self, task: _Task, target: _Target, data: Array, offset: int) -> None:
        digest, strange = digest_and_look(data, task.output.dtype)
        try:
            target.file.write(data, offset)
        except OSError as error:
            raise cannot_write(target.file.path, error) from error
        with self._lock:
            if strange:
                gathered = target.nonfinite.setdefault(task.key, Gathered(task.key, task.output))
                gathered.add(data, task.tile.low)
            target.digests[task.key][task.tile.number] = digest
            target.left -= 1
            last = target.left == 0
            if self._on_bytes:
                header = len(target.out.header) if last else 0
                self._on_bytes(data.nbytes + header, target.out.name)
        if last:
            self._finish(task.file, target)

    def _finish(self, number: int, target: _Target) -> None:
        """Complete a file. The thread that wrote its last tile calls this, and its fsync may take a second."""
        hashes = {key: combine(digests) for key, digests in target.digests.items()}
        finished = Finished(hashes, tuple(gathered.record() for gathered in target.nonfinite.values()))
        try:
            target.file.finish()
            with self._lock:
                del self._targets[number]
            note(self._work, target.out, finished)
            os.replace(target.file.path, self._work / target.out.name)
        except OSError as error:
            raise cannot_write(target.file.path, error) from error
        with self._lock:
            self.finished[target.out.name] = finished


class _Foreseen:
    """What tasks will read from stores. The views of one tensor are prepared once."""

    def __init__(self) -> None:
        self._key = ""
        self._views: list[tuple[int, Prepared]] = []

    def reads(self, item: tuple[_Task, _Target]) -> Iterator[Read]:
        """The stored elements of a tile, and with a tensor's first tile all of the small views that its others share."""
        (_, key, output, tile), _ = item
        if key != self._key:
            self._key = key
            self._views = [(view.numel, prepare(view)) for view in output.source.views if view.numel]
        numel = output.nbytes // itemsize(output.dtype)
        for elements, prepared in self._views:
            if elements == numel:
                yield from reads_of(prepared, tile.low, tile.high)
            elif not tile.number and elements * prepared.item <= _STORED:
                yield from reads_of(prepared, 0, elements)


def _moved(plan: Plan) -> int:
    """The bytes that the plan reads and writes, all through the page cache."""
    return plan.nbytes + sum(view.nbytes for output in plan.outputs.values() for view in output.source.views)


def _memory() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
