"""What gathering costs: the same bytes cut by rows, by columns, both ways, flat or transposed; from the page cache.

.venv/bin/python -m benchmarks.columns --out DIR [--mb 256] [--rounds 5] [--only WORD] [--check]

Every case fills blocks of 4 MiB with one thread, as a merge does before it hashes and writes. GB of input per CPU second,
the best of the rounds, all cases in turns. Ratios are to rows (Shard(0) over eight ranks) of the same dtypes; beside each is
the ratio of a whole block's CPU time, with its hash and its write through the page cache. --check compares values instead.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash

from ckptconv.compute.block import Block
from ckptconv.read.reader import Reader, raw_dtype
from ckptconv.tensors.dtypes import itemsize, to_numpy
from ckptconv.tensors.view import View, cat, narrow, permute, place, split, stack, stored, unflatten

BLOCK = 4 << 20
SCRATCH = 8 << 20
RANKS = 8


class Disk:
    """One file in the page cache, in which every rank's shard has a place of its own, 64 bytes from a page."""

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path, self._end, self._next = path, nbytes, 0
        random = np.random.default_rng(0)
        with path.open("wb") as file:  # floats of every sign between -1 and 1
            for _ in range(-(-nbytes // (16 << 20))):
                file.write((random.random(4 << 20, np.float32) * 2 - 1).tobytes())

    def put(self, shape: tuple[int, ...], dtype: str) -> View:
        """A stored tensor; at the end of the file it begins again."""
        nbytes = int(np.prod(shape)) * itemsize(dtype)
        if self._next + nbytes + 64 > self._end:
            self._next = 0
        start = self._next + 64
        self._next = -(-(start + nbytes) // 4096) * 4096
        return stored(str(self.path), start, shape, dtype)


Case = Callable[[Disk, int, str], View]  # where, elements (about), dtype -> the view


def mesh(rows: int, columns: int) -> Case:
    """Shard(0) over so many ranks, and Shard(1) over so many."""

    def case(disk: Disk, numel: int, dtype: str) -> View:
        shape = (numel // 4160 // 128 * 128, 4160)
        each = (shape[0] // rows, shape[1] // columns)
        ranks = [(i, j) for i in range(rows) for j in range(columns)]
        return place(shape, dtype, [((i * each[0], j * each[1]), disk.put(each, dtype)) for i, j in ranks])

    return case


def strided(disk: Disk, numel: int, dtype: str) -> View:
    """FSDP over TP on one dim: a rank holds a strip of each TP rank's rows."""
    view = mesh(RANKS, 1)(disk, numel, dtype)
    return permute(unflatten(view, 0, (RANKS, 2, view.shape[0] // RANKS // 2)), (1, 0, 2, 3))


def glu(disk: Disk, numel: int, dtype: str) -> View:
    """Gate and up in turns on every TP rank; all gates first, then all ups."""
    view = mesh(RANKS, 1)(disk, numel, dtype)
    return cat(split(unflatten(view, 0, (RANKS, 2, view.shape[0] // RANKS // 2)), 1, (1, 1)), 0)


def qkv(disk: Disk, numel: int, dtype: str) -> View:
    """The queries of Megatron's query groups: of ten heads of 64 the first eight."""
    view = mesh(RANKS, 1)(disk, numel * 10 // 8, dtype)
    rows = view.shape[0] // 640
    return narrow(unflatten(narrow(view, 0, 0, rows * 640), 0, (rows, 10, 64)), 1, 0, 8)


def flat(disk: Disk, numel: int, dtype: str) -> View:
    """A flat parameter with rows of 301, cut over the ranks in mid-row (FSDP1, DeepSpeed)."""
    width, rows = 301, numel // 301
    cuts = [rows * width * rank // RANKS + 7 * (0 < rank < RANKS) for rank in range(RANKS + 1)]
    parts = [disk.put((cuts[rank + 1] - cuts[rank],), dtype) for rank in range(RANKS)]
    return unflatten(cat(parts, 0), 0, (rows, width))


def short_runs(disk: Disk, numel: int, dtype: str) -> View:
    """2,048 elements of a rank, and then 2,048 of the next."""
    parts = [disk.put((numel // RANKS // 2048, 2048), dtype) for _ in range(RANKS)]
    return permute(stack(parts, 0), (1, 0, 2))


def experts(rows: int, columns: int, ranks: int = 1) -> Case:
    """Experts stored as (rows, columns), the rows cut over `ranks`; published as (columns, rows)."""

    def case(disk: Disk, numel: int, dtype: str) -> View:
        return stack(
            [
                permute(cat([disk.put((rows // ranks, columns), dtype) for _ in range(ranks)], 0), (1, 0))
                for _ in range(max(numel // rows // columns, 1))
            ],
            0,
        )

    return case


def interleaved(disk: Disk, numel: int, dtype: str) -> View:
    """GPT-OSS: gate and up in turns along the last dim, from halves that are stored one after the other."""
    return permute(unflatten(experts(5760, 2880)(disk, numel, dtype), 2, (2, 2880)), (0, 1, 3, 2))


ROWS = "rows, Shard(0) × 8"
CASES: dict[str, Case] = {
    ROWS: mesh(8, 1),
    "columns, Shard(1) × 2": mesh(1, 2),
    "columns, Shard(1) × 4": mesh(1, 4),
    "columns, Shard(1) × 8": mesh(1, 8),
    "columns, Shard(1) × 64": mesh(1, 64),
    "FSDP 4 × TP 2 columns": mesh(4, 2),
    "FSDP 8 × TP 8 columns": mesh(8, 8),
    "strided shards": strided,
    "GLU halves": glu,
    "QKV groups": qkv,
    "flat, cut in mid-row": flat,
    "runs of 2,048": short_runs,
    "experts 3072 × 4096": experts(3072, 4096),
    "experts 4096 × 1536": experts(4096, 1536),
    "experts 5760 × 2880": experts(5760, 2880),
    "experts 16384 × 5120": experts(16384, 5120),
    "experts 3072 × 4096, TP 4": experts(3072, 4096, 4),
    "experts interleaved": interleaved,
}
DTYPES = (("bfloat16", "bfloat16"), ("float32", "float32"), ("float32", "bfloat16"))


class Bench:
    """One worker's buffers, and a file that is written again and again."""

    def __init__(self, folder: Path) -> None:
        self._out, self._scratch = np.empty(BLOCK, np.uint8), np.empty(SCRATCH, np.uint8)
        self._reader, self._target = Reader(), folder / "out"
        self._handle = os.open(self._target, os.O_RDWR | os.O_CREAT)

    def blocks(self, view: View, dtype: str, done: Callable[[np.ndarray, int], None]) -> None:
        """Fill every block of a view, and hand it with its place in bytes to `done`."""
        block, item = Block(view, dtype), itemsize(dtype)
        for low in range(0, view.numel, BLOCK // item):
            high = min(low + BLOCK // item, view.numel)
            part = self._out[: (high - low) * item]
            block.fill(self._reader, low, high, part, self._scratch)
            done(part, low * item)

    def fill(self, view: View, dtype: str) -> float:
        """CPU seconds of reading, gathering and casting."""
        begun = time.process_time()
        self.blocks(view, dtype, lambda part, at: None)
        return time.process_time() - begun

    def whole(self, view: View, dtype: str) -> float:
        """The same with a hash and a write."""

        def done(part: np.ndarray, at: int) -> None:
            xxhash.xxh3_128_digest(part)
            for n in range(0, len(part), 1 << 20):
                os.pwrite(self._handle, part[n : n + (1 << 20)], at + n)

        os.ftruncate(self._handle, 0)
        begun = time.process_time()
        self.blocks(view, dtype, done)
        return time.process_time() - begun

    def check(self, view: View, dtype: str) -> float:
        """Every block holds what a mapping of the file shows."""
        wanted = np.zeros(view.shape, raw_dtype(view.dtype))
        for c in view.chunks:
            where = tuple(slice(o, o + n) for o, n in zip(c.offsets, c.sizes, strict=True))
            mapped = np.memmap(c.file, np.uint8, "r")
            wanted[where] = np.ndarray(c.sizes, wanted.dtype, mapped, c.start, c.strides)
        with np.errstate(all="ignore"):
            cast = wanted.reshape(-1).view(to_numpy(view.dtype)).astype(to_numpy(dtype)).view(np.uint8)

        def done(part: np.ndarray, at: int) -> None:
            assert np.array_equal(part, cast[at : at + len(part)])

        self.blocks(view, dtype, done)
        return 1.0

    def close(self) -> None:
        self._reader.__exit__()
        os.close(self._handle)
        self._target.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mb", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    nbytes = args.mb << 20
    disk, bench = Disk(args.out / "in", max(2 * nbytes, 512 << 20)), Bench(args.out)
    try:
        views = {
            (name, pair): case(disk, nbytes // itemsize(pair[0]), pair[0])
            for pair in DTYPES
            for name, case in CASES.items()
            if args.only in name or name == ROWS
        }
        best: dict[tuple[str, tuple[str, str]], tuple[float, float]] = {}
        for _ in range(args.rounds):
            for key, view in views.items():
                for which, measure in enumerate((bench.check,) if args.check else (bench.fill, bench.whole)):
                    seconds = measure(view, key[1][1]) / view.nbytes
                    old = best.setdefault(key, (9.0, 9.0))
                    best[key] = (
                        (min(old[0], seconds), old[1]) if not which else (old[0], min(old[1], seconds))
                    )
    finally:
        bench.close()
        disk.path.unlink()
    head = " | ".join(f"{a} → {b}, GB/s | × rows | with hash, write" for a, b in DTYPES)
    print(f"| case | {head} |\n|---|" + "---:|---:|---:|" * len(DTYPES))
    for name in dict.fromkeys(key[0] for key in best):
        cells = []
        for pair in DTYPES:
            (alone, whole), (rows, whole_rows) = best[name, pair], best[ROWS, pair]
            cells.append(f"{1e-9 / alone:.2f} | {alone / rows:.2f} | {whole / whole_rows:.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
