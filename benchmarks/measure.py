"""What one process costs: wall time, CPU time and its largest resident size, start-up included."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 4 << 20
# Nobody asks the Hub for anything, and everybody's code is compiled once, as what pip installs is.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": ""}


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of wall, user and system time; peak resident bytes of the largest process; the load before."""

    wall: float
    user: float
    system: float
    peak: int
    load: float

    @property
    def cpu(self) -> float:
        return self.user + self.system


def run(command: Sequence[str], log: Path) -> Cost:
    """Run a command to its end; its output goes to `log`. Raises SystemExit with the log's end when it fails.

    The kernel counts the peak from the fork on: a process smaller than this one is reported as large.
    """
    load = os.getloadavg()[0]
    with log.open("wb") as output:
        begun = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | _ENVIRONMENT,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = log.read_text(errors="replace")[-2000:]
        raise SystemExit(f"{tail}\n{' '.join(command[:4])} … ended with {process.returncode}")
    return Cost(wall, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024, load)


def settle() -> None:
    """Let what the run before left unwritten reach the disk, so that the next one does not pay for it."""
    os.sync()


def warm(files: Sequence[Path]) -> float | None:
    """Read files into the page cache; returns the share of bytes that is there afterwards, where known."""
    block = memoryview(bytearray(_BLOCK))
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
    try:
        answer = subprocess.run(
            ["fincore", "--bytes", "--noheadings", "--output", "RES", *map(str, files)],
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    pages = sum(map(int, answer.stdout.split()))  # whole pages, so a little more than the bytes
    return min(pages / max(sum(path.stat().st_size for path in files), 1), 1.0)
