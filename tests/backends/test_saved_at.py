"""Files that were last changed long before or after the others of their folder, and files that stand for other files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path

import pytest
from support.helpers import ROLE, cli, own_copy, unpacked

from ckptconv import CkptconvError
from ckptconv.backends import open_checkpoint

Made = Callable[[str], Path]
DAY, MINUTE = 86_400, 60


def dated(paths: Sequence[Path], *seconds: float) -> None:
    """Set the times of files: seconds after a day in 2026."""
    for path, second in zip(sorted(paths), seconds, strict=True):
        os.utime(path, (1_790_000_000 + second,) * 2)


def times(notes: Sequence[str]) -> list[str]:
    return [note for note in notes if "changed at" in note]


@pytest.mark.parametrize("late", [DAY, -DAY, 20 * MINUTE])
def test_a_rank_file_of_another_time_is_a_note_on_the_screen(made: Made, tmp_path: Path, late: int) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path)
    dated([*(run / ROLE).glob("model_world_*")], 0, 3, late, 5)
    (note,) = times(open_checkpoint(run).notes)
    assert note.startswith("model_world_size_4_rank_2.pt: changed at")
    assert "mixes two saves" in cli("merge", run, tmp_path / "out", columns=400).flat


@pytest.mark.parametrize(
    "seconds",
    [
        (0, 1, 2, 3),  # a save
        (0, 9 * MINUTE, 1, 2),  # a slow rank
        (0, DAY, 2 * DAY, 3 * DAY),  # copied one after another, slowly
        (0, 0, 0, 0),
    ],
)
def test_times_as_saves_and_copies_leave_them_are_silent(
    made: Made, tmp_path: Path, seconds: Sequence[int]
) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path)
    dated([*(run / ROLE).glob("model_world_*")], *seconds)
    assert times(open_checkpoint(run).notes) == []


def test_folders_of_two_disks_may_have_been_copied_at_two_times(made: Made, tmp_path: Path) -> None:
    run, other = own_copy(made("fsdp2_w4"), tmp_path / "run"), tmp_path / "other"
    other.mkdir()
    dated([*(run / ROLE).glob("model_world_*")], 0, 1, DAY, DAY + 1)
    for rank in (2, 3):
        shutil.move(run / ROLE / f"model_world_size_4_rank_{rank}.pt", other)
    assert times(open_checkpoint(run, also=[other]).notes) == []


def of_dcp(made: Made, to: Path, *seconds: float) -> Path:
    run = shutil.copytree(made("dcp_small_w4") / "run", to / "run")
    (home,) = {path.parent for path in run.rglob("*.distcp")}
    dated([*home.glob("*.distcp"), home / ".metadata"], *seconds)
    return home


def test_a_distcp_file_that_is_younger_than_the_metadata_is_a_note(made: Made, tmp_path: Path) -> None:
    (note,) = times(open_checkpoint(of_dcp(made, tmp_path, 10, 1, 2, 5 * MINUTE, 3)).notes)
    assert note.startswith("__2_0.distcp: changed at")
    assert "after .metadata" in note


@pytest.mark.parametrize("seconds", [(10, 1, 2, 3, 4), (0, 90, 180, 270, 360), (10, 12, 1, 2, 3)])
def test_metadata_of_any_likely_time_is_silent(made: Made, tmp_path: Path, seconds: Sequence[int]) -> None:
    """Written last, copied first, and written by a clock that is a little slow."""
    assert times(open_checkpoint(of_dcp(made, tmp_path, *seconds)).notes) == []


def _save(rank: int, folder: str) -> None:
    """One of two ranks that save an evenly sharded tensor, and one that is all ones, as a new norm is."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(5)
    whole = {"layers.0.weight": torch.randn(64, 32), "norm.weight": torch.ones(64)}
    dcp.save(
        {k: distribute_tensor(v, mesh, [Shard(0)]) for k, v in whole.items()}, checkpoint_id=f"{folder}/run"
    )
    dist.destroy_process_group()


def test_a_distcp_file_that_is_a_copy_of_another_is_refused(tmp_path: Path) -> None:
    """Both are as long, and what lies where is the same, so that only the checksums tell."""
    ranks = [get_context("spawn").Process(target=_save, args=(rank, str(tmp_path))) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
        assert rank.exitcode == 0
    run = tmp_path / "run"
    assert len(open_checkpoint(run).tensors) == 2
    shutil.copy(run / "__0_0.distcp", run / "__1_0.distcp")
    with pytest.raises(CkptconvError, match="hold the same bytes for different parts"):
        open_checkpoint(run)


def test_a_distcp_file_that_is_there_twice_with_other_bytes_is_refused(made: Made, tmp_path: Path) -> None:
    run = shutil.copytree(made("dcp_small_w4") / "run", tmp_path / "run")
    other = tmp_path / "other"
    other.mkdir()
    path = Path(shutil.copy(next(run.rglob("__1_0.distcp")), other))
    open_checkpoint(run, also=[other])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    shutil.copystat(next(run.rglob("__1_0.distcp")), path)  # the same size and time
    with pytest.raises(CkptconvError, match=r"two files named .* have different bytes"):
        open_checkpoint(run, also=[other])


def test_a_stage_of_another_time_is_a_note_where_each_rank_has_a_folder(tmp_path: Path) -> None:
    """verl's model.pt has no iteration, and two stages have no tensor in common that could differ."""
    run = Path(shutil.copytree(unpacked("megatron/qwen3_verl_legacy_vpp") / "run", tmp_path / "run"))
    files = sorted(run.rglob("model.pt"))
    dated(files, *range(len(files)))
    assert times(open_checkpoint(run).notes) == []
    dated(files, *range(len(files) - 1), DAY)
    (note,) = times(open_checkpoint(run).notes)
    assert note.startswith(f"{files[-1].parent.name}/model.pt: changed at")


def test_a_note_that_many_folders_give_is_given_once(tmp_path: Path) -> None:
    run = Path(shutil.copytree(unpacked("nanotron_llama_tp2_pp2") / "run", tmp_path / "run"))
    for path in run.rglob("*.safetensors"):
        dated([path], DAY if "pp-rank-0-of-2_tp-rank-1-of-2" in path.name else 0)
    assert len(times(open_checkpoint(run).notes)) == 1
