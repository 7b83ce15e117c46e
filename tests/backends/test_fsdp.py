"""The fsdp backend on checkpoints that torch and verl wrote: every byte, and every way in which ranks can disagree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import (
    FIXTURES,
    ROLE,
    VARIANTS,
    VERL,
    Tensors,
    assert_equal,
    edit_json,
    opened,
    own_copy,
    rank_file,
    save_ws1,
    tensors,
)

from ckptconv.backends import open_checkpoint
from ckptconv.checkpoint import Mesh
from ckptconv.errors import CkptconvError

Made = Callable[[str], Path]


def only_lora(found: Tensors) -> Tensors:
    return {name: tensor for name, tensor in found.items() if "lora_" in name}


# --- every byte


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_reads_as_what_torch_gathered(made: Made, variant: str) -> None:
    truth = tensors(made(variant) / "truth.safetensors")
    assert_equal(opened(made(variant)), only_lora(truth) if variant == "lora_only_w2" else truth)


def test_every_checkpoint_that_is_made_is_tested(made: Made) -> None:
    groups = {made(variant).parent for variant in ("ws1_fsdp1", "critic_w2", "arch_llama_w2", "fsdp2_w4")}
    assert {path.parent.name for group in groups for path in group.glob("*/about.json")} == set(VARIANTS)


@pytest.mark.parametrize(("case", "role"), VERL)
def test_what_verl_wrote_reads_as_what_torch_gathered(case: str, role: str) -> None:
    truth = tensors(FIXTURES / case / "truth" / role / "truth.safetensors")
    found = opened(FIXTURES / case / "run" / role)
    assert_equal(found, only_lora(truth) if case == "verl_lora_only_w2" else truth)


OLD = sorted(FIXTURES.glob("torch_*/*_w*"))


@pytest.mark.skipif(not OLD, reason="no fixtures of older torch here")
@pytest.mark.parametrize("folder", OLD, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_an_older_torch_wrote_reads_as_what_it_gathered(folder: Path) -> None:
    assert_equal(opened(folder), tensors(folder.parent / "truth.safetensors"))


def test_plain_tensors_of_one_rank_read_as_they_are(tmp_path: Path) -> None:
    import torch

    whole = torch.arange(60.0).reshape(6, 10)
    views = {
        "whole": whole,
        "rows": whole[2:5],
        "turned": whole.T,
        "step": whole[::2, 1::3],
        "scalar": whole[3, 3],
    }
    found = opened(save_ws1(views, {}, tmp_path))
    assert {name: (t.shape, t.data) for name, t in found.items()} == {
        name: (tuple(view.shape), view.contiguous().numpy().tobytes()) for name, view in views.items()
    }


# --- meshes, steps, roles


@pytest.mark.parametrize(
    ("variant", "meshes"),
    [
        ("ws1_fsdp1", ()),
        ("fsdp1_sharded_tensor_w2", ()),
        ("fsdp2_w4", (Mesh((4,), ("fsdp",)),)),
        ("hsdp_w4", (Mesh((2, 2), ("ddp", "fsdp")),)),
        ("hsdp_oddnames_w4", (Mesh((2, 2), ("replica_group", "dp_shard_cp")),)),
        ("fsdp2_tp_uneven_w4", (Mesh((2, 2), ("dp", "tp")), Mesh((2,), ("dp",)))),
    ],
)
def test_meshes_are_said_as_the_trainer_named_them(
    made: Made, variant: str, meshes: tuple[Mesh, ...]
) -> None:
    assert open_checkpoint(made(variant)).meshes == meshes


@pytest.mark.parametrize("variant", ["hsdp_w4", "hsdp_oddnames_w4", "hsdp_fsdp1_w4"])
def test_a_replica_of_each_part_is_kept_beside_it(made: Made, variant: str) -> None:
    stored = open_checkpoint(made(variant)).tensors
    assert {tensor.replica_bytes == tensor.view.nbytes for tensor in stored.values()} == {True}


def test_placements_are_said_in_torchs_words(made: Made) -> None:
    stored = open_checkpoint(made("fsdp2_tp_even_w4")).tensors
    assert stored["model.layers.0.self_attn.q_proj.weight"].placement == "(_StridedShard(0), Shard(0))"
    assert stored["model.layers.0.self_attn.o_proj.weight"].placement == "(Shard(0), Shard(1))"
    assert open_checkpoint(made("shard1_w2")).tensors["lm_head.weight"].placement == "(Shard(1))"
    assert open_checkpoint(made("buffers_w2")).tensors["temperature"].placement == ""


@pytest.mark.parametrize("inside", ["", "global_step_7", ROLE])
def test_run_step_and_role_folders_lead_to_the_same_place(made: Made, inside: str) -> None:
    found = open_checkpoint(made("fsdp2_w4") / inside)
    assert (found.root, found.step, found.role) == (made("fsdp2_w4") / ROLE, 7, "actor")
    assert found.world_size == len(found.files) == 4


RUN = FIXTURES / "verl_fsdp2_w4" / "run"


def test_the_runs_own_latest_step_is_taken() -> None:
    assert (RUN / "latest_checkpointed_iteration.txt").read_text() == "2"
    assert open_checkpoint(RUN).step == 2


def test_a_step_that_is_asked_for_is_taken() -> None:
    truth = tensors(FIXTURES / "verl_fsdp2_w4" / "truth" / "global_step_1" / "actor" / "truth.safetensors")
    assert_equal(opened(RUN, step=1), truth)
    assert opened(RUN, step=2) != opened(RUN, step=1)


def test_without_a_latest_file_the_highest_step_is_taken(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        shutil.copytree(RUN / "global_step_1", tmp_path / f"global_step_{step}")
    assert open_checkpoint(tmp_path).step == 10


def test_a_step_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(CkptconvError, match=r"step 3 is not in this run") as error:
        open_checkpoint(RUN, step=3)
    assert error.value.found == "steps 1, 2"


def test_a_latest_file_that_names_a_missing_step_is_refused(tmp_path: Path) -> None:
    shutil.copytree(RUN, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "global_step_2")
    with pytest.raises(CkptconvError, match=r"calls step 2 its latest, but has no folder") as error:
        open_checkpoint(tmp_path / "run")
    assert "--step 1" in str(error.value.hint)


def test_the_actor_is_taken_and_the_critic_is_said() -> None:
    found = open_checkpoint(RUN)
    assert found.role == "actor"
    assert any("critic" in note for note in found.notes)
    assert open_checkpoint(RUN / "global_step_2" / "critic").role == "critic"


def test_optimizer_and_trainer_state_are_said_to_be_skipped() -> None:
    sizes = {item.what: item.nbytes for item in open_checkpoint(RUN).skipped}
    actor = RUN / "global_step_2" / "actor"
    assert sizes["optimizer"] == sum(path.stat().st_size for path in actor.glob("optim_*"))
    assert sizes["trainer state"] == sum(path.stat().st_size for path in actor.glob("extra_state_*"))


# --- rank files on several disks


def scatter(source: Path, target: Path, nodes: list[list[int]]) -> list[Path]:
    """A run folder a node, each with some ranks' files; the first has the assets."""
    runs = []
    for number, ranks in enumerate(nodes):
        run = target / f"node{number}"
        (run / ROLE).mkdir(parents=True)
        for rank in ranks:
            shutil.copy(rank_file(source, rank), run / ROLE)
        runs.append(run)
    shutil.copytree(source / ROLE / "huggingface", runs[0] / ROLE / "huggingface")
    return runs


@pytest.mark.parametrize("inside", ["", "global_step_7", ROLE])
@pytest.mark.parametrize("nodes", [[[0, 1], [2, 3]], [[3], [0, 2], [1]]], ids=["two", "three"])
def test_rank_files_on_several_disks_are_one_checkpoint(
    made: Made, tmp_path: Path, nodes: list[list[int]], inside: str
) -> None:
    first, *others = (run / inside for run in scatter(made("fsdp2_w4"), tmp_path, nodes))
    assert_equal(opened(first, also=others), tensors(made("fsdp2_w4") / "truth.safetensors"))


def test_the_config_may_lie_on_another_disk(made: Made, tmp_path: Path) -> None:
    second, first = scatter(made("fsdp2_w4"), tmp_path, [[2, 3], [0, 1]])
    assert open_checkpoint(first, also=[second]).assets == second / ROLE / "huggingface"


def test_a_rank_file_that_lies_on_two_disks_is_read_once(made: Made, tmp_path: Path) -> None:
    first, second = scatter(made("fsdp2_w4"), tmp_path, [[0, 1, 2], [2, 3]])
    assert_equal(opened(first, also=[second]), tensors(made("fsdp2_w4") / "truth.safetensors"))


def test_two_different_files_of_one_rank_are_refused(made: Made, tmp_path: Path) -> None:
    first, second = scatter(made("fsdp2_w4"), tmp_path, [[0, 1, 2], [2, 3]])
    shutil.copy(rank_file(made("qwen3_moe_w4"), 2), rank_file(second, 2))
    with pytest.raises(CkptconvError, match=r"rank 2 is there twice, with different sizes"):
        open_checkpoint(first, also=[second])


@pytest.mark.xfail(strict=True, reason="_other takes the latest step of the other disk: two steps are mixed")
def test_the_step_of_the_first_disk_is_taken_on_the_others(tmp_path: Path) -> None:
    for node, ranks in (("a", (0, 1)), ("b", (2, 3))):
        for step in (1, 2):
            folder = tmp_path / node / f"global_step_{step}" / "actor"
            folder.mkdir(parents=True)
            for rank in ranks:
                shutil.copy(
                    RUN / f"global_step_{step}" / "actor" / f"model_world_size_4_rank_{rank}.pt", folder
                )
    truth = FIXTURES / "verl_fsdp2_w4" / "truth" / "global_step_1" / "actor" / "truth.safetensors"
    assert_equal(opened(tmp_path / "a", step=1, also=[tmp_path / "b"]), tensors(truth))


@pytest.mark.xfail(strict=True, reason="_other takes the actor of the other disk beside a critic")
def test_the_role_of_the_first_disk_is_taken_on_the_others(tmp_path: Path) -> None:
    for node, ranks in (("a", (0, 1)), ("b", (2, 3))):
        for role in ("actor", "critic"):
            folder = tmp_path / node / "global_step_2" / role
            folder.mkdir(parents=True)
            for rank in ranks:
                shutil.copy(RUN / "global_step_2" / role / f"model_world_size_4_rank_{rank}.pt", folder)
    truth = FIXTURES / "verl_fsdp2_w4" / "truth" / "global_step_2" / "critic" / "truth.safetensors"
    assert_equal(opened(tmp_path / "a" / "global_step_2" / "critic", also=[tmp_path / "b"]), tensors(truth))


@pytest.mark.xfail(strict=True, reason="_other does not look at the step")
def test_an_also_folder_of_another_step_is_refused(tmp_path: Path) -> None:
    """Steps have the same names and shapes, so nothing else would tell."""
    for step, ranks in ((1, (0, 1)), (2, (2, 3))):
        folder = tmp_path / f"global_step_{step}" / "actor"
        folder.mkdir(parents=True)
        for rank in ranks:
            shutil.copy(RUN / f"global_step_{step}" / "actor" / f"model_world_size_4_rank_{rank}.pt", folder)
    with pytest.raises(CkptconvError, match="step"):
        open_checkpoint(tmp_path / "global_step_1", also=[tmp_path / "global_step_2"])


@pytest.mark.parametrize(
    "folder",
    [
        "nowhere",
        pytest.param("empty", marks=pytest.mark.xfail(strict=True, reason="asks for the run's folder")),
    ],
)
def test_an_also_folder_without_rank_files_is_refused(made: Made, tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CkptconvError, match=r"no such folder|no rank files") as error:
        open_checkpoint(made("fsdp2_w4"), also=[tmp_path / folder])
    assert "--also" in str(error.value.hint)


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
    with pytest.raises(CkptconvError, match=r"not readable as JSON"):
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
        ("hsdp_w4", r"same part|not cover|overlap|hole|missing"),  # other placements
        ("fsdp2_tp_uneven_w4", r"same part|not cover|overlap|hole|missing"),
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
    with pytest.raises(CkptconvError):
        open_checkpoint(run)


@pytest.mark.parametrize("variant", ["fsdp2_w4", "fsdp1_sharded_tensor_w4", "fsdp2_tp_even_w4"])
def test_one_ranks_file_under_anothers_name_is_refused(made: Made, tmp_path: Path, variant: str) -> None:
    run = own_copy(made(variant), tmp_path)
    shutil.copy(rank_file(run, 1), rank_file(run, 2))
    with pytest.raises(CkptconvError):
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
    assert open_checkpoint(made("lora_w4")).extras["lora"] == meta
