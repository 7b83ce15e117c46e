"""Planning grows with the checkpoint and no faster: calls are counted, at some size and at twice that size.

The checkpoints are sparse (benchmarks/scale_writers): metadata and headers are whole, the weights are holes.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support.helpers import REPO

from ckptconv.backends import open_checkpoint
from ckptconv.commands.inspect import inspect
from ckptconv.plan import Options, make_plan
from ckptconv.publish import assets

KINDS = ("fsdp", "dcp", "megatron", "megatron_legacy", "deepspeed", "deepspeed3", "huggingface", "hf_shards")
SIZES = {"tensors": ((150, 8), (300, 8)), "ranks": ((60, 16), (60, 32))}
CASES = [(kind, axis) for kind in KINDS for axis in SIZES if (kind, axis) != ("huggingface", "ranks")]


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All checkpoints, as KIND-TENSORS-RANKS."""
    folder = tmp_path_factory.mktemp("sparse")
    words = [
        word
        for kind, axis in CASES
        for tensors, ranks in SIZES[axis]
        for word in (kind, str(tensors), str(ranks), str(folder / f"{kind}-{tensors}-{ranks}"))
    ]
    subprocess.run([sys.executable, "-m", "benchmarks.scale_writers", *words], cwd=REPO, check=True)
    return folder


def plan(run: Path) -> None:
    """What inspect and merge --dry-run do, but for the printing."""
    inspect(run)
    checkpoint = open_checkpoint(run)
    make_plan(checkpoint, assets.read_config(checkpoint.assets) if checkpoint.assets else None, Options())


def calls(run: Path) -> int:
    """Calls of Python's and C's functions while it is planned, in all threads."""
    counted = 0

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    plan(run)  # what is loaded or remembered once is not counted
    threading.setprofile(count)
    sys.setprofile(count)
    try:
        plan(run)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return counted


@pytest.mark.parametrize(("kind", "axis"), CASES)
def test_twice_the_size_is_twice_the_work(sparse: Path, kind: str, axis: str) -> None:
    small, large = (calls(sparse / f"{kind}-{tensors}-{ranks}") for tensors, ranks in SIZES[axis])
    print(f"{kind} {axis}: {small:,} {large:,} {large / small:.2f}")
    assert large < 2.3 * small
