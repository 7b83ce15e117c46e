"""`make bench`: every contender on the same checkpoint, in turns, in fresh processes, in one run."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import compare, measure, report, startup
from benchmarks.contenders import Contender, contenders
from benchmarks.make_checkpoint import REPOSITORY, ensure, ensure_zero
from benchmarks.peer_env import python_of
from benchmarks.sizes import SIZES, WORLD

RESULTS = REPOSITORY / "benchmarks" / "results"
README = REPOSITORY / "benchmarks" / "README.md"
_PAIRS = (
    ("ckptconv", "verl"),
    ("ckptconv-fp32", "accelerate"),
    ("ckptconv-dcp", "accelerate"),
    ("ckptconv-zero", "zero"),
)  # who must write the same tensors


def turn(one: Contender, scratch: Path, keep_digests: bool) -> tuple[dict[str, Any], compare.Digests | None]:
    """One timed run: settled disk, warm inputs, the process, a look at what it wrote, and away with it."""
    _remove(one.output)
    measure.settle()
    resident = measure.warm(one.inputs) if one.inputs else None
    cost = measure.run(one.command, scratch / f"{one.key}.log")
    try:
        if one.output is not None and _written(one.output) < one.nbytes:
            raise SystemExit(f"{one.label} wrote {_written(one.output):,} bytes, not {one.nbytes:,}")
        found = compare.digests(one.output) if keep_digests and one.output is not None else None
    finally:
        _remove(one.output)
    return asdict(cost) | {"warm": resident}, found


def _remove(output: Path | None) -> None:
    if output is not None and output.is_dir():
        shutil.rmtree(output)
    elif output is not None:
        output.unlink(missing_ok=True)


def _written(output: Path) -> int:
    files = output.rglob("*") if output.is_dir() else [output]
    return sum(path.stat().st_size for path in files if path.is_file())


def rounds(everyone: list[Contender], count: int, scratch: Path, quiet: bool = False) -> dict[str, Any]:
    """Runs of every contender, in turns and every second round backwards; and which pairs wrote the same."""
    runs: dict[str, list[dict[str, Any]]] = {one.key: [] for one in everyone}
    digests: dict[str, compare.Digests] = {}
    compared = {key for pair in _PAIRS for key in pair}
    for number in range(count):
        for one in everyone[:: 1 if number % 2 == 0 else -1]:
            cost, found = turn(one, scratch, keep_digests=number == 0 and one.key in compared)
            runs[one.key].append(cost)
            if found is not None:
                digests[one.key] = found
            if not quiet:
                wall, peak = cost["wall"], cost["peak"] / 2**20
                print(f"round {number + 1}  {one.label:30} {wall:8.2f} s {peak:8,.0f} MiB", file=sys.stderr)
    labels = {one.key: one.label for one in everyone}
    pairs = [(a, b) for a, b in _PAIRS if a in digests and b in digests]
    agree = {f"{labels[a]} and {labels[b]}": digests[a] == digests[b] for a, b in pairs}
    return {"runs": runs, "agree": agree}


def _entry(one: Contender, runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"key": one.key, "label": one.label, "dtype": one.dtype, "is_floor": one.is_floor, "runs": runs}


def machine() -> dict[str, Any]:
    """What the numbers were taken on; no names or paths."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    packages = ("torch", "transformers", "accelerate", "numpy")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=REPOSITORY / ".cache" / "bench", help="folder to work in")
    parser.add_argument("--size", choices=sorted(SIZES), default="0.5b")
    parser.add_argument("--rounds", type=int, help="default: 3 for 0.5b, 2 for 3b")
    parser.add_argument("--only", help="keys of contenders, with commas; nothing is recorded then")
    parser.add_argument("--no-install", action="store_true", help="leave peers out that are not there")
    args = parser.parse_args()
    size, out = SIZES[args.size], args.out.resolve()
    count = args.rounds or size.rounds
    scratch = out / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    verl, deepspeed = (python_of(peer, out, install=not args.no_install) for peer in ("verl", "deepspeed"))
    checkpoint, tiny = ensure(size, out), ensure(SIZES["tiny"], out)
    if size.parameters > 1e9:
        deepspeed = None  # the job that writes its checkpoint holds the model several times
    if deepspeed:
        ensure_zero(size, checkpoint, deepspeed)
        ensure_zero(SIZES["tiny"], tiny, deepspeed)

    everyone = contenders(size, checkpoint, scratch, verl, deepspeed)
    wanted = args.only.split(",") if args.only else [one.key for one in everyone]
    everyone = [one for one in everyone if one.key in wanted]
    rehearsal = contenders(SIZES["tiny"], tiny, scratch, verl, deepspeed)
    rehearsal = [one for one in rehearsal if one.key in wanted and not one.is_floor]
    rounds(rehearsal, 1, scratch, quiet=True)  # every tool's code is warm before anything counts
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    first = [] if args.only else startup.times(checkpoint, scratch / "startup.log")
    found = rounds(everyone, count, scratch)
    shares = [run["warm"] for runs in found["runs"].values() for run in runs if run["warm"] is not None]
    result = {
        "date": date,
        "size": size.name,
        "world": WORLD,
        "rounds": count,
        "bytes_in": sum(path.stat().st_size for path in checkpoint.rank_files()),
        "machine": machine(),
        "warm": min(shares, default=None),
        "agree": found["agree"],
        "contenders": [_entry(one, found["runs"][one.key]) for one in everyone],
        "startup": first,
    }
    report.show(result)
    if not all(result["agree"].values()):
        raise SystemExit("the tools do not write the same tensors")
    if not args.only and size.name != "tiny":
        RESULTS.mkdir(exist_ok=True)
        stem = date.replace(" UTC", "").replace(" ", "T").replace(":", "")
        (RESULTS / f"{stem}-{size.name}.json").write_text(json.dumps(result, indent=1) + "\n")
        report.update_readme(README, RESULTS)


if __name__ == "__main__":
    main()
