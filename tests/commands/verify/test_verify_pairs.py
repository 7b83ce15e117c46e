"""Any two things that can be read: folders in other forms, adapters, two trainers' checkpoints, folders without MTP."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from make.hf import model_of, save_bin
from support.helpers import unpacked
from support.verify_tools import Made, edit_config, only_wrong, poke, problems, views

from ckptconv.commands.merge.run import merge
from ckptconv.commands.verify import verify
from ckptconv.plan import Options


@pytest.mark.parametrize("variant", ["qwen3_moe_w4", "mixtral_w4", "qwen2_5_vl_w4"])
def test_a_folder_with_a_modules_names(made: Made, tmp_path: Path, variant: str) -> None:
    out = tmp_path / "module"
    merge(made(variant), out, options=Options(layout="module", dtype="keep"))
    hub = made(variant) / "hub"
    assert set(views(out)) != set(views(hub)), "the names are others"
    for result in (verify(out, against=hub), verify(hub, against=out), verify(out, against=made(variant))):
        only_wrong(result)
        assert result.compared == result.tensors == len(views(hub))
    assert "1 header" in (verify(out, against=hub).layer("integrity") or result.layers[0]).found


def test_a_difference_in_a_fused_expert_is_named_by_its_hub_name(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "module"
    merge(made("qwen3_moe_w4"), out, options=Options(layout="module", dtype="keep"))
    poke(views(out)["model.layers.1.mlp.experts.down_proj"], (3, 7, 7))
    result = verify(out, against=made("qwen3_moe_w4") / "hub")
    only_wrong(result, "integrity", "values")
    (found,) = result.differences
    assert (found.name, found.at) == ("model.layers.1.mlp.experts.3.down_proj.weight", (7, 7))


def test_transformers_own_folder_in_its_modules_names(made: Made, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    hub = made("qwen3_moe_w4") / "hub"
    AutoModelForCausalLM.from_pretrained(hub).save_pretrained(tmp_path / "own", save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj" in views(tmp_path / "own")
    only_wrong(verify(tmp_path / "own", against=hub))


def test_torch_files_of_many_shards(tmp_path: Path) -> None:
    model = model_of("qwen3_moe", num_experts=5, num_experts_per_tok=2, moe_intermediate_size=11)
    save_bin(model, tmp_path / "bin", max_shard_size="40KB")
    model.save_pretrained(tmp_path / "hub")
    assert len(list((tmp_path / "bin").glob("*.bin"))) > 2
    result = verify(tmp_path / "hub", against=tmp_path / "bin")
    only_wrong(result)
    assert " checksums in " in (result.layer("integrity") or result.layers[0]).found
    poke(views(tmp_path / "hub")["model.layers.0.mlp.experts.2.up_proj.weight"], (1, 1))
    result = verify(tmp_path / "hub", against=tmp_path / "bin")
    only_wrong(result, "values")
    assert result.differences[0].slices == (), "no rank wrote a shard of a model folder"


def test_checkpoints_of_one_model_cut_in_different_ways(made: Made) -> None:
    for other in ("hsdp_w4", "fsdp2_tp_uneven_w4", "fsdp1_flat_noorig_w2", "ws1_fsdp2"):
        result = verify(made("fsdp2_w4"), against=made(other))
        only_wrong(result)
        assert result.compared == result.tensors


def test_two_ways_of_megatron(tmp_path: Path) -> None:
    """torch_dist of two tensor ranks, and the truth as a folder; one flipped bit names the rank of it."""
    case = unpacked("megatron/qwen2_tp2")
    run = next(path for path in (case / "run", case) if path.is_dir())
    merge(run, tmp_path / "out", options=Options(dtype="keep"))
    only_wrong(verify(run, against=tmp_path / "out"))
    name = "model.layers.0.self_attn.k_proj.weight"
    view = views(tmp_path / "out")[name]
    poke(view, (view.shape[0] - 1, 0))
    result = verify(tmp_path / "out", against=run)
    only_wrong(result, "integrity", "values")
    assert result.differences[0].stored_rank == (1,)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("qwen2_tp2", "qwen2_mlm_legacy"),
        ("qwen2_mlm_legacy", "qwen2_verl_legacy"),
        ("qwen3_moe_local", "qwen3_moe_etp1_mlm_legacy"),
    ],
)
def test_megatron_steps_of_other_forms_and_parallelism(one: str, other: str) -> None:
    """torch_dist, a file a rank, verl's; tensor and expert ranks. --config is said once."""
    a, b = unpacked(f"megatron/{one}"), unpacked(f"megatron/{other}")
    result = verify(a / "run", against=b / "run", config=a / "hf")
    only_wrong(result)
    assert result.compared == result.tensors > 30


def test_a_dcp_step_against_a_megatron_step(tmp_path: Path) -> None:
    import torch
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file

    case = unpacked("megatron/qwen2_tp2")
    merge(case / "run", tmp_path / "out", config=case / "hf", options=Options(dtype="keep"))
    state = load_file(tmp_path / "out" / "model.safetensors")
    dcp.save({"model": state}, checkpoint_id=tmp_path / "step", no_dist=True)
    result = verify(tmp_path / "step", against=case / "run", config=case / "hf")
    only_wrong(result)
    assert result.compared == len(state)
    state["model.norm.weight"] = state["model.norm.weight"] * torch.tensor(1.5, dtype=torch.bfloat16)
    dcp.save({"model": state}, checkpoint_id=tmp_path / "other", no_dist=True)
    only_wrong(verify(tmp_path / "other", against=case / "run", config=case / "hf"), "values")


def test_masters_against_bf16_shards_are_compared_in_bf16(made: Made) -> None:
    """FP32 masters of one run, bf16 parameters with fp32 norms of another."""
    result = verify(made("fsdp2_bf16_w4"), against=made("fsdp2_w4"))
    only_wrong(result)
    dtypes = result.layer("dtypes")
    assert dtypes is not None
    assert dtypes.notes == ("the reference stores float32: 22 tensors are cast to bfloat16 to be compared",)


def test_adapters(made: Made, tmp_path: Path) -> None:
    """PEFT's own folder, the adapter of a trainer's checkpoint, and the one that merge wrote."""
    peft = made("lora_w4") / "adapter"
    merge(made("lora_w4"), tmp_path / "out", options=Options(lora="adapter", dtype="keep"))
    for a, b in ((peft, made("lora_w4")), (made("lora_w4"), peft), (tmp_path / "out", peft)):
        result = verify(a, against=b)
        only_wrong(result)
        assert result.compared == len(views(peft))
    changed = Path(shutil.copytree(peft, tmp_path / "changed"))
    stated = json.loads((changed / "adapter_config.json").read_text())
    (changed / "adapter_config.json").write_text(json.dumps(stated | {"lora_alpha": 99}))
    result = verify(changed, against=made("lora_w4"))
    only_wrong(result, "adapter")
    assert "lora_alpha" in problems(result, "adapter")


def test_a_merged_adapter_against_its_parts(made: Made, tmp_path: Path) -> None:
    run, base = made("lora_only_w2"), made("lora_w4") / "base"
    merge(run, tmp_path / "out", base=base, options=Options(lora="merge", dtype="keep"))
    only_wrong(verify(tmp_path / "out", against=run, base=base))
    result = verify(base, against=run, base=base)
    only_wrong(result, "values", "trained")


def test_mtp_layers_that_were_left_out_on_purpose(tmp_path: Path) -> None:
    case = unpacked("megatron/deepseek_v3_mtp_mcb")
    for mtp in ("keep", "drop"):
        merge(case / "run", tmp_path / mtp, config=case / "hf", options=Options(mtp=mtp))
    only_wrong(verify(tmp_path / "drop", against=tmp_path / "keep"))
    only_wrong(verify(tmp_path / "keep", against=tmp_path / "drop"))
    result = verify(tmp_path / "drop", against=case / "run", config=case / "hf")
    only_wrong(result)
    names = result.layer("names")
    assert names is not None
    assert any("MTP" in note for note in names.notes)
    only_wrong(verify(tmp_path / "drop"))
    edit_config(tmp_path / "drop", num_nextn_predict_layers=1)
    only_wrong(verify(tmp_path / "drop", against=tmp_path / "keep"), "names")
    alone = verify(tmp_path / "drop").layer("names")
    assert alone is not None
    assert "config.json counts 1 MTP layers, and none is stored" in alone.notes


def test_a_config_is_found_beside_the_other(made: Made, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made("fsdp2_w4"), tmp_path / "run"))
    shutil.rmtree(next(run.rglob("huggingface")))
    only_wrong(verify(run, against=made("fsdp2_w4") / "hub"))
    only_wrong(verify(made("fsdp2_w4") / "hub", against=run))


def test_a_missing_reference(made: Made, copied: Callable[..., Path]) -> None:
    result = verify(made("fsdp2_w4"), against=made("critic_w2"))
    only_wrong(result, "names")
    assert "score.weight" in problems(result, "names")
