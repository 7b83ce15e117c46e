"""ckptconv beside mbridge on a real Megatron-Core checkpoint: a Qwen2 of 1.26 GB in bf16 at TP 2 and PP 2, as verl saves it.

    .venv/bin/python -m benchmarks.megatron --python PYTHON [--out DIR] [--rounds 3]

PYTHON has Megatron-Core and mbridge (tests/make/megatron/README.md). mbridge is run as it must be: four gloo ranks build the
model, Megatron-Core loads it, mbridge gathers and writes; its peak is that of the largest of the four.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import contenders, report
from benchmarks.contenders import Contender
from benchmarks.make_checkpoint import REPOSITORY
from benchmarks.run import machine, turn
from benchmarks.sizes import SIZES

RESULTS = REPOSITORY / "benchmarks" / "results"
_SCRIPT = str(REPOSITORY / "benchmarks" / "write_megatron.py")
_COLUMNS = ("", "wall s", "min to max", "CPU s", "peak MiB", "× mbridge", "× floor")


def ensure(python: str, root: Path) -> Path:
    """The checkpoint's folder; made once, by Megatron-Core over four ranks."""
    if not (root / "run" / "latest_checkpointed_iteration.txt").is_file():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        for command in ((python, _SCRIPT, "make"), _ranks(python, "save")):
            subprocess.run(command, cwd=root, check=True, env=_environment())
    return root


def _ranks(python: str, *what: str) -> tuple[str, ...]:
    launch = (python, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4")
    return (*launch, _SCRIPT, *what)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def everyone(python: str, root: Path, scratch: Path) -> list[Contender]:
    """ckptconv with the floor beside it, and mbridge."""
    shards = tuple(sorted(root.rglob("*.distcp")))
    out, nbytes = scratch / "out", 2 * SIZES["0.5b"].parameters
    merge = (sys.executable, "-m", "ckptconv", "merge", str(root / "run"), str(out))
    return [
        Contender("ckptconv", "ckptconv merge", "bf16", merge, shards, out, nbytes),
        contenders.cat("cat", "cat of the .distcp files", shards),
        contenders.write("dd", "dd of the bf16 size", "bf16", shards, out, nbytes),
        contenders.write("sync", "dd conv=fsync of the bf16 size", "bf16", shards, out, nbytes, "conv=fsync"),
        Contender(
            "mbridge", "mbridge 0.15.1", "bf16", _ranks(python, "export", str(out)), shards, out, nbytes
        ),
    ]


def table(result: dict[str, Any]) -> str:
    """The run as it stands in the README."""
    runs = {entry["key"]: entry["runs"] for entry in result["contenders"]}
    walls = {key: [run["wall"] for run in found] for key, found in runs.items()}
    walls["floor"] = [a + b for a, b in zip(walls["cat"], walls["dd"], strict=True)]
    labels = {entry["key"]: entry["label"] for entry in result["contenders"]} | {"floor": "floor: cat + dd"}
    loads = [run["load"] for found in runs.values() for run in found]
    title = (
        f"### Megatron-Core Qwen2 0.5b at TP 2 × PP 2, {result['bytes_in'] / 1e9:.2f} GB of bf16;"
        f" {result['rounds']} rounds on {result['date']}; {result['machine']['cores']} cores,"
        f" {result['machine']['memory_gib']} GiB; load before a run {min(loads):.1f} to {max(loads):.1f}"
    )
    lines = [title, "", report.line(_COLUMNS), "|---|" + "---:|" * (len(_COLUMNS) - 1)]
    for key in ("ckptconv", "mbridge", "floor", "cat", "dd", "sync"):
        wall = median(walls[key])
        cpu, peak = "", ""
        if key in ("ckptconv", "mbridge"):
            cpu = f"{median(run['user'] + run['system'] for run in runs[key]):.2f}"
            peak = f"{max(run['peak'] for run in runs[key]) / 2**20:,.0f}"
        ratios = [f"{wall / median(walls[other]):.2f}" for other in ("mbridge", "floor")]
        spread = f"{min(walls[key]):.2f} to {max(walls[key]):.2f}"
        lines.append(report.line((labels[key], f"{wall:.2f}", spread, cpu, peak, *ratios)))
    same = "the same tensors, byte for byte" if result["agree"] else "THE TENSORS DIFFER"
    return "\n".join([*lines, "", f"- ckptconv merge and mbridge 0.15.1: {same}", ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="a Python with megatron-core and mbridge")
    parser.add_argument("--out", type=Path, default=REPOSITORY / ".cache" / "bench", help="folder to work in")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    out = args.out.resolve()
    root, scratch = ensure(args.python, out / "megatron"), out / "scratch"
    scratch.mkdir(exist_ok=True)
    os.environ |= _environment()
    os.chdir(root)  # where mbridge finds ./hf and ./run
    all_of_them = everyone(args.python, root, scratch)
    runs: dict[str, list[dict[str, Any]]] = {one.key: [] for one in all_of_them}
    digests = []
    for number in range(args.rounds):
        for one in all_of_them[:: 1 if number % 2 == 0 else -1]:
            keep = number == 0 and one.key in ("ckptconv", "mbridge")
            cost, found = turn(one, scratch, keep_digests=keep)
            runs[one.key].append(cost)
            digests += [found] if keep else []
            print(f"{one.label:32} {cost['wall']:8.2f} s {cost['peak'] / 2**20:8,.0f} MiB", file=sys.stderr)
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    result = {
        "date": date,
        "kind": "megatron",
        "rounds": args.rounds,
        "bytes_in": sum(path.stat().st_size for path in root.rglob("*.distcp")),
        "machine": machine(),
        "agree": digests[0] == digests[1],
        "contenders": [
            {"key": one.key, "label": one.label, "dtype": one.dtype, "runs": runs[one.key]}
            for one in all_of_them
        ],
    }
    print(table(result))
    stem = date.replace(" UTC", "").replace(" ", "T").replace(":", "")
    (RESULTS / "megatron").mkdir(exist_ok=True)
    (RESULTS / "megatron" / f"{stem}-qwen2-tp2pp2.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
