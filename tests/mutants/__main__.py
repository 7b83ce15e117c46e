"""Takes out one rule at a time in a copy of the sources, and runs the test that has to fail: `python -m tests.mutants`.

It is not part of the suite, since each mutant starts pytest: about ten minutes for all on two idle cores. Arguments choose
mutants by a part of their name. Exit code 1 if a mutant survives, or if its rule is not found in the sources any more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutants.rules import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]


def main() -> int:
    chosen = [m for m in MUTANTS if not sys.argv[1:] or any(part in m.name for part in sys.argv[1:])]
    if not chosen:
        raise SystemExit(f"no mutant has such a name; there are: {', '.join(m.name for m in MUTANTS)}")
    survivors = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as made:
        copy = Path(made)
        for part in ("ckptconv", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        for mutant in chosen:
            answer = killed(copy, mutant)
            print(f"{'killed  ' if answer else 'SURVIVED'}  {mutant.name}", flush=True)
            survivors += [] if answer else [mutant.name]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants fail their test")
    return int(bool(survivors))


def killed(copy: Path, mutant: Mutant) -> bool:
    """Whether the mutant's test passes with the rule and fails without it."""
    path = copy / "ckptconv" / mutant.file
    before = path.read_text("utf-8")
    if before.count(mutant.rule) != 1:
        raise SystemExit(f"{mutant.name}: its rule is {before.count(mutant.rule)} times in {mutant.file}")
    try:
        path.write_text(before.replace(mutant.rule, mutant.instead), "utf-8")
        return _pytest(copy, mutant) == 1  # 1: tests failed; 2 and more: pytest itself did, or it found none
    finally:
        path.write_text(before, "utf-8")


def _pytest(copy: Path, mutant: Mutant) -> int:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        mutant.tests,
        "-k",
        mutant.match,
    ]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
