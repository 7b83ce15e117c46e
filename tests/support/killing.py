"""Merges that are killed at random moments and run again, until one ends; and what has to hold after each kill.

A kill is timed (SIGKILL, SIGTERM or SIGINT from outside, after a part of the time that the merge takes: it reaches the
start, the planning, the copying) or counted (before, or in the middle of, the n-th call that changes the disk: it reaches
each rename and unlink).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import xxhash
from support.helpers import state
from support.shim import faults, finish, run, start

CHANGES = "name,write,sync"  # the calls that change the disk
Shards = dict[str, tuple[int, int]]


@dataclass
class Case:
    """A command that makes `target`, and what its folder has to be then. old: what lay there before, {} for nothing."""

    words: list[object]
    target: Path
    whole: dict[str, str]
    old: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    calls: int = 0

    @property
    def home(self) -> Path:
        return self.target.parent / f".{self.target.name}.ckptconv-partial"


@dataclass
class Tally:
    """What became of the kills: by the moment that they met; of runs that ended before the signal; of finished shards."""

    moments: Counter[str] = field(default_factory=Counter)
    signals: Counter[str] = field(default_factory=Counter)
    too_late: int = 0
    shards_kept: int = 0
    runs: int = 0

    @property
    def kills(self) -> int:
        return sum(self.moments.values())

    def __str__(self) -> str:
        met = ", ".join(f"{number} {moment}" for moment, number in self.moments.most_common())
        kept = f"{self.shards_kept} finished shards taken over"
        by = ", ".join(f"{number} {name}" for name, number in self.signals.most_common())
        return f"{self.kills} kills ({met}; {by}); {self.too_late} runs ended before; {kept}"


def make_case(words: list[object], target: Path, replaces: Callable[[Path], None] | None = None) -> Case:
    """Measure a merge that nobody disturbs: its result, its time, its calls. replaces: puts a model there before."""
    alone = target.with_name("alone")
    counted = target.with_name("calls")
    old: dict[str, str] = {}
    shutil.rmtree(alone, ignore_errors=True)
    for path in (target, alone):
        if replaces and not path.exists():
            replaces(path)
            old = state(path)
    more = ["--overwrite"] if replaces else []
    begun = time.monotonic()
    ran = run("merge", *words, alone, "-q", *more, env=faults("count", CHANGES, alone.parent, count=counted))
    assert ran.code == 0, ran
    case = Case(
        [*words, target, *more], target, state(alone), old, time.monotonic() - begun, int(counted.read_text())
    )
    counted.unlink()
    return case


def survive(case: Case, rng: random.Random, kills: int, tally: Tally) -> None:
    """Kill the merge so many times, one after another; then run it once more, and look at everything."""
    finished: Shards = {}
    for _ in range(kills):
        if not kill_once(case, rng, tally):
            finished = {}
            break
        check_target(case)
        if published(case) and not case.old:
            break  # a further run would be refused
        now = finished_shards(case)
        if not published(case):
            assert now.items() >= finished.items(), "a finished shard was written again"
        finished = now
    end(case, finished, tally)


def kill_once(case: Case, rng: random.Random, tally: Tally) -> bool:
    """False where the merge ended before the signal came."""
    tally.runs += 1
    number = signal.SIGKILL
    if rng.random() < 0.5:
        begun = start("merge", *case.words, "-q")
        time.sleep(rng.uniform(0, case.seconds * 1.05))
        number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        if rng.random() < 0.5:
            os.killpg(begun.pid, number)
        else:
            begun.send_signal(number)
    else:
        do = rng.choice(
            ["kill", "kill", "tear", f"signal:{int(signal.SIGTERM)}", f"signal:{int(signal.SIGINT)}"]
        )
        if do.startswith("signal"):
            number = signal.Signals(int(do.removeprefix("signal:")))
        begun = start(
            "merge",
            *case.words,
            "-q",
            env=faults(do, CHANGES, case.target.parent, at=rng.randint(1, case.calls)),
        )
    ran = finish(begun)
    if ran.code == 0:
        tally.too_late += 1
        return False
    # A signal before Python has its handlers ends it as SIGKILL does. Python ends `python -m` by SIGINT, whatever code it
    # asks for, once a KeyboardInterrupt has passed an exec() of a string (namedtuple and dataclasses run such ones); a
    # shell reports 130 for both.
    stopped = (-number, -signal.SIGINT, 130) if number != signal.SIGKILL else (-number,)
    assert ran.code in stopped, ran
    tally.signals[number.name] += 1
    tally.moments[moment(case)] += 1
    return True


def moment(case: Case) -> str:
    """How far a killed merge had come, from what it left."""
    if published(case) and not finished_shards(case):
        return "after the rename"
    model = case.home / "model"
    if not model.is_dir():
        return "before the first file"
    if (model / "config.json").exists():
        return "small files, fsync, rename"
    return "between shards, some finished" if finished_shards(case) else "in the first shards"


def finished_shards(case: Case) -> Shards:
    """Name -> inode and time of change of each shard that a killed run has finished."""
    model, records = case.home / "model", case.home / "model.done"
    if not model.is_dir() or not (case.home / "plan").exists() or was_exchanged(case):
        return {}
    stats = {
        path.name: path.stat()
        for path in model.glob("*.safetensors")
        if (records / f"{path.name}.json").exists()
    }
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def was_exchanged(case: Case) -> bool:
    """True if `model` is the old target, which changed places with the new one."""
    noted, receipt = case.home / "publishing", case.home / "model" / "ckptconv.json"
    if not noted.exists():
        return False
    return not receipt.exists() or xxhash.xxh3_128_hexdigest(receipt.read_bytes()) != noted.read_text()


def published(case: Case) -> bool:
    return case.target.exists() and state(case.target) == case.whole


def check_target(case: Case) -> None:
    """The old one, whole, or the new one, whole; and nothing else beside it but the folder that a merge works in."""
    allowed = [case.whole, *([case.old] if case.old else [])]
    if case.target.exists():
        assert state(case.target) in allowed, "half a model was published"
    else:
        assert not case.old, "neither the old model nor the new one is there"
    assert beside(case) <= {case.target.name, case.home.name}


def beside(case: Case) -> set[str]:
    return {path.name for path in case.target.parent.iterdir()} - {"alone", "run"}


def end(case: Case, finished: Shards, tally: Tally) -> None:
    """Run the same command to its end: the same bytes, finished shards as they were, nothing beside the target."""
    was_there = case.target.exists() and not case.old
    ran = run("merge", *case.words, "--json")
    if was_there:  # the run that was killed had published it, or none was killed
        assert (ran.code, json.loads(ran.out)["error"]["what"]) == (2, "OUT already exists"), ran
    else:
        assert ran.code == 0, ran
        resumed = set(json.loads(ran.out)["resumed"])
        assert resumed == set(finished), (sorted(resumed), sorted(finished))
        for name, was in finished.items():
            stat = (case.target / name).stat()
            assert (stat.st_ino, stat.st_mtime_ns) == was, f"{name} was written again"
        tally.shards_kept += len(finished)
    assert state(case.target) == case.whole
    assert beside(case) == {case.target.name}


def again(case: Case, replaces: Callable[[Path], None] | None) -> None:
    """Put back what lay there before, for the next trial."""
    for path in (case.target, case.home):
        shutil.rmtree(path, ignore_errors=True)
    if replaces:
        replaces(case.target)
