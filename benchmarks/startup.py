"""How long ckptconv takes to say anything: commands on a tiny checkpoint beside what they import, in turns.

    python -m benchmarks.startup tests/fixtures/verl_fsdp2_w4/run

The least of each is compared with the import of typer and of rich's console, CPU and wall time; on a busy machine the least
is the most stable. `import rich` alone imports hardly anything of rich.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.measure import Cost
from benchmarks.sizes import Checkpoint

REPEATS = 7
_BASE = "import typer, rich.console"
# OpenBLAS starts a thread a core unless it is told not to, as ckptconv does.
_LIBRARIES = """
import os
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import typer, rich.table, rich.progress, numpy, ml_dtypes, xxhash, hashlib
"""


def times(checkpoint: Checkpoint, log: Path) -> list[dict[str, Any]]:
    """Label and costs of `--help`, and of `inspect` of a checkpoint, after one run of each that does not count."""
    ckptconv = (sys.executable, "-m", "ckptconv")
    found = []
    for label, command in (
        ("ckptconv --help", (*ckptconv, "--help")),
        ("ckptconv inspect", (*ckptconv, "inspect", str(checkpoint.actor))),
    ):
        measure.run(command, log)
        found.append({"label": label, "runs": [asdict(measure.run(command, log)) for _ in range(REPEATS)]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the folder of a tiny checkpoint")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    args = parser.parse_args()
    ckptconv = (sys.executable, "-m", "ckptconv")
    with tempfile.TemporaryDirectory() as work:
        out = Path(work, "model")
        commands = {
            "python": (sys.executable, "-c", "pass"),
            "import typer, rich": (sys.executable, "-c", "import typer, rich"),
            _BASE: (sys.executable, "-c", _BASE),
            "what merge imports": (sys.executable, "-c", _LIBRARIES),
            "--version": (*ckptconv, "--version"),
            "--help": (*ckptconv, "--help"),
            "inspect": (*ckptconv, "inspect", str(args.checkpoint)),
            "merge": (*ckptconv, "merge", str(args.checkpoint), str(out)),
        }
        costs: dict[str, list[Cost]] = {label: [] for label in commands}
        for turn in range(1 + args.repeats):
            for label, command in commands.items():
                shutil.rmtree(out, ignore_errors=True)
                cost = measure.run(command, Path(work, "log"))
                if turn:  # the first compiles
                    costs[label].append(cost)
    print(f"{'':28}  CPU, s  times   wall, s  times")
    for label, found in costs.items():
        print(f"{label:28}", end="")
        for kind, width in (("cpu", 8), ("wall", 10)):
            least, base = (min(getattr(cost, kind) for cost in each) for each in (found, costs[_BASE]))
            print(f"{least:{width}.3f} {least / base:6.2f}", end="")
        print()


if __name__ == "__main__":
    main()
