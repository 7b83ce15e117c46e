"""Where the target lies and who else wants it: other disks, mount points, links, a second merge; and a power cut."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.disks import ext4, fuse, overlay, tmpfs, vfat
from support.helpers import ROLE, assert_one_error, command, environment, own_copy, state
from support.killing import CHANGES
from support.shim import LONG, SHARDS, Paused, faults, finish, run, start

Made = Callable[[str], Path]


@pytest.fixture
def alone(made: Made, tmp_path: Path) -> dict[str, str]:
    """What an undisturbed merge of fsdp2_w4 makes."""
    assert run("merge", made("fsdp2_w4"), tmp_path / "alone", *SHARDS).code == 0
    return state(tmp_path / "alone")


def old_model(folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "older"}')
    return state(folder)


# --- disks


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_target_on_a_disk_of_its_own(made: Made, tmp_path: Path, alone: dict[str, str], kind: str) -> None:
    """Everything is made on the target's own disk: the working folder and TMPDIR may be read-only."""
    with tmpfs(tmp_path / "disk", "8m") if kind == "tmpfs" else ext4(tmp_path / "disk", 16 << 20) as disk:
        with tmpfs(tmp_path / "cwd", "4k") as here:
            subprocess.run(["mount", "-o", "remount,ro", str(here)], check=True)
            words = command("merge", made("fsdp2_w4"), disk / "a" / "out", *SHARDS)
            env = environment(TMPDIR=str(here), HOME=str(here))
            done = subprocess.run(words, env=env, cwd=here, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done
            done = subprocess.run([*words, "--overwrite"], env=env, cwd=here, capture_output=True, timeout=60)
            assert done.returncode == 0, done
        assert state(disk / "a" / "out") == alone
        assert [path.name for path in disk.rglob("*") if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["fuse", "vfat", "overlay"])
def test_a_merge_leaves_only_its_target_on_other_file_systems_and_is_resumed_there(
    made: Made, tmp_path: Path, alone: dict[str, str], kind: str
) -> None:
    """FUSE keeps a removed file while it is open; FUSE and FAT give a folder another inode number after a while."""
    (tmp_path / "lower").mkdir()
    with (
        fuse(tmp_path / "disk")
        if kind == "fuse"
        else vfat(tmp_path / "disk", 16 << 20)
        if kind == "vfat"
        else overlay(tmp_path / "disk", tmp_path / "lower")
    ) as disk:
        words, count = ["merge", made("fsdp2_w4"), disk / "a" / "out", *SHARDS], tmp_path / "count"
        assert run(*words, env=faults("count", "write", "ckptconv-partial", count=count)).code == 0
        shutil.rmtree(disk / "a")
        late = int(count.read_text()) * 3 // 4
        ran = run(*words, env=faults(f"signal:{int(signal.SIGTERM)}", "write", "ckptconv-partial", at=late))
        assert ran.code == 130
        work = disk / "a" / ".out.ckptconv-partial" / "model"
        kept = [path.name for path in work.glob("*.safetensors")]
        assert kept
        if kind != "overlay":
            Path("/proc/sys/vm/drop_caches").write_text("2")  # forgets inodes
        done = run(*words[:-1], "--json")
        assert sorted(json.loads(done.out)["resumed"]) == sorted(kept)
        assert run(*words, "--overwrite").code == 0
        assert state(disk / "a" / "out") == alone
        assert [path.name for path in (disk / "a").iterdir()] == ["out"]


def test_a_target_in_an_overlays_lower_layer_is_refused_before_anything_is_written(
    made: Made, tmp_path: Path
) -> None:
    """The kernel does not rename such a folder, so that the last step of the merge would fail."""
    old = old_model(tmp_path / "lower" / "out")
    with overlay(tmp_path / "disk", tmp_path / "lower") as disk:
        ran = run("merge", made("fsdp2_w4"), disk / "out", *SHARDS, "--overwrite")
        assert_one_error(ran, r"lower layer of an overlay", names=(f"rm -r {disk / 'out'}",))
        assert state(disk / "out") == old
        assert [path.name for path in disk.iterdir()] == ["out"]
        shutil.rmtree(disk / "out")
        assert run("merge", made("fsdp2_w4"), disk / "out", *SHARDS).code == 0


def test_a_disk_without_inodes_is_not_called_full(made: Made, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "8m", inodes=9) as disk:
        ran = run("merge", made("fsdp2_w4"), disk / "out", *SHARDS)
        assert_one_error(ran, r"no inodes left", names=("df -i",))
        assert list(disk.iterdir()) == []


@pytest.mark.parametrize("mask", [0o027, 0o002])
def test_all_files_follow_the_umask(made: Made, tmp_path: Path, mask: int) -> None:
    words = " ".join(command("merge", made("fsdp2_w4"), tmp_path / "out", *SHARDS))
    subprocess.run(["sh", "-c", f"umask {mask:04o}; {words}"], env=environment(), check=True, timeout=60)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert modes == {0o666 & ~mask}


def test_a_mount_point_is_refused_before_anything_is_written(made: Made, tmp_path: Path) -> None:
    """The work folder would lie on the disk around it, and no rename leads from there."""
    with tmpfs(tmp_path / "disk", "8m") as disk:
        assert_one_error(
            run("merge", made("fsdp2_w4"), disk, *SHARDS), r"mount point", names=(disk / "model",)
        )
        assert list(disk.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


def test_a_file_system_without_locks_is_refused(made: Made, tmp_path: Path) -> None:
    env = faults(f"errno:{errno.ENOSYS}", "lock", "here")
    ran = run("merge", made("fsdp2_w4"), tmp_path / "here" / "out", *SHARDS, env=env)
    assert_one_error(ran, r"no locks", names=(tmp_path / "here",))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL])
def test_overwrite_where_two_folders_cannot_change_places(
    made: Made, tmp_path: Path, alone: dict[str, str], number: int
) -> None:
    out = tmp_path / "here" / "out"
    old_model(out)
    env = faults(f"errno:{number}", "swap", "here")
    assert run("merge", made("fsdp2_w4"), out, *SHARDS, "--overwrite", env=env).code == 0
    assert state(out) == alone
    assert [path.name for path in out.parent.iterdir()] == ["out"]


SWAP = """
import os, signal, sys
import ckptconv.publish.target as room
from ckptconv.__main__ import main
room.exchange = lambda a, b: False
real = os.replace
def replace(a, b):
    if str(b).endswith("/here/out") and not str(a).endswith("/old"):
        os.kill(os.getpid(), int(os.environ["STOP"]))  # the old target is aside, the new one not there yet
    real(a, b)
os.replace = replace
main()
"""


@pytest.mark.parametrize(
    ("stop", "then"), [(signal.SIGKILL, "again"), (signal.SIGKILL, "refused"), (signal.SIGINT, "")]
)
def test_an_old_target_that_was_moved_aside_comes_back(
    made: Made, tmp_path: Path, alone: dict[str, str], stop: signal.Signals, then: str
) -> None:
    """On such a file system there is an instant without a target; a kill that meets it is mended by the next run."""
    out = tmp_path / "here" / "out"
    old = old_model(out)
    words = [sys.executable, "-c", SWAP, "merge", str(made("fsdp2_w4")), str(out), *SHARDS, "--overwrite"]
    done = subprocess.run(
        words, env=environment(STOP=str(int(stop))), capture_output=True, text=True, timeout=60
    )
    if stop != signal.SIGKILL:
        assert done.returncode == 130
        assert state(out) == old
        assert {path.name for path in out.parent.iterdir()} == {"out", ".out.ckptconv-partial"}
        assert run("merge", made("fsdp2_w4"), out, *SHARDS, "--overwrite").code == 0
        assert state(out) == alone
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        return
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert state(out.parent / ".out.ckptconv-partial" / "old") == old
    if then == "again":
        assert run("merge", made("fsdp2_w4"), out, *SHARDS, "--overwrite").code == 0
        assert state(out) == alone
        assert [path.name for path in out.parent.iterdir()] == ["out"]
    else:
        assert_one_error(run("merge", made("fsdp2_w4"), out, *SHARDS), r"already exists")
        assert state(out) == old


def test_every_file_and_folder_is_synced_before_the_rename_and_the_name_after_it(
    made: Made, tmp_path: Path
) -> None:
    """So that after a power cut there is the old target or the new one whole: read from the calls themselves."""
    source = own_copy(made("fsdp2_w4"), tmp_path / "run") / ROLE
    (source / "huggingface" / "code").mkdir()
    (source / "huggingface" / "code" / "modeling_odd.py").write_text("pass")
    log, out = tmp_path / "log", tmp_path / "here" / "out"
    ran = run("merge", source, out, *SHARDS, env=faults("log", CHANGES, tmp_path, say=log))
    assert ran.code == 0, ran
    calls = [tuple(line.split(" ", 1)) for line in log.read_text().splitlines()]
    work = out.parent / ".out.ckptconv-partial" / "model"
    rename = max(number for number, call in enumerate(calls) if call == ("name", str(work)))
    for path in [out, *out.rglob("*")]:
        inside = str(work / path.relative_to(out))
        names = {inside, f"{inside}.part"}
        changed = [
            number
            for number, (kind, where) in enumerate(calls[:rename])
            if (kind == "write" and where in names)
            or (path.is_dir() and kind == "name" and os.path.dirname(where) == inside)
        ]
        synced = [n for n, (kind, where) in enumerate(calls[:rename]) if kind == "sync" and where in names]
        assert synced, f"{inside} is not synced before the rename"
        assert max(synced) > max(changed, default=-1), f"{inside} is changed after it was synced"
    assert ("sync", str(out.parent)) in calls[rename:]
    assert ("sync", str(out.parent.parent)) in calls, "the name of a folder that was made for the target"


# --- links, the source, parents


def test_overwrite_through_a_link_replaces_what_it_leads_to(
    made: Made, tmp_path: Path, alone: dict[str, str]
) -> None:
    old_model(tmp_path / "disk" / "model")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model", target_is_directory=True)
    assert run("merge", made("fsdp2_w4"), tmp_path / "link", *SHARDS, "--overwrite").code == 0
    assert (tmp_path / "link").is_symlink()
    assert state(tmp_path / "disk" / "model") == alone
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["model"]


@pytest.mark.parametrize("inside", ["out", "global_step_7/out", f"{ROLE}/out"])
def test_a_target_inside_the_checkpoint_survives_a_kill_too(made: Made, tmp_path: Path, inside: str) -> None:
    """What a killed run leaves there is not taken for a part of the checkpoint."""
    source = own_copy(made("fsdp2_w4"), tmp_path / "run")
    assert run("merge", source, tmp_path / "alone", *SHARDS).code == 0
    before = state(source)
    words = ["merge", source, source / inside, *SHARDS]
    ran = run(*words, env=faults("kill", "write", "ckptconv-partial", at=9))
    assert ran.code == -signal.SIGKILL
    assert run(*words).code == 0
    assert state(source / inside) == state(tmp_path / "alone")
    assert run(*words, "--overwrite").code == 0
    assert state(source / inside) == state(tmp_path / "alone")
    assert {name: digest for name, digest in state(source).items() if not name.startswith(inside)} == before


def test_what_lay_beside_the_checkpoint_when_a_run_was_killed_does_not_stay(
    made: Made, tmp_path: Path
) -> None:
    source = own_copy(made("fsdp2_w4"), tmp_path / "run")
    extra = source / ROLE / "huggingface" / "added_tokens.json"
    extra.write_text("was here")
    words = ["merge", source, tmp_path / "here" / "out", *SHARDS]
    merging = Paused(*words[1:], calls="name", path="config.json", at=1, flag=tmp_path / "flag")
    merging.kill()
    assert list((tmp_path / "here").rglob("added_tokens.json"))
    extra.unlink()
    assert run(*words).code == 0
    assert not (tmp_path / "here" / "out" / "added_tokens.json").exists()


# --- two at once


def test_the_lock_of_a_killed_merge_blocks_nobody(made: Made, tmp_path: Path, alone: dict[str, str]) -> None:
    words = [made("fsdp2_w4"), tmp_path / "here" / "out", *SHARDS]
    first = Paused(*words, calls="write", path="here", at=9, flag=tmp_path / "flag")
    before = state(tmp_path / "here")
    assert_one_error(run("merge", *words), r"another merge is writing to OUT")
    assert state(tmp_path / "here") == before
    first.kill()
    assert run("merge", *words).code == 0
    assert state(tmp_path / "here" / "out") == alone
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["out"]


def test_of_many_merges_at_once_one_wins(made: Made, tmp_path: Path, alone: dict[str, str]) -> None:
    """Six at the same instant, of two checkpoints: one ends well, each other says one sentence; nothing is mixed."""
    assert run("merge", made("fsdp2_tied_w4"), tmp_path / "other", *SHARDS).code == 0
    possible = [alone, state(tmp_path / "other")]
    for round_ in range(20 if LONG else 1):
        out = tmp_path / "here" / f"out{round_}"
        begun = [start("merge", made(("fsdp2_w4", "fsdp2_tied_w4")[n % 2]), out, *SHARDS) for n in range(6)]
        ends = [finish(each) for each in begun]
        assert sorted(ran.code for ran in ends) == [0, 2, 2, 2, 2, 2], ends
        for ran in ends:
            if ran.code:
                assert_one_error(ran, r"another merge is writing to OUT|OUT already exists")
        assert state(out) in possible
        assert [path.name for path in out.parent.iterdir()] == [out.name]
        shutil.rmtree(out)


def test_a_target_that_another_command_made_meanwhile_stays(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "here" / "out"
    merging = Paused(made("fsdp2_w4"), out, *SHARDS, calls="write", path="here", at=9, flag=tmp_path / "flag")
    old = old_model(out)
    assert_one_error(merging.go(), r"OUT already exists: it appeared during the merge")
    assert state(out) == old
    assert [path.name for path in out.parent.iterdir()] == ["out"]
