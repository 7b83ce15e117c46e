"""merge --all-steps and --watch, on a run that verl wrote."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import FIXTURES, assert_one_error, cli, command, environment, process, state

from ckptconv import CkptconvError, merge
from ckptconv.commands.merge import steps as steps_module
from ckptconv.commands.merge.steps import Step, merge_steps

RUN = FIXTURES / "verl_fsdp2_w4" / "run"
MARK = "latest_checkpointed_iteration.txt"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(RUN, tmp_path / "run"))
    age(copy)
    return copy


def age(folder: Path, seconds: float = 3600) -> None:
    """As if nothing had been written there for a while."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - seconds, time.time() - seconds))


def outcomes(steps: list[Step]) -> list[tuple[int, str]]:
    return [(s.number, "merged" if s.merged else "waiting" if s.waiting else "failed") for s in steps]


def test_every_step_becomes_what_merging_it_alone_gives(run: Path, tmp_path: Path) -> None:
    assert outcomes(list(merge_steps(run, tmp_path / "out"))) == [(1, "merged"), (2, "merged")]
    for step in (1, 2):
        merge(run / f"global_step_{step}", tmp_path / "alone" / str(step))
        weights = "model.safetensors"
        assert (
            state(tmp_path / "out" / f"global_step_{step}")[weights]
            == (state(tmp_path / "alone" / str(step))[weights])
        )


def test_a_step_that_is_there_is_left_alone(run: Path, tmp_path: Path) -> None:
    list(merge_steps(run, tmp_path / "out"))
    before = state(tmp_path / "out" / "global_step_1")
    shutil.rmtree(tmp_path / "out" / "global_step_2")
    assert outcomes(list(merge_steps(run, tmp_path / "out"))) == [(2, "merged")]
    assert state(tmp_path / "out" / "global_step_1") == before
    assert outcomes(list(merge_steps(run, tmp_path / "out", overwrite=True))) == [
        (1, "merged"),
        (2, "merged"),
    ]


def test_a_step_after_the_runs_own_mark_is_not_taken(run: Path, tmp_path: Path) -> None:
    (run / MARK).write_text("1")
    found = list(merge_steps(run, tmp_path / "out"))
    assert outcomes(found) == [(1, "merged"), (2, "waiting")]
    assert not (tmp_path / "out" / "global_step_2").exists()


def test_without_a_mark_a_step_that_just_changed_is_not_taken(run: Path, tmp_path: Path) -> None:
    (run / MARK).unlink()
    os.utime(next((run / "global_step_2").rglob("model_world_size_4_rank_3.pt")))
    assert outcomes(list(merge_steps(run, tmp_path / "out"))) == [(1, "merged"), (2, "waiting")]
    age(run / "global_step_2")
    assert outcomes(list(merge_steps(run, tmp_path / "out"))) == [(2, "merged")]


def test_an_incomplete_step_is_told_and_the_others_are_converted(run: Path, tmp_path: Path) -> None:
    (run / "global_step_1" / "actor" / "model_world_size_4_rank_2.pt").unlink()
    ran = cli("merge", run, tmp_path / "out", "--all-steps")
    assert ran.code == 2  # as a merge of that step alone
    assert "skipped step 1: rank 2 of 4 is missing" in ran.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["global_step_2"]


def test_a_step_that_fails_is_told_at_the_end_with_its_exit_code(run: Path, tmp_path: Path) -> None:
    (run / "global_step_1" / "actor" / "huggingface" / "config.json").write_text("{")
    age(run)
    ran = cli("merge", run, tmp_path / "out", "--all-steps")
    assert ran.code == 2
    assert "skipped step 1: config.json cannot be read" in ran.err
    assert "1 of 2 steps could not be converted" in ran.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["global_step_2"]


def test_json_lists_the_steps(run: Path, tmp_path: Path) -> None:
    (run / MARK).write_text("1")
    ran = cli("merge", run, tmp_path / "out", "--all-steps", "--json")
    first, second = json.loads(ran.out)["steps"]
    assert (first["step"], first["merged"]["target"]) == (1, str(tmp_path / "out" / "global_step_1"))
    assert (second["step"], second["waiting"]) == (2, True)


@pytest.mark.parametrize("more", [["--step", "1"], ["--push", "me/model"], ["--also", "."]])
def test_what_goes_with_one_step_only_is_refused(run: Path, tmp_path: Path, more: list[str]) -> None:
    ran = cli("merge", run, tmp_path / "out", "--all-steps", *more)
    assert_one_error(ran, says="cannot be combined with --step, --also or --push")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_steps_and_a_target_in_the_run_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CkptconvError, match="no steps"):
        list(merge_steps(run / "global_step_1", tmp_path / "out"))
    with pytest.raises(CkptconvError, match="OUT is inside the run"):
        list(merge_steps(run, run / "models"))


# --- a step that is saved again


def rewrite(step: Path) -> None:
    """A rank file of the step is written again."""
    file = next(step.rglob("model_world_size_4_rank_3.pt"))
    file.write_bytes(file.read_bytes())


def test_a_step_that_changed_since_it_was_converted_is_converted_again(run: Path, tmp_path: Path) -> None:
    list(merge_steps(run, tmp_path / "out"))
    before = state(tmp_path / "out" / "global_step_1")
    shutil.rmtree(run / "global_step_2")
    shutil.copytree(run / "global_step_1", run / "global_step_2")
    age(run / "global_step_2", 1800)
    os.utime(run / MARK)
    (step,) = merge_steps(run, tmp_path / "out")
    assert (step.number, step.again, step.merged is not None) == (2, True, True)
    weights = "model.safetensors"
    assert state(tmp_path / "out" / "global_step_2")[weights] == before[weights]
    assert not list(merge_steps(run, tmp_path / "out"))


def test_a_run_that_was_moved_is_not_converted_again(run: Path, tmp_path: Path) -> None:
    list(merge_steps(run, tmp_path / "out"))
    assert not list(merge_steps(run.rename(tmp_path / "elsewhere"), tmp_path / "out"))


def test_a_model_without_a_fingerprint_in_its_receipt_is_left_alone(run: Path, tmp_path: Path) -> None:
    list(merge_steps(run, tmp_path / "out"))
    receipt = tmp_path / "out" / "global_step_1" / "ckptconv.json"
    data = json.loads(receipt.read_text())
    del data["source"]["fingerprint"]
    receipt.write_text(json.dumps(data))
    assert not list(merge_steps(run, tmp_path / "out"))


def test_a_step_with_files_younger_than_the_mark_waits(run: Path, tmp_path: Path) -> None:
    list(merge_steps(run, tmp_path / "out"))
    rewrite(run / "global_step_2")
    (step,) = merge_steps(run, tmp_path / "out")
    assert outcomes([step]) == [(2, "waiting")]
    assert step.reason == f"files of step 2 are younger than {MARK}: it may be being saved again"
    os.utime(run / MARK)  # the save ended
    (step,) = merge_steps(run, tmp_path / "out")
    assert (outcomes([step]), step.again) == ([(2, "merged")], True)


def test_a_copied_run_whose_mark_came_first_is_taken_once_it_is_quiet(run: Path, tmp_path: Path) -> None:
    age(run / "global_step_2", 1800)  # younger than the mark, and long ago
    assert outcomes(list(merge_steps(run, tmp_path / "out"))) == [(1, "merged"), (2, "merged")]


@pytest.mark.parametrize("sign", ["global_step_2-unfinished", "global_step_2/.incomplete"])
def test_a_step_that_its_trainer_marks_as_unfinished_waits(sign: str, run: Path, tmp_path: Path) -> None:
    (run / sign).touch()
    found = list(merge_steps(run, tmp_path / "out"))
    assert outcomes(found) == [(1, "merged"), (2, "waiting")]
    assert "its trainer is still saving step 2" in found[1].reason


def test_a_watched_step_that_is_saved_again_is_converted_again(run: Path, tmp_path: Path) -> None:
    found: list[Step] = []
    todo: list[Callable[[], object]] = [
        lambda: rewrite(run / "global_step_1"),  # in the middle of a save
        lambda: os.utime(run / MARK),
        lambda: None,
    ]

    def sleep(_: float) -> None:
        if not todo:
            raise Stop
        todo.pop(0)()

    with contextlib.suppress(Stop):
        for step in merge_steps(run, tmp_path / "out", watch=True, sleep=sleep):
            found.append(step)
    assert outcomes(found) == [(1, "merged"), (2, "merged"), (1, "waiting"), (1, "merged")]
    assert [step.again for step in found] == [False, False, True, True]


def test_the_screen_says_what_a_step_waits_for(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (run / "global_step_2" / "actor" / "model_world_size_4_rank_1.pt").unlink()
    watching = subprocess.Popen(
        command("merge", run, out, "--watch"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert watching.stderr is not None
    lines = []
    for line in watching.stderr:
        lines.append(line.decode())
        if "Waiting   for" in lines[-1]:
            break
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=60)
    assert "Waiting   for step 2: rank 1 of 4 is not there yet" in lines[-1]
    assert [path.name for path in out.iterdir()] == ["global_step_1"]


@pytest.mark.parametrize(
    "names", [("ep0-ba9", "ep0-ba10", "ep0-ba100"), ("epoch=0-step=9.ckpt", "last.ckpt")]
)
def test_steps_of_other_trainers_are_converted_in_their_order(
    names: tuple[str, ...], run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "checkpoints"
    for name in names:
        shutil.copytree(run / "global_step_1", other / name)
    found = list(merge_steps(tmp_path / "other", tmp_path / "out"))
    assert [step.target.name for step in found if step.merged] == list(names)


def test_a_link_to_the_last_step_is_not_converted_twice(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run / "global_step_1", other / "epoch=0-step=9.ckpt")
    (other / "last.ckpt").symlink_to("epoch=0-step=9.ckpt")
    assert [step.number for step in merge_steps(other, tmp_path / "out")] == [9]


class Stop(Exception):
    """Ends a watch."""


def test_watch_takes_each_new_step_once_and_only_when_it_is_whole(tmp_path: Path) -> None:
    """Files appear one after another, the last one in two halves, and then the run's mark; nothing is taken before."""
    run, new, whole = tmp_path / "run", tmp_path / "run" / "global_step_2", RUN / "global_step_2"
    shutil.copytree(RUN / "global_step_1", run / "global_step_1")
    (run / MARK).write_text("1")
    files = [path for path in sorted(whole.rglob("*")) if path.is_file()]
    last = files.pop(next(i for i, path in enumerate(files) if path.name.endswith("rank_3.pt")))

    def write(path: Path, part: float = 1.0) -> None:
        target = new / path.relative_to(whole)
        target.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        target.write_bytes(data[: int(len(data) * part)])

    found: list[Step] = []
    todo: list[Callable[[], object]] = [lambda path=path: write(path) for path in files]  # type: ignore[misc]
    todo += [lambda: write(last, 0.5), lambda: write(last), lambda: (run / MARK).write_text("2")]
    seen_at: dict[int, int] = {}

    def sleep(_: float) -> None:
        for step in (step for step in found if step.merged):
            seen_at.setdefault(step.number, len(todo))
        if len(seen_at) == 2:
            raise Stop
        todo.pop(0)()

    with contextlib.suppress(Stop):
        for step in merge_steps(run, tmp_path / "out", watch=True, sleep=sleep):
            found.append(step)
    assert outcomes([step for step in found if not step.waiting]) == [(1, "merged"), (2, "merged")]
    assert seen_at[2] == 0  # not before the mark
    assert [step.reason for step in found if step.waiting] == ["the run has not marked step 2 as written yet"]


def test_watch_without_a_mark_waits_until_the_rank_files_are_whole(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(RUN / "global_step_1", run / "global_step_1")
    age(run)
    missing = run / "global_step_1" / "actor" / "model_world_size_4_rank_1.pt"
    data = missing.read_bytes()
    missing.unlink()
    todo: list[Callable[[], object]] = [
        lambda: None,
        lambda: (missing.write_bytes(data), age(run)),
        lambda: pytest.fail("the step was not taken"),
    ]
    found = []
    for step in merge_steps(run, tmp_path / "out", watch=True, sleep=lambda _: todo.pop(0)()):
        found.append(step)
        if step.merged:
            break
    assert outcomes(found) == [(1, "waiting"), (1, "merged")]
    assert found[0].reason == "rank 1 of 4 is not there yet"
    assert len(todo) == 1


def test_watch_ends_with_ctrl_c_and_leaves_nothing_half_written(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    watching = subprocess.Popen(
        command("merge", run, out, "--watch", "-q"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    lines = [watching.stdout.readline().strip() for _ in range(2)]
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert lines == [str(out / "global_step_1"), str(out / "global_step_2")]
    assert sorted(path.name for path in out.iterdir()) == ["global_step_1", "global_step_2"]
    assert process("verify", out / "global_step_2", "--against", run / "global_step_2").code == 0


def test_a_file_server_whose_clock_is_ahead_delays_a_step_by_two_looks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a mark, a step counts as written when nothing changes; its times are an hour ahead of this machine's."""
    run = tmp_path / "run"
    shutil.copytree(RUN / "global_step_1", run / "global_step_1")
    age(run, -3600)
    now, found = [0.0], []
    monkeypatch.setattr(steps_module.time, "monotonic", lambda: now[0])

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] > 60:
            raise Stop

    with contextlib.suppress(Stop):
        for step in merge_steps(run, tmp_path / "out", watch=True, sleep=sleep):
            found.append((now[0], step))
    assert outcomes([step for _, step in found]) == [(1, "waiting"), (1, "merged")]
    assert "clock is ahead" in found[0][1].reason
    assert found[1][0] == 10
