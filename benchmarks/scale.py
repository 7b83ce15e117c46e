"""How long inspect and merge --dry-run take, and how much memory, as checkpoints grow: in tensors, and in ranks.

The checkpoints are sparse: metadata and headers are real (scale_writers), the weights are holes. Each is written, measured
in fresh processes and deleted.

    python -m benchmarks.scale --out DIR [--backend fsdp] [--quick] [--draw]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.make_checkpoint import REPOSITORY
from benchmarks.megatron_scale import ROOMY
from benchmarks.scale_curves import draw, table

KINDS = ("fsdp", "dcp", "megatron", "megatron_legacy", "deepspeed", "deepspeed3", "huggingface", "hf_shards")
RESULTS = REPOSITORY / "benchmarks" / "results" / "scale" / "scale.json"
CURVES = REPOSITORY / "docs" / "images" / "scale.svg"
_TENSORS, _RANKS = (100, 1_000, 10_000, 100_000), (8, 64, 512, 4096)
_FIXED = "300"
_SHAPES = (("fsdp", 512), ("megatron", 1024), ("megatron_legacy", 1024))  # of DeepSeek-V3, and their ranks
_ENOUGH = 5.0  # seconds of CPU time after which one run is enough


def cases(kind: str, quick: bool) -> list[tuple[str, str, str, int]]:
    """(axis, kind, tensors, ranks) of a backend, the smallest first."""
    meshes = kind.startswith("megatron")
    found = [("tensors", kind, str(n), 8) for n in _TENSORS[: 2 if quick else None]]
    if kind != "huggingface":  # a model folder has no ranks
        sizes = _RANKS[: 2 if quick else None]
        found += [("ranks", kind, "wide" if meshes else _FIXED, ranks) for ranks in sizes]
    if not quick:
        found += [("shape", kind, "deepseek-v3", ranks) for name, ranks in _SHAPES if name == kind]
    return found


def measured(case: tuple[str, str, str, int], out: Path, runs: int) -> dict[str, Any]:
    """Write a checkpoint, measure both commands on it, delete it."""
    axis, kind, tensors, ranks = case
    run = out / f"{kind}-{tensors}-{ranks}"
    shutil.rmtree(run, ignore_errors=True)
    writer = (sys.executable, "-m", "benchmarks.scale_writers", kind, tensors, str(ranks), str(run))
    subprocess.run(writer, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    files = [path for path in run.rglob("*") if path.is_file()]
    stats = [path.stat() for path in files]
    found: dict[str, Any] = {
        **{"axis": axis, "kind": kind, "tensors": 0, "ranks": ranks, "files": len(files)},
        **{"nbytes": sum(s.st_size for s in stats), "on_disk": sum(512 * s.st_blocks for s in stats)},
    }
    ckptconv, log = (sys.executable, "-c", ROOMY), out / f"{run.name}.log"
    merge = ("merge", "--dry-run", str(run), str(out / "model"))
    for name, words in (("inspect", ("inspect", "--json", str(run))), ("dry_run", merge)):
        costs: list[measure.Cost] = []
        while len(costs) < runs and (not costs or costs[-1].cpu < _ENOUGH):
            costs.append(measure.run((*ckptconv, *words), log))
        found[name] = [asdict(cost) for cost in costs]
        if name == "inspect":
            found["tensors"] = json.loads(log.read_text())["tensors"]
    log.unlink()
    shutil.rmtree(run)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / ".cache" / "bench" / "curves")
    parser.add_argument("--backend", choices=KINDS)
    parser.add_argument("--axis", choices=("tensors", "ranks", "shape"))
    parser.add_argument("--quick", action="store_true", help="two sizes an axis, and nothing is kept")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--draw", action="store_true", help="only draw what was measured before")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept: list[dict[str, Any]] = (
        json.loads(args.results.read_text())["rows"] if args.results.is_file() else []
    )
    if args.quick:
        kept = []
    for kind in () if args.draw else [args.backend] if args.backend else KINDS:
        wanted = [case for case in cases(kind, args.quick) if args.axis in (None, case[0])]
        kept = [row for row in kept if row["kind"] != kind or args.axis not in (None, row["axis"])]
        for case in wanted:
            row = measured(case, args.out.resolve(), args.runs)
            kept.append(row)
            inspect, merge = (min(run["wall"] for run in row[name]) for name in ("inspect", "dry_run"))
            print(*case, f"inspect {inspect:.2f} s, merge --dry-run {merge:.2f} s", flush=True)
            if not args.quick:
                _keep(kept, args.results)
    print(table(kept))
    if not args.quick and args.results == RESULTS:
        CURVES.write_text(draw(kept), encoding="utf-8")


def _keep(rows: list[dict[str, Any]], path: Path) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = {"cores": os.cpu_count(), "memory_gib": round(memory)}
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
    path.write_text(json.dumps({"date": date, "machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
