"""The fsdp backend: ranks that are missing, and every way in which ranks can disagree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import (
    ROLE,
    assert_equal,
    edit_json,
    opened,
    own_copy,
    rank_file,
    tensors,
)

from ckptconv.backends import open_checkpoint
from ckptconv.errors import CkptconvError

Made = Callable[[str], Path]


# --- what is missing


@pytest.mark.parametrize(
    "variant", ["fsdp2_w4", "fsdp1_dtensor_w4", "fsdp1_sharded_tensor_w4", "fsdp2_tp_even_w4"]
)
@pytest.mark.parametrize("gone", [0, 3])
def test_a_missing_rank_is_named(made: Made, tmp_path: Path, variant: str, gone: int) -> None:
    run = own_copy(made(variant), tmp_path)
    rank_file(run, gone).unlink()
    with pytest.raises(CkptconvError, match=rf"rank {gone} of 4 is missing") as error:
        open_checkpoint(run)
    assert error.value.wanted == f"model_world_size_4_rank_{gone}.pt"
    assert error.value.found == " ".join("✗" if rank == gone else str(rank) for rank in range(4))
    assert "--also" in str(error.value.hint)


def test_several_missing_ranks_are_named_at_once(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path)
    for rank in (0, 1, 3):
        rank_file(run, rank).unlink()
    with pytest.raises(CkptconvError, match=r"ranks 0-1, 3 of 4 are missing"):
        open_checkpoint(run)


@pytest.mark.parametrize("variant", ["hsdp_w4", "hsdp_oddnames_w4", "hsdp_fsdp1_w4"])
@pytest.mark.parametrize("gone", range(4))
def test_hsdp_converts_from_the_other_replica_and_says_so(
    made: Made, tmp_path: Path, variant: str, gone: int
) -> None:
    run = own_copy(made(variant), tmp_path)
    rank_file(run, gone).unlink()
    assert any(f"rank files {gone} are missing" in note for note in open_checkpoint(run).notes)
    assert_equal(opened(run), tensors(made(variant) / "truth.safetensors"))


@pytest.mark.parametrize(("kept", "enough"), [((0, 1), True), ((0, 3), True), ((0, 2), False), ((3,), False)])
def test_hsdp_needs_one_whole_replica_of_any_ranks(
    made: Made, tmp_path: Path, kept: tuple[int, ...], enough: bool
) -> None:
    """The mesh is [[0, 1], [2, 3]]: ranks 0 and 2 hold the same half."""
    run = own_copy(made("hsdp_w4"), tmp_path)
    for rank in set(range(4)) - set(kept):
        rank_file(run, rank).unlink()
    if enough:
        assert_equal(opened(run), tensors(made("hsdp_w4") / "truth.safetensors"))
    else:
        with pytest.raises(CkptconvError, match=r"ranks .* of 4 are missing"):
            open_checkpoint(run)


@pytest.mark.parametrize("variant", ["fsdp2_w4", "fsdp1_dtensor_w2", "ws1_fsdp1", "fsdp2_tp_uneven_w4"])
def test_fsdp_config_json_may_be_missing(made: Made, tmp_path: Path, variant: str) -> None:
    run = own_copy(made(variant), tmp_path)
    (run / ROLE / "fsdp_config.json").unlink()
    assert_equal(opened(run), tensors(made(variant) / "truth.safetensors"))


# --- ranks that disagree


def test_an_fsdp_config_with_another_world_size_is_refused(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path)
    edit_json(run / ROLE / "fsdp_config.json", world_size=8)
    with pytest.raises(CkptconvError, match=r"disagree on the world size") as error:
        open_checkpoint(run)
    assert error.value.found == "8 and 4"


def test_an_fsdp_config_that_is_no_json_is_refused(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path)
    (run / ROLE / "fsdp_config.json").write_text('{"world_size": ')
    with pytest.raises(CkptconvError, match=r"not valid JSON"):
        open_checkpoint(run)


def test_an_fsdp_config_with_another_version_changes_nothing(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp1_sharded_tensor_w2"), tmp_path)
    edit_json(run / ROLE / "fsdp_config.json", FSDP_version=2)
    assert_equal(opened(run), tensors(made("fsdp1_sharded_tensor_w2") / "truth.safetensors"))


def test_files_of_two_world_sizes_are_refused(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path)
    shutil.copy(rank_file(made("fsdp1_dtensor_w2"), 1), run / ROLE)
    with pytest.raises(CkptconvError, match=r"different world sizes") as error:
        open_checkpoint(run)
    assert error.value.found == "2, 4"


def test_a_rank_outside_the_world_is_refused(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path)
    shutil.copy(rank_file(run, 3), run / ROLE / "model_world_size_4_rank_4.pt")
    with pytest.raises(CkptconvError, match=r"rank \[?4\]? is outside world size 4"):
        open_checkpoint(run)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ("qwen3_moe_w4", r"ranks disagree"),  # other names
        ("fsdp2_tp_even_w4", r"ranks disagree on model\.embed_tokens\.weight"),  # other shapes
        ("fsdp2_bf16_w4", r"ranks disagree on model\.embed_tokens\.weight"),  # another dtype
        ("hsdp_w4", r"ranks disagree on the mesh of model\.embed_tokens\.weight"),  # another mesh
        ("fsdp2_tp_uneven_w4", r"ranks disagree on the mesh of model\.embed_tokens\.weight"),
        ("smalldims_w4", r"ranks disagree"),  # another model
    ],
)
def test_a_rank_file_from_another_save_is_refused(made: Made, tmp_path: Path, other: str, says: str) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path)
    shutil.copy(rank_file(made(other), 2), rank_file(run, 2))
    with pytest.raises(CkptconvError, match=says):
        open_checkpoint(run)


def test_the_file_of_a_smaller_world_under_a_larger_ones_name_is_refused(made: Made, tmp_path: Path) -> None:
    """fsdp1_dtensor_w2 is the same model over two ranks: names, shapes and dtypes agree, slices do not."""
    run = own_copy(made("fsdp2_w4"), tmp_path)
    shutil.copy(rank_file(made("fsdp1_dtensor_w2"), 1), rank_file(run, 2))
    with pytest.raises(CkptconvError, match=r"ranks disagree on the mesh of model\.embed_tokens\.weight"):
        open_checkpoint(run)


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        ("fsdp2_w4", "rank 1 and rank 2 hold the same rank's shards"),
        ("fsdp1_sharded_tensor_w4", "the shards do not cover their tensor"),
        ("fsdp2_tp_even_w4", "rank 1 and rank 2 hold the same rank's shards"),
    ],
)
def test_one_ranks_file_under_anothers_name_is_refused(
    made: Made, tmp_path: Path, variant: str, says: str
) -> None:
    run = own_copy(made(variant), tmp_path)
    shutil.copy(rank_file(run, 1), rank_file(run, 2))
    with pytest.raises(CkptconvError, match=says):
        open_checkpoint(run)


def test_renamed_rank_files_are_placed_by_what_they_say_of_themselves(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path)
    one, two = rank_file(run, 1), rank_file(run, 2)
    one.rename(tmp_path / "aside")
    two.rename(one)
    (tmp_path / "aside").rename(two)
    assert_equal(opened(run), tensors(made("fsdp2_w4") / "truth.safetensors"))


def test_a_tensor_that_one_rank_lacks_is_named(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("lora_w4"), tmp_path)
    shutil.copy(rank_file(made("fsdp2_w4"), 1), rank_file(run, 1))
    with pytest.raises(CkptconvError, match=r"ranks disagree on which tensors there are: rank"):
        open_checkpoint(run)


def test_plain_tensors_that_differ_in_shape_between_ranks_are_refused(tmp_path: Path) -> None:
    import torch

    for rank, rows in enumerate((3, 4)):
        torch.save({"w": torch.zeros(rows, 2)}, tmp_path / f"model_world_size_2_rank_{rank}.pt")
    with pytest.raises(CkptconvError, match=r"ranks disagree on w") as error:
        open_checkpoint(tmp_path)
    assert "[4, 2]" in str(error.value.found)
    assert "[3, 2]" in str(error.value.wanted)


def test_names_of_the_trainer_stay_as_they_are(made: Made) -> None:
    """Even those with a prefix that a model does not have."""
    assert "pretrained_model.lm_head.weight" in opened(made("trl_vhead_w2"))


def test_lora_metadata_is_kept_beside_the_tensors(made: Made) -> None:
    meta = json.loads((made("lora_w4") / ROLE / "lora_train_meta.json").read_text())
    assert open_checkpoint(made("lora_w4")).lora.settings == meta


# --- one rank of another step: verl's own files of two steps of one run

STEPS = Path(__file__).parents[1] / "fixtures/verl_fsdp2_w4/run"
KINDS = ("model", "optim", "extra_state")


def a_step_with_one_rank_of_another(folder: Path, kinds: tuple[str, ...]) -> Path:
    shutil.copytree(STEPS / "global_step_2/actor", folder)
    for kind in kinds:
        name = f"{kind}_world_size_4_rank_1.pt"
        (folder / name).write_bytes((STEPS / "global_step_1/actor" / name).read_bytes())
    return folder


def test_a_rank_whose_scheduler_counts_other_steps_is_refused(tmp_path: Path) -> None:
    folder = a_step_with_one_rank_of_another(tmp_path / "step", KINDS)
    with pytest.raises(CkptconvError, match="the rank files are of different steps") as error:
        open_checkpoint(folder)
    assert error.value.found == "rank 1's learning rate scheduler has last_epoch 1"
    assert error.value.wanted == "2, as on rank 0"


def test_the_way_out_of_another_steps_scheduler_works(tmp_path: Path) -> None:
    folder = a_step_with_one_rank_of_another(tmp_path / "step", ("extra_state",))
    with pytest.raises(CkptconvError, match="move it away"):
        open_checkpoint(folder)
    (folder / "extra_state_world_size_4_rank_1.pt").unlink()
    open_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"PK", b"lr_scheduler" * 9])
def test_a_scheduler_that_cannot_be_read_is_no_reason_to_refuse_the_model(
    tmp_path: Path, content: bytes
) -> None:
    folder = a_step_with_one_rank_of_another(tmp_path / "step", ())
    (folder / "extra_state_world_size_4_rank_1.pt").write_bytes(content)
    open_checkpoint(folder)
