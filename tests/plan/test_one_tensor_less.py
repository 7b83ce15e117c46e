"""Checkpoints that real trainers wrote, planned without one tensor: what transformers does not ask for, too."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.helpers import edit_json, unpacked

from ckptconv.backends import open_checkpoint
from ckptconv.commands.planning import plan_for
from ckptconv.errors import CkptconvError
from ckptconv.plan import Options, Plan

Made = Callable[[str], Path]
BIAS = "mlp.router.expert_bias"


def planned(case: str, without: str = "") -> Plan:
    home = unpacked(f"megatron/{case}")
    checkpoint = open_checkpoint(home / "run")
    assert not without or without in checkpoint.tensors
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if name != without}
    config = None if checkpoint.assets else home / "hf"
    return plan_for(replace(checkpoint, tensors=kept), Options(), config, None)


def added(case: str, without: str) -> list[str]:
    """The notes that are only there because a tensor is missing."""
    whole = planned(case).notes
    return [note for note in planned(case, without).notes if note not in whole]


@pytest.mark.parametrize(
    ("case", "without", "missing"),
    [
        ("moonlight_ep2", "decoder.layers.2.self_attention.linear_q_proj.weight", "self_attention.linear_q"),
        ("deepseek_v2_mb", "decoder.layers.2.self_attention.linear_q_proj.weight", "self_attention.linear_q"),
        (
            "qwen3_vl_moe_mb",
            "language_model.decoder.layers.1.mlp.experts.5.linear_fc2.weight",
            "num_local_experts 6",
        ),
    ],
)
def test_a_missing_query_or_expert_is_refused(case: str, without: str, missing: str) -> None:
    with pytest.raises(
        CkptconvError, match=r"does not match these tensors|missing from the checkpoint"
    ) as error:
        planned(case, without)
    assert missing in str(error.value)


@pytest.mark.parametrize("case", ["glm4_moe_mb", "deepseek_v3_mtp_mcb"])
def test_router_biases_that_nothing_has_stored_are_reported(case: str) -> None:
    (note,) = added(case, f"decoder.layers.1.{BIAS}")
    assert note.startswith("no router bias is stored (model.layers.*.mlp.gate.e_score_correction_bias)")


def test_one_layer_without_the_router_bias_that_others_have_is_refused() -> None:
    names = [
        name
        for name in open_checkpoint(unpacked("megatron/deepseek_v3_tp2pp2ep2") / "run").tensors
        if BIAS in name
    ]
    assert len(names) > 1
    with pytest.raises(CkptconvError, match=r"does not match these tensors|missing from the checkpoint"):
        planned("deepseek_v3_tp2pp2ep2", names[0])


@pytest.mark.parametrize(
    ("case", "without", "missing"),
    [
        ("deepseek_v3_mtp_mcb", "mtp.layers.0.eh_proj.weight", "eh_proj.weight"),
        (
            "deepseek_v3_mtp_mcb",
            "mtp.layers.0.final_layernorm.weight",
            "shared_head.norm.weight or final_layernorm.weight",
        ),
        (
            "glm4_moe_mtp_mcb",
            "mtp.layers.0.transformer_layer.self_attention.linear_qkv.layer_norm_weight",
            "input_layernorm.weight",
        ),
        ("qwen3_next_mtp_mb", "mtp.layers.0.hnorm.weight", "mtp.pre_fc_norm_hidden.weight"),
        ("nemotron_h_mtp_mb", "mtp.layers.0.final_layernorm.weight", "final_layernorm.weight"),
    ],
)
def test_an_mtp_layer_that_is_not_whole_is_reported(case: str, without: str, missing: str) -> None:
    (note,) = added(case, without)
    assert note.startswith("MTP layers are not whole: ")
    assert missing in note


@pytest.mark.parametrize("case", ["mimo_v2_flash_mb", "nemotron_h_mtp_mb", "qwen3_5_mcb", "step3p5_mb"])
def test_whole_mtp_layers_of_any_form_are_silent(case: str) -> None:
    assert not any("MTP layers" in note for note in planned(case).notes)


@pytest.mark.parametrize(
    ("case", "without", "said"),
    [
        (
            "deepspeed_lora_z2_w2",
            "base_model.model.model.layers.1.mlp.down_proj.base_layer.weight",
            r"model\.layers\.1\.mlp\.down_proj",
        ),
        ("deepspeed_autoep_z1_ep2_w2", "model.layers.1.mlp.experts.w3", "experts"),
        ("deepspeed_autoep_z3_ep2_w4", "model.layers.1.mlp.experts.w2", "experts"),
    ],
)
def test_a_weight_that_lora_updates_and_a_part_of_autoeps_experts_must_be_there(
    case: str, without: str, said: str
) -> None:
    """With LoRA, the rest of the model was taken for weights that were trained whole, and an adapter was written."""
    home = unpacked(case)
    checkpoint = open_checkpoint(home / "run")
    config = None if checkpoint.assets else home / "hf"
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if name != without}
    assert len(kept) == len(checkpoint.tensors) - 1
    with pytest.raises(CkptconvError, match=said):
        plan_for(replace(checkpoint, tensors=kept), Options(), config, None)


@pytest.mark.parametrize("part", ["w1_EFD", "w2_EDF", "w3_EFD"])
def test_an_mtp_layer_of_torchtitan_without_a_part_of_its_experts_is_reported(part: str) -> None:
    home = unpacked("torchtitan_0_3") / "deepseek_v3"
    checkpoint = open_checkpoint(home / "run")
    without = f"mtp_layers.0.moe.routed_experts.inner_experts.{part}"
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if name != without}
    assert len(kept) == len(checkpoint.tensors) - 1
    config = None if checkpoint.assets else home / "hf"
    notes = plan_for(replace(checkpoint, tensors=kept), Options(), config, None).notes
    assert any(note.startswith("MTP layers are not whole: ") for note in notes)


# Families without a class in transformers: what any Megatron model has.
@pytest.mark.parametrize(
    ("case", "without"),
    [
        ("baichuan_nemo", "decoder.layers.1.self_attention.linear_proj.weight"),
        ("bailing_moe_v2_mb", "decoder.layers.0.mlp.linear_fc2.weight"),
        ("deepseek_mcb", "decoder.layers.1.self_attention.linear_proj.weight"),
        ("internvl_chat_mcb", "language_model.embedding.word_embeddings.weight"),
        ("kimi_vl_mcb", "language_model.decoder.layers.1.self_attention.linear_q_down_proj.weight"),
        ("mimo_tp2", "decoder.final_layernorm.weight"),
        ("internlm3_mcb", "decoder.layers.1.self_attention.linear_qkv.weight"),
        ("sarvam_moe_mb", "decoder.layers.1.mlp.router.weight"),
        ("sarvam_mla_mb", "decoder.layers.1.self_attention.linear_kv_down_proj.weight"),
    ],
)
def test_what_every_megatron_model_has_must_be_stored(case: str, without: str) -> None:
    with pytest.raises(CkptconvError, match="missing from the checkpoint") as error:
        planned(case, without)
    assert error.value.wanted == without


@pytest.mark.parametrize("rank", [12, 14, 26])
def test_another_rank_of_the_latent_query_is_refused(made: Made, tmp_path: Path, rank: int) -> None:
    source = Path(shutil.copytree(made("arch_deepseek_v3_w2") / "global_step_7/actor", tmp_path / "actor"))
    edit_json(source / "huggingface/config.json", q_lora_rank=rank)
    with pytest.raises(CkptconvError, match="does not match these tensors") as error:
        plan_for(open_checkpoint(source), Options(), None, None)
    assert error.value.wanted == f"q_lora_rank {rank}"
