"""merge: stopped, killed, resumed, and two at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import shim
from support.helpers import (
    ROLE,
    assert_equal,
    cast,
    cli,
    command,
    edit_config,
    environment,
    many_tensors,
    own_copy,
    state,
    tensors,
)
from support.stopped import KILLED, kill_at

from ckptconv.commands.merge.run import merge
from ckptconv.errors import CkptconvError
from ckptconv.publish import target as target_room

Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose merge into shards of 40 kB writes and syncs 400 files."""
    return many_tensors(tmp_path_factory.mktemp("slow") / "run")


SHARDS = ("--max-shard-size", "40KB", "--dtype", "keep", "--workers", "1", "-q")


def start(run: Path, target: Path, *flags: str) -> subprocess.Popen[str]:
    """A merge in a process of its own, returned when it has finished some files."""
    begun = subprocess.Popen(
        command("merge", run, target, *SHARDS, *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    work = target.parent / f".{target.name}.ckptconv-partial"
    until = time.monotonic() + 60
    while len(list(work.glob("model.done/*.json"))) < 6:  # the last one may not have its name yet
        assert begun.poll() is None, begun.communicate()
        assert time.monotonic() < until
        time.sleep(0.002)
    return begun


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
@pytest.mark.parametrize("existing", [False, True], ids=["new_target", "overwrite"])
def test_a_stopped_merge_leaves_the_target_as_it_was_and_keeps_its_complete_files(
    slow: Path, tmp_path: Path, stop: signal.Signals, existing: bool
) -> None:
    if existing:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_text("{}")
    before = state(tmp_path)
    begun = start(slow, tmp_path / "out", "--overwrite")
    begun.send_signal(stop)
    out, err = begun.communicate(timeout=60)
    work = tmp_path / ".out.ckptconv-partial"
    files = [path for path in (work / "model").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors"}, "an incomplete file was kept"
    nbytes = sum(path.stat().st_size for path in files)
    said = (
        f"Stopped. {len(files)} complete files ({nbytes:,} bytes) stay for the next run.\n  in     {work}\n"
    )
    assert (begun.returncode, out) == (130, "")
    assert err == f"{said}  hint   run the same command again to go on, or remove that folder\n"
    assert {
        name: digest for name, digest in state(tmp_path).items() if not name.startswith(work.name)
    } == before

    done = cli("merge", slow, tmp_path / "out", *SHARDS[:-1], "--overwrite", "--json")
    assert sorted(json.loads(done.out)["resumed"]) == sorted(path.name for path in files)
    merge(slow, tmp_path / "alone", dtype="keep", max_shard_size="40KB")
    assert state(tmp_path / "out") == state(tmp_path / "alone")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "alone"}


def test_no_resume_keeps_nothing_of_a_stopped_merge(slow: Path, tmp_path: Path) -> None:
    begun = start(slow, tmp_path / "out", "--no-resume")
    begun.send_signal(signal.SIGINT)
    out, err = begun.communicate(timeout=60)
    assert (begun.returncode, out, err) == (130, "", "Stopped. Nothing was left behind.\n")
    assert list(tmp_path.iterdir()) == []


def test_no_resume_begins_anew(made: Made, tmp_path: Path) -> None:
    kill_at(made("fsdp2_w4"), tmp_path / "out", 20)
    done = merge(made("fsdp2_w4"), tmp_path / "out", dtype="keep", max_shard_size="10KB", resume=False)
    assert done.resumed == ()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


INTERRUPTED = """
import signal, sys, threading, time
from pathlib import Path
from ckptconv.commands.merge.run import merge
left, written = 3, False
def on_progress(step):
    global left, written
    left -= step.done > 0
    if left == 0:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.5)  # the disk is slow
        written = True
try:
    merge(sys.argv[1], sys.argv[2], max_shard_size="10KB", workers=1, on_progress=on_progress, resume=False)
except KeyboardInterrupt:
    print(written, sorted(path.name for path in Path(sys.argv[2]).parent.iterdir()))
"""


def test_ctrl_c_waits_for_the_threads_before_it_cleans_up(made: Made, tmp_path: Path) -> None:
    words = [sys.executable, "-c", INTERRUPTED, str(made("fsdp2_w4")), str(tmp_path / "out")]
    done = subprocess.run(words, env=environment(), timeout=60, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True []\n", "")


def test_a_killed_merge_is_resumed_by_the_same_command(slow: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    begun = start(slow, target)
    begun.kill()
    begun.communicate(timeout=60)
    assert not target.exists()
    work = tmp_path / ".out.ckptconv-partial"
    finished = {
        path.name: path.stat()
        for path in (work / "model").glob("*.safetensors")
        if (work / "model.done" / f"{path.name}.json").exists()
    }
    assert 5 <= len(finished) < 400

    done = cli("merge", slow, target, *SHARDS[:-1], "--json")
    assert set(json.loads(done.out)["resumed"]) == set(finished)
    for name, was in finished.items():
        now = (target / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (was.st_ino, was.st_mtime_ns), f"{name} was written again"
    merge(slow, tmp_path / "alone", dtype="keep", max_shard_size="40KB")
    assert state(target) == state(tmp_path / "alone")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "alone"}


@pytest.mark.parametrize("after", [1, 7, 26])
def test_a_merge_killed_at_any_tensor_gives_the_same_bytes_after_all(
    made: Made, tmp_path: Path, after: int
) -> None:
    run = made("fsdp2_w4")
    words = [sys.executable, "-c", KILLED, str(run), str(tmp_path / "out"), str(after)]
    assert subprocess.run(words, env=environment(), timeout=60, check=False).returncode == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} == {".out.ckptconv-partial"}
    merge(run, tmp_path / "out", dtype="keep", max_shard_size="10KB")
    merge(run, tmp_path / "alone", dtype="keep", max_shard_size="10KB")
    assert state(tmp_path / "out") == state(tmp_path / "alone")


def test_what_a_killed_merge_left_is_not_used_for_another_plan(made: Made, tmp_path: Path) -> None:
    kill_at(made("fsdp2_w4"), tmp_path / "out", 20)
    done = merge(made("fsdp2_w4"), tmp_path / "out", dtype="bfloat16", max_shard_size="10KB")
    assert done.resumed == ()
    assert_equal(tensors(tmp_path / "out"), cast(tensors(made("fsdp2_w4") / "hub")))


def test_what_a_killed_merge_left_is_not_used_for_a_changed_source(made: Made, tmp_path: Path) -> None:
    """The same names and shapes: only the files' own times tell."""
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    kill_at(run, tmp_path / "out", 20)
    for source in sorted((made("fsdp2_tied_w4") / ROLE).glob("model_*.pt")):
        shutil.copy(source, run / ROLE)
    edit_config(run, tie_word_embeddings=True)
    merge(run, tmp_path / "out", dtype="keep", max_shard_size="10KB")
    assert_equal(tensors(tmp_path / "out"), tensors(made("fsdp2_tied_w4") / "hub"))


def test_what_a_killed_merge_left_is_not_used_for_another_lora_alpha(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("lora_w4"), tmp_path / "run")
    kill_at(run, tmp_path / "out", 20)
    merge(run, tmp_path / "out", dtype="keep", max_shard_size="10KB", lora_alpha=11)
    merge(run, tmp_path / "alone", dtype="keep", max_shard_size="10KB", lora_alpha=11)
    assert_equal(tensors(tmp_path / "out"), tensors(tmp_path / "alone"))


def test_a_finished_shard_that_was_cut_since_is_written_again(made: Made, tmp_path: Path) -> None:
    work = kill_at(made("fsdp2_w4"), tmp_path / "out", 20)
    shard = min((work / "model").glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size - 1)
    done = merge(made("fsdp2_w4"), tmp_path / "out", dtype="keep", max_shard_size="10KB")
    assert done.resumed
    assert shard.name not in done.resumed
    assert_equal(tensors(tmp_path / "out"), tensors(made("fsdp2_w4") / "hub"))


def test_a_second_merge_into_the_same_target_is_refused(made: Made, tmp_path: Path) -> None:
    inside, go = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        inside.set()
        assert go.wait(60)

    first = threading.Thread(target=lambda: merge(made("fsdp2_w4"), tmp_path / "out", on_progress=wait))
    first.start()
    assert inside.wait(60)
    ran = cli("merge", made("fsdp2_w4"), tmp_path / "out")
    go.set()
    first.join()
    assert ran.code == 2
    assert ran.errors == ["error: another merge is writing to OUT"]
    assert_equal(tensors(tmp_path / "out"), cast(tensors(made("fsdp2_w4") / "hub")))


def test_a_second_merge_is_refused_until_the_first_one_has_moved_into_place(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, errors = target_room.fsync_tree, []

    def second_meanwhile(work: Path) -> None:
        monkeypatch.setattr(target_room, "fsync_tree", sync)
        try:
            merge(made("fsdp2_tied_w4"), tmp_path / "out")
        except CkptconvError as error:
            errors.append(error.what)
        sync(work)

    monkeypatch.setattr(target_room, "fsync_tree", second_meanwhile)
    merge(made("fsdp2_w4"), tmp_path / "out")
    assert errors == ["another merge is writing to OUT"]
    assert_equal(tensors(tmp_path / "out"), cast(tensors(made("fsdp2_w4") / "hub")))


@pytest.mark.parametrize("do", ["kill", "tear"])
def test_a_kill_in_the_middle_of_noting_the_receipt_loses_no_complete_file(
    made: Made, tmp_path: Path, do: str
) -> None:
    """With an empty or half a note, the complete model would be taken for a target that was exchanged into its place."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    words = ["merge", made("fsdp2_w4"), tmp_path / "out", "--max-shard-size", "10KB", "--overwrite"]
    ran = shim.run(*words, env=shim.faults(do, "write", "ckptconv-partial/publishing"))
    assert ran.code == -signal.SIGKILL
    work = tmp_path / ".out.ckptconv-partial" / "model"
    shards = sorted(path.name for path in work.glob("*.safetensors"))
    assert len(shards) > 1
    assert sorted(json.loads(cli(*words, "--json").out)["resumed"]) == shards
