"""`merge --ray` on a cluster of two nodes, whatever dies or goes wrong there."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import command, environment, process, state, unpacked
from support.ray_tools import Machines, finished_files, until, writers

from ckptconv.commands.merge.run import merge
from ckptconv.commands.progress import Progress
from ckptconv.errors import CkptconvError

pytestmark = pytest.mark.xdist_group("ray")  # one cluster for all


@pytest.fixture(scope="module")
def source() -> Path:
    return unpacked("megatron/qwen2_tp2")


def meanwhile(harm: Callable[[], None], merging: Callable[[], None]) -> None:
    """Merge, and do some harm while a file is written. Raises what either raises, the harm's first."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            harm()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        merging()
    finally:
        thread.join()
        if errors:
            raise errors[0]


def test_a_worker_is_killed(machines: Machines, connected: str, source: Path, tmp_path: Path) -> None:
    target, told = tmp_path / "far", list[Progress]()

    def kill() -> None:
        (worker,) = until(lambda: writers(target))
        os.kill(worker, signal.SIGKILL)
        assert until(lambda: set(writers(target)) - {worker}), "Ray begins it again"

    def merging() -> None:
        merge(source, target, ray=connected, on_progress=told.append)

    with machines.going_wrong(slow=0.1):
        meanwhile(kill, merging)
    merged = merge(source, tmp_path / "local")
    assert state(target) == state(tmp_path / "local")
    assert told[-1].done == merged.plan.nbytes


def test_a_node_is_lost(machines: Machines, connected: str, source: Path, tmp_path: Path) -> None:
    target, size = tmp_path / "far", "5KB"

    def lose() -> None:
        until(lambda: any(map(machines.on_second, writers(target))))
        machines.lose()

    try:
        with machines.going_wrong(slow=0.1):
            meanwhile(lose, lambda: merge(source, target, max_shard_size=size, ray=connected) and None)
    finally:
        machines.mend()
    merge(source, tmp_path / "local", max_shard_size=size)
    assert state(target) == state(tmp_path / "local")


def test_workers_that_die_again_and_again(
    machines: Machines, connected: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptconv.engines.on_ray._RETRIES", 0)
    target = tmp_path / "far"
    with machines.going_wrong(slow=0.3), pytest.raises(CkptconvError) as caught:
        meanwhile(
            lambda: os.kill(until(lambda: writers(target))[0], signal.SIGKILL),
            lambda: merge(source, target, ray=connected) and None,
        )
    assert caught.value.what == "Ray could not run a task to its end"
    assert caught.value.where == "model.safetensors"
    assert (caught.value.found or "").startswith("WorkerCrashedError")
    assert list(tmp_path.iterdir()) == []


def refusal(machines: Machines, source: Path, target: Path, **wrong: object) -> CkptconvError:
    """The error of a merge under which something goes wrong on the nodes; nothing is left of it."""
    with machines.going_wrong(**wrong), pytest.raises(CkptconvError) as caught:
        merge(source, target, max_shard_size="5KB", ray=machines.address)
    assert list(target.parent.iterdir()) == []
    return caught.value


def test_an_error_in_a_task_arrives_as_it_is(
    machines: Machines, connected: str, source: Path, tmp_path: Path
) -> None:
    error = refusal(machines, source, tmp_path / "far", full=True)
    assert type(error) is CkptconvError
    assert error.what == "the disk is full"
    assert [label for label, _ in error.rows()] == ["in", "hint"]


@pytest.mark.parametrize(
    ("unseen", "what"),
    [("checkpoint", "a file of the checkpoint"), ("target", "the folder that this merge writes to")],
)
def test_a_node_that_does_not_see(
    machines: Machines,
    connected: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unseen: str,
    what: str,
) -> None:
    monkeypatch.setattr("ckptconv.engines.on_ray.PATIENCE", 0.5)
    folder = source if unseen == "checkpoint" else tmp_path
    error = refusal(
        machines, source, tmp_path / "far", blind=str(folder), slow=0.2
    )  # so that both nodes are needed
    assert error.what.startswith("node ")
    assert error.what.endswith(f" does not see {what}")
    assert (error.where or "").startswith(str(folder))


# --- a command in a process of its own, which joins the cluster and leaves it


def test_from_the_command_line(machines: Machines, source: Path, tmp_path: Path) -> None:
    merge(source, tmp_path / "local")
    relative = os.path.relpath(source, tmp_path)
    ran = process("merge", relative, "far", "--ray", "auto", cwd=tmp_path, RAY_ADDRESS=machines.address)
    assert ran.code == 0, ran
    assert state(tmp_path / "far") == state(tmp_path / "local")
    assert "ray" not in ran.err.lower()  # its own words stay out of the way


def test_a_node_with_another_ckptconv(machines: Machines, source: Path, tmp_path: Path) -> None:
    with machines.going_wrong(version="0.0.1"):
        ran = process(
            "merge", source, tmp_path / "far", "--ray", machines.address, "--json", **machines.driver
        )
    assert ran.code == 2, ran
    assert " has another ckptconv" in ran.flat
    assert "0.0.1" in ran.flat
    assert list(tmp_path.iterdir()) == []


def driver(machines: Machines, source: Path, target: Path, *more: str) -> subprocess.Popen[str]:
    args = ("merge", source, target, "--ray", machines.address, *more)
    env = environment(**machines.driver)
    return subprocess.Popen(
        command(*args), env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_the_driver_is_killed_and_run_again(
    machines: Machines, connected: str, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "far"
    with machines.going_wrong(slow=0.1):
        running = driver(machines, source, target, "--max-shard-size", "15KB")
        until(lambda: len(finished_files(target)) >= 2)
        running.kill()
        running.communicate()
    assert not target.exists()
    kept = {path.name: path.stat().st_ino for path in finished_files(target) if path.is_file()}
    again = merge(source, target, max_shard_size="15KB", ray=connected)
    assert len(again.plan.files) > len(again.resumed) >= len(kept) >= 2
    assert {name: (target / name).stat().st_ino for name in kept} == kept
    merge(source, tmp_path / "local", max_shard_size="15KB")
    assert state(target) == state(tmp_path / "local")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "local"]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopped(machines: Machines, source: Path, tmp_path: Path, stop: signal.Signals) -> None:
    with machines.going_wrong(slow=0.2):
        running = driver(machines, source, tmp_path / "far")
        until(lambda: writers(tmp_path / "far"))
        running.send_signal(stop)
        out, err = running.communicate(timeout=30)
    assert (running.returncode, out) == (130, "")
    (said,) = (line for line in err.splitlines() if line.startswith("Stopped. "))
    left = [path.name for path in tmp_path.iterdir()]
    assert left in ([], [".far.ckptconv-partial"])  # a machine may have completed a file by then
    assert ("Nothing was left behind." in said) == (not left), err
    assert list(tmp_path.rglob("*.part")) == []
    until(lambda: not writers(tmp_path / "far"))  # the machines end their tasks a moment after the driver
