"""Disks and files that fail under a running merge: one clear error, nothing half-published, and then the same again."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.disks import ext4, fill, tmpfs
from support.helpers import ROLE, assert_one_error, own_copy, save_ws1, state, unpacked
from support.killing import CHANGES
from support.shim import SHARDS, Paused, faults, points, run

Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 MB in 12 tensors, so that whole blocks are written."""
    import torch

    tensors = {f"layer_{i}.weight": torch.arange(500_003.0) + i / 7 for i in range(12)}
    folder = tmp_path_factory.mktemp("large")
    return save_ws1(tensors, {"model_type": "odd", "architectures": ["Odd"]}, folder / "run")


# --- writing


@pytest.mark.parametrize("kind", ["page_cache", "o_direct"])
def test_a_disk_that_somebody_fills_meanwhile(large: Path, tmp_path: Path, kind: str) -> None:
    words = [
        large,
        tmp_path / "disk" / "out",
        "--dtype",
        "keep",
        "--max-shard-size",
        "4MB",
        "--workers",
        1,
        "-q",
    ]
    assert run("merge", large, tmp_path / "alone", *words[2:]).code == 0
    with (
        tmpfs(tmp_path / "disk", "40m") if kind == "page_cache" else ext4(tmp_path / "disk", 60 << 20) as disk
    ):
        merging = Paused(*words, calls="write", path=disk, at=9, flag=tmp_path / "flag")
        fill(disk / "ballast")
        ran = merging.go()
        assert_one_error(ran, r"the disk is full", names=(disk,))
        assert [path.name for path in disk.iterdir()] == ["ballast"]
        (disk / "ballast").unlink()
        count = tmp_path / "count"
        assert run("merge", *words, env=faults("count", "direct", disk, count=count)).code == 0
        assert (int(count.read_text()) > 0) == (kind == "o_direct")
        assert state(disk / "out") == state(tmp_path / "alone")


@pytest.mark.parametrize("existing", [False, True], ids=["new_target", "overwrite"])
def test_any_call_that_changes_the_disk_may_fail(made: Made, tmp_path: Path, existing: bool) -> None:
    """ENOSPC, EIO, EDQUOT or EROFS, at one call or from one call on: the old state, or the new one whole."""
    rng, count, out = random.Random(f"fail {existing}"), tmp_path / "count", tmp_path / "here" / "out"
    words = ["merge", made("qwen3_moe_w4") / ROLE, out, *SHARDS, *(["--overwrite"] if existing else [])]
    out.parent.mkdir()
    assert run(*words, env=faults("count", CHANGES, out.parent, count=count)).code == 0
    whole = state(out)
    refused = 0
    for at in points(rng, count, 4):
        shutil.rmtree(out)
        if existing:
            out.mkdir()
            (out / "config.json").write_text("{}")
        before = state(out.parent)
        number = rng.choice([errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
        calls, do = rng.choice([(CHANGES, "once"), ("write,sync", "errno")])
        ran = run(*words, env=faults(f"{do}:{number}", calls, out.parent, at=at))
        if ran.code:
            refused += 1
            assert_one_error(
                ran,
                r"the disk is full|quota on this disk is used up|cannot be (written|copied|moved into place)",
            )
            assert state(out.parent) == before, (at, number, calls)
        else:  # a removal that failed: the model is whole, and the next run removes the rest
            assert state(out) == whole, (at, number, calls)
        again = run(*words)
        if ran.code or existing:
            assert again.code == 0, again
        assert state(out) == whole
        assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert refused


def test_short_reads_and_short_writes_are_taken_up(made: Made, large: Path, tmp_path: Path) -> None:
    for source, *more in ([made("dcp_titan_w2") / "run"], [large, "--dtype", "keep"]):
        words = ["merge", source, tmp_path / "out", *more, "--overwrite", "-q"]
        assert run(*words).code == 0
        whole = state(tmp_path / "out")
        assert run(*words, env=faults("short", "read,write", "")).code == 0
        assert state(tmp_path / "out") == whole


# --- reading


def sources(made: Made) -> dict[str, Path]:
    return {
        "fsdp": made("fsdp2_w4") / ROLE,
        "megatron": unpacked("megatron/qwen3_moe_tp2pp2ep2") / "run",
        "dcp": made("dcp_titan_w2") / "run",
        "deepspeed": unpacked("deepspeed_trainer_z3_w3") / "run",
        "huggingface": made("fsdp2_w4") / "hub",
    }


@pytest.mark.parametrize("kind", ["fsdp", "megatron", "dcp", "deepspeed", "huggingface"])
def test_any_read_of_the_checkpoint_may_fail(made: Made, tmp_path: Path, kind: str) -> None:
    """EIO, ESTALE, EACCES; in the headers and in the tensors."""
    rng, source, count = random.Random(f"read {kind}"), sources(made)[kind], tmp_path / "count"
    # One thread: each opens the files that it reads, so with several the count differs from run to run.
    words = ["merge", source, tmp_path / "here" / "out", *SHARDS, "--workers", "1"]
    assert run(*words, env=faults("count", "read,open", source, count=count)).code == 0
    shutil.rmtree(tmp_path / "here")
    for at in points(rng, count, 2):
        number = rng.choice([errno.EIO, errno.ESTALE, errno.EACCES])
        ran = run(*words, env=faults(f"errno:{number}", "read,open", source, at=at))
        assert ran.code == 2, (at, ran)
        assert len(ran.errors) == 1
        assert os.strerror(number) in ran.err, (at, ran)
        assert "unexpected error" not in ran.err, (at, ran)
        assert str(source) in ran.err, (at, ran)
        assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("kind", ["fsdp", "megatron", "dcp", "deepspeed", "huggingface"])
def test_a_file_that_is_cut_while_it_is_read(made: Made, tmp_path: Path, kind: str) -> None:
    rng, count = random.Random(f"cut {kind}"), tmp_path / "count"
    shutil.copytree(sources(made)[kind], tmp_path / "run")
    words = ["merge", tmp_path / "run", tmp_path / "here" / "out", *SHARDS]
    assert run(*words, env=faults("count", "read", tmp_path / "run", count=count)).code == 0
    shutil.rmtree(tmp_path / "here")
    for at in points(rng, count, 1):
        shutil.rmtree(tmp_path / "run")
        shutil.copytree(sources(made)[kind], tmp_path / "run")
        before = {path: path.stat().st_size for path in (tmp_path / "run").rglob("*")}
        ran = run(*words, env=faults("cut", "read", tmp_path / "run", at=at))
        cut = next(path for path, size in before.items() if path.stat().st_size != size)
        if ran.code == 0 and cut.suffix not in (".pt", ".distcp", ".safetensors"):
            shutil.rmtree(tmp_path / "here")  # a tokenizer's file, say: copied as it was then
            continue
        assert ran.code == 2, (at, cut, ran)
        assert len(ran.errors) == 1
        assert "unexpected error" not in ran.err, (at, cut, ran)
        assert not (tmp_path / "here").exists()


def touch(file: Path) -> None:
    os.utime(file)


def replace_alike(file: Path) -> None:
    """Another file of the same size and time of change, by a rename: only the inode tells."""
    stat = file.stat()
    other = file.with_name("other")
    other.write_bytes(file.read_bytes()[::-1])
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.rename(file)


def grow(file: Path) -> None:
    with file.open("ab") as more:
        more.write(b"more")


CHANGED = [touch, replace_alike, grow, Path.unlink]


@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.parametrize("when", ["planning", "writing"])
def test_a_source_that_changes_meanwhile_is_refused(
    made: Made, tmp_path: Path, change: Callable[[Path], None], when: str
) -> None:
    source = own_copy(made("fsdp2_w4"), tmp_path / "run") / ROLE
    words = [source, tmp_path / "here" / "out", *SHARDS]
    where = (
        {"calls": "read", "path": "rank_3.pt"} if when == "planning" else {"calls": "write", "path": "here"}
    )
    merging = Paused(*words, **where, at=3, flag=tmp_path / "flag")  # type: ignore[arg-type]
    if change is replace_alike and os.major(source.stat().st_dev) == 0:
        merging.kill()
        pytest.skip("no lasting inodes here")
    change(source / "model_world_size_4_rank_1.pt")
    ran = merging.go()
    assert_one_error(
        ran,
        r"(changed|went away|disappeared) while it was read|cannot be (opened|read)",
        names=("model_world_size_4_rank_1.pt",),
    )
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("change", [touch, replace_alike])
def test_a_source_that_changed_between_a_kill_and_the_next_run_is_not_mixed(
    made: Made, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    source = own_copy(made("fsdp2_w4"), tmp_path / "run") / ROLE
    words = [source, tmp_path / "here" / "out", "--max-shard-size", "10KB"]
    if change is replace_alike and os.major(source.stat().st_dev) == 0:
        pytest.skip("no lasting inodes here")
    merging = Paused(*words, "-q", calls="write", path="here", at=12, flag=tmp_path / "flag")
    merging.kill()
    assert list((tmp_path / "here").glob(".out.ckptconv-partial/model.done/*.json"))
    file = source / "model_world_size_4_rank_1.pt"
    bytes_ = file.read_bytes()
    change(file)
    if change is replace_alike:
        stat = file.stat()
        file.write_bytes(bytes_)  # readable again, and still not the file that it was
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    ran = run("merge", *words, "--json")
    assert ran.code == 0, ran
    assert json.loads(ran.out)["resumed"] == []
