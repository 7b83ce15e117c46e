"""python -m tests.fuzz [--inputs N] [--seed S] [--target NAME] [--keep FOLDER]: exit code 1 when something was found."""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from random import Random

from .guard import Finding, Guard
from .places import work_folder
from .target import Target
from .targets import targets

PER_SEED = 20  # unchanged inputs that each target reads first: what it imports is imported then


def fuzz(
    inputs: int, seed: int, names: list[str], guard: Guard, chosen: list[Target]
) -> dict[str, tuple[int, int, float]]:
    """Each target's share of the inputs: its name -> (inputs, of which refused, seconds)."""
    wanted = [target for target in chosen if not names or target.name in names]
    total = sum(target.share for target in wanted)
    told = {}
    for target in wanted:
        count, random = round(inputs * target.share / total), Random(f"{seed} {target.name}")
        begun, refused = time.monotonic(), guard.refused
        for _ in range(count):
            made = target.make(random)
            guard.run(made.label, made.data, made.call)
        told[target.name] = count, guard.refused - refused, time.monotonic() - begun
        count and print(f"{target.name:<16} {count:>9,} inputs, {told[target.name][1]:>9,} refused, "
                        f"{told[target.name][2]:7.1f} s, {len(guard.findings)} findings", flush=True)  # fmt: skip
    return told


def warm_up(chosen: list[Target]) -> None:
    """Let every target import what it needs, before imports are forbidden."""
    from ckptconv.errors import CkptconvError

    for target in chosen:
        random = Random(target.name)
        for _ in range(PER_SEED):
            made = target.make(random)
            try:
                made.call()
            except CkptconvError:
                pass
            except Exception as error:
                print(f"{target.name}, while warming up: {type(error).__name__}: {error}", file=sys.stderr)


def show(finding: Finding, keep: Path) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    file = keep / hashlib.sha256(finding.data).hexdigest()[:16]
    file.write_bytes(finding.data)
    print(f"\n{finding.kind} in {finding.target} at {finding.where}, {len(finding.data):,} bytes: {file}")
    print(finding.detail[-1500:])


def main() -> None:
    words = argparse.ArgumentParser(prog="python -m tests.fuzz")
    words.add_argument("--inputs", type=int, default=20_000)
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--target", action="append", default=[], help="only this one; may be given again")
    words.add_argument("--keep", type=Path, default=Path(".cache/fuzz"), help="where inputs with findings go")
    said = words.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = work_folder()
    try:
        chosen = targets(folder)
        warm_up(chosen)
        guard = Guard(folder)
        guard.install()
        begun = time.monotonic()
        told = fuzz(said.inputs, said.seed, said.target, guard, chosen)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        for finding in guard.findings.values():
            show(finding, said.keep)
        inputs = sum(count for count, *_ in told.values())
        print(f"\n{inputs:,} inputs in {time.monotonic() - begun:.0f} s, seed {said.seed}: {guard.read:,} read, "
              f"{guard.refused:,} refused, {len(guard.findings)} findings, peak {peak} MiB")  # fmt: skip
        sys.exit(1 if guard.findings else 0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
