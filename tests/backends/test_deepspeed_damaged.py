"""DeepSpeed checkpoints with a part missing, of another save, or broken: one clear error, nothing written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.helpers import assert_one_error, cli, opened, unpacked

from ckptconv import CkptconvError
from ckptconv.backends import open_checkpoint
from ckptconv.errors import Incomplete

OPTIM = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
MODEL = "zero_pp_rank_{}_mp_rank_00_model_states.pt"


def copied(case: str, tmp_path: Path) -> Path:
    """The step folder of a fixture's own copy."""
    run = shutil.copytree(unpacked(f"deepspeed_{case}") / "run", tmp_path / case)
    return next(path for path in run.rglob("global_step7*") if path.is_dir())


@pytest.mark.parametrize(
    ("case", "lost", "says"),
    [
        ("z2_fp16_w3", OPTIM.format(1), "the optim file of rank 1 of 3 is missing"),
        ("z3_bf16_w4", "bf16_" + OPTIM.format(3), "the optim file of rank 3 of 4 is missing"),
        ("z3_bf16_w4", MODEL.format(2), "the model file of rank 2 of 4 is missing"),
        ("universal_z3_w3", MODEL.format(2), "the model file of rank 2 of 3 is missing"),
        ("z2_fp16_w3", "mp_rank_00_model_states.pt", "the model file is missing"),
        ("universal_z1_w2", "zero/one.weight/fp32.pt", "one.weight is missing from the universal checkpoint"),
    ],
)
def test_a_missing_file_is_named(case: str, lost: str, says: str, tmp_path: Path) -> None:
    folder = copied(case, tmp_path)
    (folder / lost).unlink()
    with pytest.raises(Incomplete, match=says):
        open_checkpoint(folder)
    assert_one_error(cli("inspect", folder), says, code=1)


def test_a_missing_file_is_found_on_another_disk(tmp_path: Path) -> None:
    folder = copied("z3_bf16_w4", tmp_path)
    (tmp_path / "other" / "global_step7").mkdir(parents=True)
    for name in ("bf16_" + OPTIM.format(3), MODEL.format(3)):
        shutil.move(folder / name, tmp_path / "other" / "global_step7" / name)
    found = opened(folder, also=[tmp_path / "other"])
    assert found == opened(unpacked("deepspeed_z3_bf16_w4") / "run")


def test_all_optimizer_files_gone_at_stage_3_is_an_error(tmp_path: Path) -> None:
    folder = copied("z3_bf16_w4", tmp_path)
    for path in folder.glob("*_optim_states.pt"):
        path.unlink()
    with pytest.raises(Incomplete, match="the optim files of rank 0, 1, 2, 3 of 4 are missing"):
        open_checkpoint(folder)


def test_all_optimizer_files_gone_at_stage_2_leaves_the_modules_copy_and_says_so(tmp_path: Path) -> None:
    folder = copied("z2_fp16_w3", tmp_path)
    for path in folder.glob("*_optim_states.pt"):
        path.unlink()
    checkpoint = open_checkpoint(folder)
    assert "the module's copy of the weights is read" in checkpoint.notes[0]
    assert {t.view.dtype for name, t in checkpoint.tensors.items() if "weight" in name} == {"float16"}


def test_a_file_of_another_save_is_refused(tmp_path: Path) -> None:
    folder = copied("z2_fp16_w3", tmp_path)
    shutil.copy(folder / OPTIM.format(2), folder / OPTIM.format(3))
    with pytest.raises(CkptconvError, match="optim files of more ranks than wrote the checkpoint"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("case", "other", "name", "what"),
    [
        ("z2_fp16_w3", "z3_fp32_w3", OPTIM.format(1), "files are of different saves"),  # another stage
        (
            "z2_fp32_w4",
            "z2_fp16_w3",
            OPTIM.format(1),
            "files are of different saves",
        ),  # another number of ranks
        ("z3_fp32_w3", "trainer_z3_w3", MODEL.format(0), "the partitions end before"),  # another model
    ],
)
def test_files_of_different_saves_are_refused(
    case: str, other: str, name: str, what: str, tmp_path: Path
) -> None:
    folder, source = copied(case, tmp_path), copied(other, tmp_path)
    shutil.copy(source / name, folder / name)
    with pytest.raises(CkptconvError, match=what):
        open_checkpoint(folder)


def test_ranks_that_changed_places_are_found_by_their_own_maps(tmp_path: Path) -> None:
    folder = copied("z2_fp32_w4", tmp_path)
    one, two = folder / OPTIM.format(1), folder / OPTIM.format(2)
    one.rename(folder / "aside")
    two.rename(one)
    (folder / "aside").rename(two)
    with pytest.raises(CkptconvError, match=r"own map places .* elsewhere"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", [OPTIM.format(1), "mp_rank_00_model_states.pt"])
def test_a_truncated_file_is_refused(name: str, tmp_path: Path) -> None:
    folder = copied("z2_fp16_w3", tmp_path)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) * 2 // 3])
    assert_one_error(cli("merge", folder, tmp_path / "out"), "truncated or damaged")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mp_rank_01_model_states.pt", "more model parallel ranks than wrote the checkpoint"),
        (
            "layer_03-model_00-model_states.pt",
            "a pipeline's layer is next to a model file that holds the weights",
        ),
        ("layer_0_expert_2_mp_rank_00_model_states.pt", "next to a model file that lists no experts"),
        ("expp_rank_0_mp_rank_00_optim_states.pt", "next to a model file that lists no experts"),
        ("expert_2_mp_rank_00_model_states.pt", "experts that old versions of DeepSpeed saved are not read"),
    ],
)
def test_a_file_of_another_layout_is_refused(name: str, says: str, tmp_path: Path) -> None:
    """Whatever else is there: leaving it out would lose weights."""
    folder = copied("z2_fp16_w3", tmp_path)
    shutil.copy(folder / "mp_rank_00_model_states.pt", folder / name)
    with pytest.raises(CkptconvError, match=says):
        open_checkpoint(folder)


def test_a_parameter_that_the_model_file_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = copied("universal_z1_w2", tmp_path)
    shutil.copytree(folder / "zero" / "one.weight", folder / "zero" / "two.weight")
    with pytest.raises(CkptconvError, match=r"the model file does not list two\.weight"):
        open_checkpoint(folder)
