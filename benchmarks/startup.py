"""How long ckptconv takes to say anything: `--help`, and `inspect` of a checkpoint; medians of seven runs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.make_checkpoint import ensure
from benchmarks.sizes import SIZES, Checkpoint

REPEATS = 7


def times(checkpoint: Checkpoint, log: Path) -> list[dict[str, Any]]:
    """Label and costs of each of the two commands, after one run that does not count."""
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=sorted(SIZES), default="3b")
    args = parser.parse_args()
    for entry in times(ensure(SIZES[args.size], args.out), args.out / "startup.log"):
        walls = sorted(run["wall"] for run in entry["runs"])
        print(f"{entry['label']:20} {walls[len(walls) // 2]:.3f} s   ({walls[0]:.3f} to {walls[-1]:.3f})")


if __name__ == "__main__":
    main()
