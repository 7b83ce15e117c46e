"""The command in processes of its own, whose file calls fail: faults.c, built with the C compiler of this machine."""

from __future__ import annotations

import functools
import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from support.helpers import REPO, Ran, cli, command, environment

SOURCE = Path(__file__).parent / "faults.c"
KILLS = int(os.environ.get("CKPTCONV_KILLS", "0"))  # of each kind of checkpoint; 0 is the short form
SEED = int(os.environ.get("CKPTCONV_SEED", "6"))
LONG = KILLS > 0
SHARDS = ("--max-shard-size", "20KB", "-q")


@functools.cache
def library() -> Path:
    """The shim, built once; tests that need it are skipped where it cannot be built or preloaded."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    cache = Path(os.environ.get("CKPTCONV_TEST_CACHE") or REPO / ".cache" / "checkpoints")
    cache.mkdir(parents=True, exist_ok=True)
    built = cache / f"faults-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    with FileLock(built.with_suffix(".lock")):
        if not built.exists():
            part = built.with_suffix(".part")
            words = [compiler, "-shared", "-fPIC", "-O1", str(SOURCE), "-o", str(part), "-ldl"]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"the shim cannot be built: {done.stderr[-300:]}")
            part.rename(built)
    return built


def faults(
    do: str, calls: str, path: object = "", at: int = 1, count: Path | None = None, say: Path | None = None
) -> dict[str, str]:
    """The environment of a process whose `calls` on paths that hold `path` go wrong from the at-th on; see faults.c."""
    env = {"FAULT_DO": do, "FAULT_CALLS": calls, "FAULT_PATH": str(path), "FAULT_AT": str(at)}
    more = {"FAULT_COUNT": count, "FAULT_SAY": say}
    return (
        env
        | {"LD_PRELOAD": str(library())}
        | {key: str(value) for key, value in more.items() if value is not None}
    )


def start(*args: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`ckptconv ARGS` in a process group of its own."""
    return subprocess.Popen(
        command(*args),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**(env or {})),
        start_new_session=True,
    )


def finish(begun: subprocess.Popen[str]) -> Ran:
    """How it ended."""
    try:
        out, err = begun.communicate(timeout=120)
    finally:
        begun.kill()
    return Ran(begun.returncode, out, err)


def run(*args: object, env: dict[str, str] | None = None) -> Ran:
    """`ckptconv ARGS` to its end; where nothing is to go wrong, and in the short form, in this process."""
    return cli(*args) if env is None and not LONG else finish(start(*args, env=env))


def points(rng: random.Random, count: Path, wanted: int) -> list[int]:
    """Which of the calls that were counted go wrong: so many, or in the long form as many as there are kills."""
    calls = range(1, int(count.read_text()) + 1)
    return sorted(rng.sample(calls, min(KILLS or wanted, len(calls))))


class Paused:
    """A merge that waits before its n-th call of some kind, until `go`."""

    def __init__(self, *words: object, calls: str, path: object, at: int, flag: Path) -> None:
        self._flag = flag
        self._begun = start("merge", *words, env=faults("say", calls, path, at=at, say=flag))
        until = time.monotonic() + 60
        while not flag.exists():
            assert self._begun.poll() is None, finish(self._begun)
            assert time.monotonic() < until
            time.sleep(0.005)

    def signal(self, number: int) -> None:
        self._begun.send_signal(number)

    def kill(self) -> None:
        self._begun.kill()
        finish(self._begun)

    def go(self) -> Ran:
        self._flag.unlink()
        return finish(self._begun)
