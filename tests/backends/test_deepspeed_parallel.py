"""DeepSpeed's checkpoints over tensor parallel ranks, pipeline stages and expert parallel ranks, bit for bit."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from support.helpers import FIXTURES, Tensor, Tensors, assert_equal, cli, opened, parse, tensors, unpacked

from ckptconv import CkptconvError, inspect, merge
from ckptconv.backends import open_checkpoint
from ckptconv.errors import Incomplete
from ckptconv.plan import Options
from ckptconv.read.replicas import require_equal

CASES = sorted(
    match[1]
    for path in FIXTURES.glob("deepspeed_*.tar.xz")
    if (
        match := re.match(
            r"deepspeed_((tp\d|universal_(?:tp|pipe)|pipe\d|moe_z\d_ep|autoep|neox|megatron_ds).*)\.tar\.xz",
            path.name,
        )
    )
)
OPTIM = "zero_pp_rank_{}_mp_rank_{:02d}_optim_states.pt"
_EXPERT = re.compile(r"mlp\.moe\.deepspeed_moe\.experts\.deepspeed_experts\.")


def run_of(case: str) -> Path:
    return unpacked(f"deepspeed_{case}") / "run"


def copied(case: str, tmp_path: Path) -> Path:
    """The run of a fixture's own copy."""
    return shutil.copytree(run_of(case), tmp_path / case)


def truth(case: str) -> Tensors:
    """What the runtime held, under the Hub's names."""
    held = parse((unpacked(f"deepspeed_{case}") / "truth.safetensors").read_bytes())
    if case.startswith("autoep"):
        return autoep_truth(case, held)
    return {
        _EXPERT.sub("block_sparse_moe.experts.", name).replace(
            "mlp.moe.deepspeed_moe.gate.wg.", "block_sparse_moe.gate."
        ): tensor
        for name, tensor in held.items()
    }


def autoep_truth(case: str, held: Tensors) -> Tensors:
    """AutoEP's fused experts one by one: w1 is the gate, w3 up, w2 down."""
    mixtral = {"w1": "w1", "w2": "w2", "w3": "w3"}
    qwen3 = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    module, names = (".block_sparse_moe.", mixtral) if "z1" in case else (".mlp.", qwen3)
    found: Tensors = {}
    for name, tensor in held.items():
        head, _, which = name.rpartition(".experts.")
        if not head:
            found[name.replace(".mlp.router.gate.", f"{module}gate.")] = tensor
            continue
        count, *shape = tensor.shape
        size = len(tensor.data) // count
        for number in range(count):
            expert = f"{head.removesuffix('.mlp')}{module}experts.{number}.{names[which]}.weight"
            data = tensor.data[number * size : (number + 1) * size]
            found[expert] = Tensor(tensor.dtype, tuple(shape), data)
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_what_the_runtime_held(case: str, tmp_path: Path) -> None:
    merge(run_of(case), tmp_path / "out", options=Options(dtype="keep"), check_replicas=True)
    assert_equal(tensors(tmp_path / "out"), truth(case))


@pytest.mark.parametrize("case", CASES)
def test_verify_agrees_with_the_checkpoint(case: str, tmp_path: Path) -> None:
    merge(run_of(case), tmp_path / "out")
    done = cli("verify", tmp_path / "out", "--against", run_of(case))
    assert done.code == 0, done.out + done.err


@pytest.mark.parametrize(
    ("case", "mesh"),
    [
        ("tp2_z1_w2", "tp 2"),
        ("tp3_z2_w6", "dp 2 × tp 3"),
        ("tp2_z3_w4", "dp 2 × tp 2"),
        ("pipe3_z1_w3", "pp 3"),
        ("pipe2_z1_w4", "pp 2 × dp 2"),
    ],
)
def test_inspect_shows_the_mesh_and_every_rank(case: str, mesh: str) -> None:
    found = inspect(run_of(case))
    assert [str(each) for each in found.meshes] == [mesh]
    assert [rank.rank for rank in found.ranks if rank.nbytes] == list(range(found.world_size))
    assert found.world_size == int(case[-1])
    assert all(item.nbytes > 0 for item in open_checkpoint(run_of(case)).skipped)


def test_inspect_says_how_experts_are_spread() -> None:
    found = inspect(run_of("moe_z2_ep2_w4"))
    assert found.layout == "DeepSpeed ZeRO-2 checkpoint, experts over 2 expert parallel ranks"
    assert [rank.rank for rank in found.ranks if rank.nbytes] == [0, 1, 2, 3]


def test_placements_are_those_of_the_affine_map() -> None:
    found = open_checkpoint(run_of("tp2_z1_w2")).tensors
    layer = "model.layers.1."
    assert found[layer + "self_attn.q_proj.weight"].placement == "Shard(0) over tp, stage 1, flat"
    assert found[layer + "self_attn.o_proj.weight"].placement == "Shard(1) over tp, stage 1, flat"
    assert found[layer + "self_attn.q_norm.weight"].placement == "Replicate over tp, stage 1, flat"
    assert len(found[layer + "self_attn.q_norm.weight"].replicas) == 1


def test_a_tied_embedding_is_cut_by_rows() -> None:
    found = open_checkpoint(run_of("tp2_z3_w4")).tensors
    assert found["model.embed_tokens.weight"].placement == "Shard(0) over tp, stage 3, flat"
    assert found["lm_head.weight"].view == found["model.embed_tokens.weight"].view


def test_stages_store_a_tied_embedding_twice_and_both_are_compared() -> None:
    checkpoint = open_checkpoint(run_of("pipe3_z1_w3"))
    assert len(checkpoint.tensors["0.weight"].replicas) == 1
    require_equal(checkpoint)


def test_a_universal_checkpoint_of_a_pipeline_has_no_layer_files(tmp_path: Path) -> None:
    """ds_to_universal leaves them out, so a shared module is known by its key alone: it is layer 0."""
    run = run_of("universal_pipe2_z1_w2")
    merge(run, tmp_path / "out", options=Options(dtype="keep"))
    assert_equal(tensors(tmp_path / "out"), truth("universal_pipe2_z1_w2"))
    assert "tied_modules.embed.weight" in {path.name for path in run.glob("*_universal/zero/*")}


def test_layers_that_no_class_has_are_read_under_their_numbers(tmp_path: Path) -> None:
    run = unpacked("deepspeed_pipeline_z1_w2") / "run"
    assert sorted(opened(run)) == [f"{n}.{what}" for n in range(4) for what in ("bias", "weight")]
    config = run_of("pipe2_z1_w4") / "config.json"
    with pytest.raises(CkptconvError, match="a layer of the pipeline is not a module of LlamaForCausalLM"):
        merge(run, tmp_path / "out", config=config)


def test_experts_of_a_model_that_no_class_has_keep_their_names() -> None:
    held = unpacked("deepspeed_moe_z2_w2")
    names = opened(held / "run")
    assert len([name for name in names if "deepspeed_experts" in name]) == 8
    wanted = parse((held / "truth.safetensors").read_bytes())
    assert_equal({name: names[name] for name in wanted if ".experts." not in name},
                 {name: t for name, t in wanted.items() if ".experts." not in name})  # fmt: skip


@pytest.mark.parametrize(
    ("case", "lost", "says"),
    [
        ("tp2_z1_w2", "mp_rank_01_model_states.pt", "the model file of rank 0 of 1 is missing"),
        ("tp2_z1_w2", "bf16_" + OPTIM.format(0, 1), "the optim file of rank 0 of 1 is missing"),
        ("tp3_z2_w6", OPTIM.format(1, 2), "the optim file of rank 1 of 2 is missing"),
        ("tp3_z2_w6", "*mp_rank_01*", "the files of model parallel rank 1 of 3 are missing"),
        ("tp2_z3_w4", "zero_pp_rank_1_mp_rank_01_model_states.pt", "the model file of rank 1 of 2 is missing"),
        ("pipe3_z1_w3", "*mp_rank_02*", "the files of stage 2 of 3 are missing"),
        ("pipe3_z1_w3", "layer_02-model_states.pt", "the file of layer 2 is missing"),
        ("pipe3_z1_w3", "layer_00-model_states.pt", "the layer file with the shared module 'embed' is missing"),
        ("pipe3_z1_w3", "layer_*", "the layer files of a pipeline are missing"),
        ("moe_z1_ep2_w2", "layer_1_expert_4*", "expert 4 of MoE layer 1 is missing"),
        ("moe_z1_ep2_w2", "layer_1_expert_*", "expert 0 of MoE layer 1 is missing"),
        ("moe_z2_ep2_w4", "bf16_" + OPTIM.format(3, 0), "the optim file of rank 3 of 4 is missing"),
        ("autoep_z1_ep2_w2", "layer_0_expert_5*", "expert 5 of MoE layer 0 is missing"),
        ("autoep_z1_ep2_w2", "layer_*", "expert 0 of MoE layer 0 is missing"),
        ("autoep_z3_ep2_w4", "bf16_" + OPTIM.format(2, 0), "the optim file of rank 2 of 4 is missing"),
    ],
)  # fmt: skip
def test_a_missing_file_is_named(case: str, lost: str, says: str, tmp_path: Path) -> None:
    run = copied(case, tmp_path)
    for path in list((run / "global_step7").glob(lost)):
        path.unlink()
    with pytest.raises(Incomplete, match=says):
        open_checkpoint(run)


def test_tensor_parallel_files_that_changed_places_are_refused(tmp_path: Path) -> None:
    step = copied("tp2_z1_w2", tmp_path) / "global_step7"
    one, two = (step / ("bf16_" + OPTIM.format(0, rank)) for rank in (0, 1))
    one.rename(step / "aside")
    two.rename(one)
    (step / "aside").rename(two)
    with pytest.raises(CkptconvError, match="the partitions end before lm_head"):
        open_checkpoint(step)


def test_a_stray_layer_is_reported(tmp_path: Path) -> None:
    step = copied("pipe3_z1_w3", tmp_path) / "global_step7"
    shutil.copy(run_of("pipe2_z1_w4") / "global_step7" / "layer_04-model_states.pt", step)
    assert any("no optimizer holds a weight of layer 4" in note for note in open_checkpoint(step).notes)
    assert not any("no optimizer" in note for note in open_checkpoint(run_of("pipe3_z1_w3")).notes)


@pytest.mark.parametrize(
    ("case", "other", "name", "says"),
    [
        ("tp2_z1_w2", "tp3_z2_w6", "mp_rank_01_model_states.pt", "the model files are of different saves"),
        ("pipe3_z1_w3", "pipe2_z1_w4", "mp_rank_01_model_states.pt", "the model files are of different saves"),
        ("pipe3_z1_w3", "pipe2_z1_w4", "layer_03-model_states.pt", "module's own copy of .* does not have"),
        ("moe_z1_ep2_w2", "moe_z2_ep2_w4", "mp_rank_00_model_states.pt", "different saves"),
    ],
)  # fmt: skip
def test_files_of_different_saves_are_refused(
    case: str, other: str, name: str, says: str, tmp_path: Path
) -> None:
    step = copied(case, tmp_path) / "global_step7"
    shutil.copy(run_of(other) / "global_step7" / name, step / name)
    with pytest.raises(CkptconvError, match=says):
        merge(step.parent, tmp_path / "out")


def test_an_experts_file_of_another_save_is_refused(tmp_path: Path) -> None:
    step = copied("moe_z1_ep2_w2", tmp_path) / "global_step7"
    name = "layer_0_expert_5_mp_rank_00_model_states.pt"
    shutil.copy(step / "layer_0_expert_4_mp_rank_00_model_states.pt", step / name)
    with pytest.raises(CkptconvError, match="the file of expert 5 holds something else"):
        open_checkpoint(step)
    shutil.copy(run_of("moe_z0_ep2_w2") / "global_step7" / name, step / name)
    with pytest.raises(CkptconvError, match=r"own copy of .*deepspeed_experts\.5\..* does not have"):
        merge(step.parent, tmp_path / "out")


def test_without_optimizer_files_the_modules_copies_are_read_and_a_note_says_so(tmp_path: Path) -> None:
    for case in ("tp2_z1_w2", "pipe3_z1_w3", "moe_z1_ep2_w2"):
        run = copied(case, tmp_path)
        for path in list((run / "global_step7").glob("*optim_states.pt")):
            path.unlink()
        checkpoint = open_checkpoint(run)
        assert any("the module's copy of the weights is read" in note for note in checkpoint.notes)
        merge(run, tmp_path / f"{case}-copy")
        merge(run_of(case), tmp_path / f"{case}-masters")
        assert_equal(tensors(tmp_path / f"{case}-copy"), tensors(tmp_path / f"{case}-masters"))
