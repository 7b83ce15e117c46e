"""How long the algebra and the ledger take for the chunks of a large mixture of experts; prints, asserts nothing.

python -m benchmarks.algebra [--chunks 150000]
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from math import isqrt
from time import perf_counter
from typing import TypeVar

from ckptconv.plan.ledger import check_balance
from ckptconv.tensors.view import View, cat, check_tiling, narrow, permute, place, split, stored, unflatten

T = TypeVar("T")
FILES = 64


def timed(label: str, do: Callable[[], T], repeats: int = 3) -> T:
    """Run it a few times and print the best."""
    best = float("inf")
    for _ in range(repeats):
        gc.collect()
        start = perf_counter()
        found = do()
        best = min(best, perf_counter() - start)
    print(f"{label:58} {best:7.2f} s")
    return found


def leaves(count: int) -> list[View]:
    """Tensors of 2 x 3 x 8 floats, one after another in each of 64 files."""
    return [stored(f"rank_{i % FILES}.pt", i // FILES * 192, (2, 3, 8), "float32") for i in range(count)]


def moved(views: list[View]) -> View:
    """All leaves through four moves: joined along dim 0, its dims turned, the joined one cut in two, one narrowed."""
    turned = permute(cat(views, 0), (0, 2, 1))
    return narrow(unflatten(turned, 0, (len(views) // 50, 100)), 2, 0, 7)


def grid(side: int) -> View:
    """A matrix from side x side boxes, as a mesh of two cutting dims gives it."""
    parts = (
        ((row * 2, column * 3), stored("one.pt", (row * side + column) * 24, (2, 3), "float32"))
        for row in range(side)
        for column in range(side)
    )
    return place((side * 2, side * 3), "float32", parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=150_000)
    count = parser.parse_args().chunks // 50 * 50
    views = leaves(count)
    print(f"{count:,} chunks; best of three")
    view = timed("cat, permute, unflatten, narrow", lambda: moved(views))
    timed("check_tiling of what that gives", lambda: check_tiling(view.shape, view.chunks))
    timed(f"place: a grid of {isqrt(count)} x {isqrt(count)}", lambda: grid(isqrt(count)), repeats=1)
    halves = [half for one in views for half in split(one, 2, (3, 5))]
    timed("check_balance, nothing cut", lambda: check_balance(views, views, []))
    timed("check_balance, every chunk cut in two", lambda: check_balance(views, halves, []))


if __name__ == "__main__":
    main()
