"""A merge that is killed at a given tensor, and what it leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from support.helpers import environment

KILLED = """
import os, signal, sys
from ckptconv.commands.merge.run import merge
left = int(sys.argv[3])
def on_progress(step):
    global left
    left -= step.done > 0
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
merge(sys.argv[1], sys.argv[2], dtype="keep", max_shard_size="10KB", workers=1, on_progress=on_progress)
"""


def kill_at(run: Path, target: Path, after: int) -> Path:
    """Kill a merge of `run` after so many tensors; returns its work folder."""
    words = [sys.executable, "-c", KILLED, str(run), str(target), str(after)]
    assert subprocess.run(words, env=environment(), timeout=60, check=False).returncode == -signal.SIGKILL
    return target.parent / f".{target.name}.ckptconv-partial"
