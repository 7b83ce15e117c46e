"""How long the plan of a very large Megatron checkpoint takes, and how much memory: the shapes of DeepSeek-V3 and others.

The checkpoint is real in form (write_megatron_scale.py); only its weights are holes in sparse files, so 1.3 TB need half
a gigabyte of disk.

    python -m benchmarks.megatron_scale [--shape kimi-k2] [--optimizer] [--out DIR]
    python -m benchmarks.megatron_scale --turns deepseek-v3 glm-5 kimi-k2.5     # in turns, CPU seconds against the first
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks import measure
from benchmarks.make_checkpoint import REPOSITORY
from benchmarks.megatron_shapes import SHAPES

# `ckptconv`, on a machine whose disk has room for what would be written.
ROOMY = """
import shutil
from ckptconv.__main__ import main
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(1 << 50, 0, 1 << 50)
main()
"""


def ensure(shape: str, optimizer: bool, out: Path) -> Path:
    """The run's folder; made once, by another process: this one must stay small to be a fair parent."""
    run = out / (shape + ("-optimizer" if optimizer else ""))
    if not (run / "made.json").is_file():
        shutil.rmtree(run, ignore_errors=True)
        writer = (sys.executable, "-m", "benchmarks.write_megatron_scale", shape, str(run))
        subprocess.run((*writer, "--optimizer") if optimizer else writer, check=True)
    return run


def in_turns(shapes: list[str], out: Path, runs: int) -> None:
    """Plan the shapes one after the other, several rounds, and print the least CPU seconds of each."""
    made = [ensure(shape, False, out) for shape in shapes]
    cpu: dict[str, list[float]] = {run.name: [] for run in made}
    for _ in range(runs):
        for run in made:
            command = (sys.executable, "-c", ROOMY, "merge", str(run), str(run / "model"), "--dry-run")
            cpu[run.name].append(measure.run(command, run / "log").cpu)
    first = min(cpu[made[0].name])
    print("| shape | tensors | chunks | CPU s | ratio | ratio per chunk |")
    print("|---|---:|---:|---:|---:|---:|")
    each = 0.0
    for run in made:
        count, least = json.loads((run / "made.json").read_text()), min(cpu[run.name])
        each = each or least / count["chunks"]
        print(
            f"| {run.name} | {count['tensors']:,} | {count['chunks']:,} | {least:.2f} | {least / first:.2f} "
            f"| {least / count['chunks'] / each:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / ".cache" / "bench" / "scale")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="deepseek-v3")
    parser.add_argument("--optimizer", action="store_true", help="with Adam's states, which are left out")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--turns", nargs="+", choices=sorted(SHAPES), help="compare these, the first is 1")
    args = parser.parse_args()
    if args.turns:
        in_turns(args.turns, args.out.resolve(), args.runs)
        return
    run = ensure(args.shape, args.optimizer, args.out.resolve())
    count = json.loads((run / "made.json").read_text())
    files = len(list((run / "iter_0000010").glob("*.distcp")))
    cells = f"{count['tensors']:,} | {count['chunks']:,} | {files:,} | {count['nbytes'] / 1e12:.2f}"
    ckptconv = (sys.executable, "-c", ROOMY)
    merge = (*ckptconv, "merge", str(run), str(run / "model"), "--dry-run")
    print("| shape | command | tensors | chunks | files | TB | wall s | peak MiB |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for label, command in (("inspect", (*ckptconv, "inspect", str(run))), ("merge --dry-run", merge)):
        costs = [measure.run(command, run / "log") for _ in range(args.runs)]
        wall, peak = median(cost.wall for cost in costs), max(cost.peak for cost in costs)
        print(f"| {run.name} | {label} | {cells} | {wall:.2f} | {peak / 2**20:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
