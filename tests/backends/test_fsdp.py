"""The fsdp backend on checkpoints that torch and verl wrote: every byte, meshes, steps and roles."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import (
    FIXTURES,
    ROLE,
    VARIANTS,
    VERL,
    Tensors,
    assert_equal,
    opened,
    save_ws1,
    tensors,
)

from ckptconv.backends import open_checkpoint
from ckptconv.errors import CkptconvError
from ckptconv.tensors.checkpoint import Mesh

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
    with pytest.raises(CkptconvError, match=r"no step 3 in this run") as error:
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
