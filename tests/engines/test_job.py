"""One file by itself, as an engine has it made: again, twice at once, and where things are not as they were."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import unpacked

from ckptconv.commands.merge.run import merge
from ckptconv.copy.run import copy
from ckptconv.engines import job
from ckptconv.errors import CkptconvError
from ckptconv.plan import Plan
from ckptconv.publish.work import work_folder


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return merge(unpacked("megatron/qwen2_tp2"), tmp_path / "dry", max_shard_size="20KB", dry_run=True).plan


@pytest.fixture
def jobs(plan: Plan, tmp_path: Path):
    """The jobs of all files, in a merge under way."""
    with work_folder(tmp_path / "model", "a stamp") as work:
        job.attempts(work).mkdir()
        found = list(job.jobs(plan, list(plan.files), work, 1, 0.0))
        yield pickle.loads(pickle.dumps(found))


@pytest.fixture
def wanted(plan: Plan, tmp_path: Path) -> Callable[[job.Job], bytes]:
    """A file as a local run writes it."""
    copy(plan, tmp_path / "local", 1)
    return lambda each: (tmp_path / "local" / each.out.name).read_bytes()


def made(each: job.Job) -> bytes:
    return (each.work / each.out.name).read_bytes()


def test_each_job_makes_its_file(jobs: list[job.Job], wanted: Callable[[job.Job], bytes]) -> None:
    assert len(jobs) > 2
    for each in jobs:
        copied = job.run(each, "here")
        assert set(copied.hashes) == set(each.out.offsets)
        assert made(each) == wanted(each)
    assert list(job.attempts(jobs[0].work).iterdir()) == []


def test_a_job_that_is_done_is_not_done_again(jobs: list[job.Job]) -> None:
    first = job.run(jobs[0], "here")
    before = (jobs[0].work / jobs[0].out.name).stat().st_ino
    again = job.run(jobs[0], "here")
    assert (again.hashes, again.written, again.resumed) == (first.hashes, 0, ())
    assert (jobs[0].work / jobs[0].out.name).stat().st_ino == before


def test_an_attempt_that_was_cut_off_does_not_count(
    jobs: list[job.Job], wanted: Callable[[job.Job], bytes]
) -> None:
    each = jobs[0]
    dead = job.attempts(each.work) / "dead"
    (dead / "model").mkdir(parents=True)
    (dead / "model" / f"{each.out.name}.part").write_bytes(b"half")
    (dead / "bytes").write_text(f"4 {each.out.name}")
    assert job.how_far(each.work) == {each.out.name: 4}
    job.run(each, "here")
    assert made(each) == wanted(each)


def test_two_attempts_at_once(
    jobs: list[job.Job], wanted: Callable[[job.Job], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first goes on writing after the second has finished: Ray took its node for lost."""
    each, errors = jobs[0], []
    first_writes, second_is_done = threading.Event(), threading.Event()
    report = job._Progress.__call__

    def wait(self: job._Progress, nbytes: int, file: str) -> None:
        if threading.current_thread() is not threading.main_thread() and not first_writes.is_set():
            first_writes.set()
            second_is_done.wait(10)
        report(self, nbytes, file)

    def first() -> None:
        try:
            job.run(each, "there")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=first)
    monkeypatch.setattr(job._Progress, "__call__", wait)
    thread.start()
    assert first_writes.wait(10)
    job.run(each, "here")
    assert made(each) == wanted(each)
    second_is_done.set()
    thread.join()
    assert errors == []
    assert made(each) == wanted(each)


def test_a_merge_that_is_over(plan: Plan, tmp_path: Path) -> None:
    with work_folder(tmp_path / "model", "a stamp") as work:
        job.attempts(work).mkdir()
        each = next(job.jobs(plan, list(plan.files), work, 1, 0.0))
    with pytest.raises(CkptconvError, match="there does not see the folder that this merge writes to"):
        job.run(each, "there")
    assert not work.parent.exists()


def test_another_merge_in_its_place(jobs: list[job.Job]) -> None:
    (jobs[0].work.parent / "plan").write_text("of another plan")
    with pytest.raises(CkptconvError, match="there does not see the folder that this merge writes to"):
        job.run(jobs[0], "there")


def test_a_file_of_another_size(jobs: list[job.Job]) -> None:
    jobs[0].sizes[next(iter(jobs[0].sizes))] += 1
    with pytest.raises(CkptconvError, match="there sees a different file than the one in the plan"):
        job.run(jobs[0], "there")


def test_stop_ends_what_is_under_way_and_what_begins_later(
    jobs: list[job.Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_REPORT_EVERY", 0.0)
    writing, stopped, errors = threading.Event(), threading.Event(), list[str]()
    report = job._Progress.__call__

    def wait(self: job._Progress, nbytes: int, file: str) -> None:
        writing.set()
        stopped.wait(10)
        report(self, nbytes, file)

    def first() -> None:
        try:
            job.run(jobs[0], "there")
        except CkptconvError as error:
            errors.append(error.what)

    monkeypatch.setattr(job._Progress, "__call__", wait)
    thread = threading.Thread(target=first)
    thread.start()
    assert writing.wait(10)
    job.stop(jobs[0].work)
    assert job.under_way(jobs[0].work)
    stopped.set()
    thread.join()
    assert errors == ["the merge was stopped"]
    assert not job.under_way(jobs[0].work)
    with pytest.raises(CkptconvError, match="the merge was stopped"):
        job.run(jobs[1], "there")
    assert not any(jobs[0].work.iterdir())
