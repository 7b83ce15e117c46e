"""How reading from a store grows with size, latency and the number of objects: sparse rank files, one server, small runs.

    python -m benchmarks.remote_curves --out .cache/bench/curves

The checkpoints are those of `benchmarks.scale_writers` (holes for data, which the server sends as zeros), and the server is
`benchmarks.store_server`. What is printed are the tables of remote.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import Cost, run
from benchmarks.remote import requests_of, server

SIZES = (30, 100, 300)  # tensors on 4 ranks
LATENCIES = (0.0, 0.005, 0.02, 0.05)  # seconds before each answer
RANKS = (4, 16, 64, 256)  # of 30 tensors
COMMAND = (sys.executable, "-m", "ckptconv")


def _made(out: Path, tensors: int, ranks: int) -> Path:
    """The bucket of a checkpoint, which is written unless it is there."""
    bucket = out / f"t{tensors}-r{ranks}"
    if not (bucket / "done").exists():
        shutil.rmtree(bucket, ignore_errors=True)
        words = ["fsdp", str(tensors), str(ranks), str(bucket / "run")]
        subprocess.run([sys.executable, "-m", "benchmarks.scale_writers", *words], check=True)
        (bucket / "done").touch()
    return bucket


@contextmanager
def _store(out: Path, latency: float) -> Iterator[str]:
    with server(out.resolve(), latency) as url:
        os.environ["AWS_ENDPOINT_URL"] = url
        yield url


def _asked(url: str, words: Sequence[str], log: Path) -> tuple[Cost, Counter[str]]:
    """The cost of a command, and what it asked the server."""
    before = requests_of(url)
    cost = run(list(words), log)
    return cost, requests_of(url) - before


def _ranges(asked: Counter[str]) -> tuple[int, int]:
    """The requests in all, and the most of one rank file."""
    return sum(asked.values()), max((n for what, n in asked.items() if what.endswith(".pt")), default=0)


def sizes(out: Path, rounds: int) -> None:
    """Merges of growing checkpoints, beside those of the same folders on the disk."""
    print("| checkpoint | merge s3:// s | MB/s | CPU s | peak MiB | requests | merge of the folder s |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for tensors in SIZES:
        bucket, model = _made(out, tensors, 4), out / "model"
        nbytes = sum(path.stat().st_size for path in bucket.rglob("*.pt"))
        with _store(out, 0.0) as url:
            far: list[tuple[Cost, Counter[str]]] = []
            near: list[Cost] = []
            for _ in range(rounds):
                words = [str(model), "--overwrite", "-q"]
                far.append(_asked(url, [*COMMAND, "merge", f"s3://{bucket.name}/run", *words], out / "log"))
                near.append(run([*COMMAND, "merge", str(bucket / "run"), *words], out / "log"))
        cost, asked = min(far, key=lambda pair: pair[0].wall)
        print(
            f"| {nbytes / 1e6:,.0f} MB | {cost.wall:.2f} | {nbytes / 1e6 / cost.wall:,.0f} | {cost.cpu:.2f} | "
            f"{cost.peak / 2**20:.0f} | {_ranges(asked)[0]} | {min(one.wall for one in near):.2f} |"
        )
        shutil.rmtree(model, ignore_errors=True)


def latencies(out: Path, rounds: int) -> None:
    """The same two commands with a growing wait before each answer."""
    bucket, model = _made(out, 100, 4), out / "model"
    print("\n| latency ms | inspect s | merge s |\n|---:|---:|---:|")
    for latency in LATENCIES:
        with _store(out, latency) as url:
            address = f"s3://{bucket.name}/run"
            words = [*COMMAND, "merge", address, str(model), "--overwrite", "-q"]
            looks = [
                _asked(url, [*COMMAND, "inspect", address, "--json"], out / "log") for _ in range(rounds)
            ]
            merges = [_asked(url, words, out / "log") for _ in range(rounds)]
        walls = (min(cost.wall for cost, _ in each) for each in (looks, merges))
        print(f"| {latency * 1000:.0f} | " + " | ".join(f"{wall:.2f}" for wall in walls) + " |")
    shutil.rmtree(model, ignore_errors=True)


def objects(out: Path, rounds: int) -> None:
    """inspect of growing numbers of rank files, with 5 ms before each answer."""
    print("\n| rank files | inspect s | CPU s | requests | most of one file |\n|---:|---:|---:|---:|---:|")
    for ranks in RANKS:
        bucket = _made(out, 30, ranks)
        with _store(out, 0.005) as url:
            words = [*COMMAND, "inspect", f"s3://{bucket.name}/run", "--json"]
            found = [_asked(url, words, out / "log") for _ in range(rounds)]
        cost, asked = min(found, key=lambda pair: pair[0].wall)
        total, most = _ranges(asked)
        print(f"| {ranks} | {cost.wall:.2f} | {cost.cpu:.2f} | {total} | {most} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(".cache/bench/curves"))
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.update(
        AWS_ALLOW_HTTP="true", AWS_REGION="us-east-1", AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret"
    )
    for curve in (sizes, latencies, objects):
        curve(args.out, args.rounds)


if __name__ == "__main__":
    main()
