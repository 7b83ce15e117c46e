"""The long form: python -m tests.survival --kills 50 --seed 1 [--kind fsdp]: so many of each kind of checkpoint."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.survival", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="of each kind of checkpoint")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument(
        "--kind", default="", help="fsdp, megatron, dcp, deepspeed, large or steps; all when not given"
    )
    parser.add_argument(
        "--faults", action="store_true", help="instead, let so many calls fail in each test of faults"
    )
    given = parser.parse_args()
    os.environ |= {"CKPTCONV_KILLS": str(given.kills), "CKPTCONV_SEED": str(given.seed)}
    files = ("test_faults.py", "test_signals.py", "test_targets.py") if given.faults else ("test_kills.py",)
    words = [*(str(HERE / name) for name in files), "-q", "-s", "-p", "no:cacheprovider"]
    return int(pytest.main([*words, "-k", given.kind] if given.kind else words))


if __name__ == "__main__":
    sys.exit(main())
