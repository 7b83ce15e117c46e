"""Ctrl-C, SIGTERM, a lost terminal, closed pipes: what is left is the old state, or the new one whole."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import FIXTURES, ROLE, command, environment, state
from support.killing import CHANGES
from support.shim import LONG, SHARDS, Paused, faults, points, run

Made = Callable[[str], Path]
KEPT = re.compile(r"Stopped\. [\d,]+ complete files? \([\d,]+ bytes\) stays? for the next run\.\n")
SAID = "Stopped. Nothing was left behind.\n"


@pytest.mark.parametrize("existing", [False, True], ids=["new_target", "overwrite"])
@pytest.mark.parametrize("many", [False, True], ids=["once", "again_and_again"])
def test_ctrl_c_and_sigterm_at_any_call_that_changes_the_disk(
    made: Made, tmp_path: Path, existing: bool, many: bool
) -> None:
    """`many`: the signal comes again before each later call, those that clean up too."""
    rng, count, out = random.Random(f"stop {existing} {many}"), tmp_path / "count", tmp_path / "here" / "out"
    words = ["merge", made("fsdp2_w4") / ROLE, out, *SHARDS, *(["--overwrite"] if existing else [])]
    out.parent.mkdir()
    assert run(*words, env=faults("count", CHANGES, out.parent, count=count)).code == 0
    whole = state(out)
    for at in points(rng, count, 2):
        shutil.rmtree(out, ignore_errors=True)
        if existing:
            out.mkdir()
            (out / "config.json").write_text("{}")
        before = state(out.parent)
        stop = rng.choice([signal.SIGINT, signal.SIGTERM])
        ran = run(*words, env=faults(f"signal{'s' * many}:{int(stop)}", CHANGES, out.parent, at=at))
        left = state(out.parent)
        work = {name for name in left if name.startswith(".out.ckptconv-partial")}
        if ran.code == 0:  # it came when the model was in its place and the rest was removed
            assert (ran.err, "out/ckptconv.json" in left) == ("", True)
        elif work:
            assert (ran.code, bool(KEPT.match(ran.err))) == (130, True), (at, ran)
            assert not [name for name in work if name.endswith(".part")]
        else:
            assert (ran.code, ran.err) == (130, SAID), (at, ran)
        seen = {name: digest for name, digest in left.items() if name not in work}
        new = {"out": "", **{f"out/{name}": digest for name, digest in whole.items()}}
        assert seen in (before, new), at
        if work:
            assert run(*words).code == 0
            assert state(out.parent) == new


SWALLOWED = """
import os, signal, sys
from ckptconv.__main__ import main
where, asked = os.environ["WHERE"], []
class Stop:
    def __del__(self):
        os.kill(os.getpid(), int(os.environ["STOP"]))
def trace(frame, event, _):
    code = frame.f_code
    removes_lock = code.co_name == "cb" and code.co_filename.startswith("<frozen importlib")
    if not asked and (removes_lock if where == "lock" else code.co_name == "merge"):
        asked.append(code)
        if where == "lock":
            os.kill(os.getpid(), int(os.environ["STOP"]))
        else:
            Stop()
sys.settrace(trace)
main()
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["lock", "del"])
def test_a_stop_is_heard_where_python_swallows_exceptions(
    made: Made, tmp_path: Path, stop: signal.Signals, where: str
) -> None:
    """In the callback of an import lock (a merge then waited for that lock for ever) and in `__del__`."""
    words = [
        sys.executable,
        "-c",
        SWALLOWED,
        "merge",
        str(made("fsdp2_w4") / ROLE),
        str(tmp_path / "out"),
        "-q",
    ]
    env = environment(STOP=str(int(stop)), WHERE=where)
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    assert "Exception ignored" not in done.stderr
    assert done.returncode in (130, -signal.SIGINT), done
    assert list(tmp_path.iterdir()) == []


def test_a_lost_terminal_ends_like_a_kill_and_is_resumed(made: Made, tmp_path: Path) -> None:
    words = [made("fsdp2_w4") / ROLE, tmp_path / "here" / "out", *SHARDS]
    assert run("merge", words[0], tmp_path / "alone", *SHARDS).code == 0
    ran = run("merge", *words, env=faults(f"signal:{int(signal.SIGHUP)}", "write", "here", at=8))
    assert ran.code == -signal.SIGHUP
    assert {path.name for path in (tmp_path / "here").iterdir()} == {".out.ckptconv-partial"}
    assert run("merge", *words).code == 0
    assert state(tmp_path / "here" / "out") == state(tmp_path / "alone")
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"out"}


def piped(words: list[object], after: str) -> subprocess.CompletedProcess[str]:
    """`ckptconv ARGS` in a shell, with something done to its streams."""
    line = " ".join(command(*words))
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{line} {after}"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


AFTER = [">&- 2>&- <&-", "2>&1 | head -c 0", ">&- 2>/dev/full", ">&-", "2>&-", "| head -c 0"]
FLAGS = [(), ("--json",), ("-q",)]


@pytest.mark.parametrize("after", AFTER if LONG else AFTER[:3])
@pytest.mark.parametrize("flag", FLAGS if LONG else FLAGS[:1])
def test_streams_that_are_closed_do_not_hurt_the_model(
    made: Made, tmp_path: Path, after: str, flag: tuple[str, ...]
) -> None:
    """Nothing that would be printed goes into a shard, and the model is whole or not there."""
    done = piped(
        ["merge", made("fsdp2_w4"), tmp_path / "here" / "out", "--max-shard-size", "20KB", *flag], after
    )
    assert "Traceback" not in done.stderr
    run("merge", made("fsdp2_w4"), tmp_path / "alone", *SHARDS)
    left = {path.name for path in (tmp_path / "here").iterdir()} if (tmp_path / "here").exists() else set()
    if "2>&1" in after and left == set():
        assert done.returncode != 0  # nobody listens any more, so that it ends, as other commands do
        return
    assert left == {"out"}
    assert state(tmp_path / "here" / "out") == state(tmp_path / "alone")
    assert done.returncode in (0, 2, 141) if "full" in after else done.returncode == 0, done


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_watch_that_is_stopped_in_the_middle_of_a_step(tmp_path: Path, stop: signal.Signals) -> None:
    merging = Paused(
        FIXTURES / "verl_fsdp2_w4" / "run", tmp_path / "here", "--watch", *SHARDS,
        calls="write", path="here", at=6, flag=tmp_path / "flag",
    )  # fmt: skip
    merging.signal(stop)
    ran = merging.go()
    assert (ran.code, ran.err == SAID or bool(KEPT.match(ran.err))) == (130, True)
    assert {p.name for p in (tmp_path / "here").iterdir()} <= {
        "global_step_1",
        ".global_step_1.ckptconv-partial",
    }


def test_a_process_that_is_stopped_and_continued_goes_on(made: Made, tmp_path: Path) -> None:
    merging = Paused(
        made("fsdp2_w4"),
        tmp_path / "out",
        *SHARDS,
        calls="write",
        path=tmp_path,
        at=4,
        flag=tmp_path / "flag",
    )
    merging.signal(signal.SIGSTOP)
    merging.signal(signal.SIGCONT)
    assert merging.go().code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert os.path.isfile(tmp_path / "out" / "ckptconv.json")
