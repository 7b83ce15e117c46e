"""What `inspect` says beside the pictures: who saved it, step, heads, LoRA, optimizer, and what merge would do next."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.helpers import FIXTURES, ROLE, VARIANTS, cli, edit_json, own_copy, save_ws1, unpacked

from ckptconv import inspect, merge
from ckptconv.commands.inspect import Inspection, part_of

Made = Callable[[str], Path]


def said(found: Inspection) -> dict[str, str]:
    return {item.what: item.value for item in found.saved_by}


def megatron(case: str) -> Path:
    return unpacked(f"megatron/{case}") / "run"


# --- who saved it


@pytest.mark.parametrize(("release", "says"), [("2_4", "<= 2.6"), ("2_6", "<= 2.6"), ("2_8", "> 2.6")])
def test_the_archives_tell_old_from_new_torch(release: str, says: str) -> None:
    assert said(inspect(FIXTURES / f"torch_{release}" / "fsdp1_w2"))["torch"] == says


def test_deepspeed_says_its_version() -> None:
    for case, version in (("deepspeed_z2_fp16_w3", "0.19.8"), ("deepspeed_z2_fp16_w3_0_14_5", "0.14.5")):
        about = json.loads((unpacked(case) / "about.json").read_text())
        assert about["versions"]["deepspeed"].startswith(version)
        assert said(inspect(unpacked(case) / "run"))["DeepSpeed"].startswith(version)


def test_config_and_adapter_say_transformers_and_peft(made: Made) -> None:
    config = json.loads((made("lora_w4") / "hub" / "config.json").read_text())
    assert said(inspect(made("lora_w4")))["transformers"] == config["transformers_version"]
    adapter = json.loads((made("lora_w4") / "adapter" / "adapter_config.json").read_text())
    assert said(inspect(made("lora_w4") / "adapter"))["peft"] == adapter["peft_version"]


def test_megatron_says_iteration_and_arguments() -> None:
    found = said(inspect(megatron("llama_tp2pp2vpp2")))
    assert found["Megatron"] == "iteration 10"
    assert found["arguments"] == "world size 4, tp 2, pp 2, vpp 2, cp 1, ep 1, etp 1"
    assert said(inspect(megatron("qwen2_mb")))["trainer"] == "Megatron-Bridge"


def test_the_trainer_of_transformers_says_how_far_it_was(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made("fsdp2_w4") / "hub", tmp_path / "model")
    state = {"global_step": 30, "max_steps": 120, "epoch": 1.5}
    (tmp_path / "model" / "trainer_state.json").write_text(json.dumps(state))
    found = inspect(tmp_path / "model")
    assert said(found)["transformers Trainer"] == "step 30 of 120, epoch 1.5"
    assert found.step == 30, "no folder says the step; the file does"


def test_a_merged_model_says_what_it_was(made: Made, tmp_path: Path) -> None:
    merge(made("fsdp2_w4"), tmp_path / "model")
    found = said(inspect(tmp_path / "model"))
    assert found["converted from"].startswith("verl FSDP2, one file per rank")
    assert found["converted from"].endswith("step 7")
    assert found["ckptconv"]


@pytest.mark.parametrize("name", ["trainer_state.json", "adapter_config.json", "ckptconv.json"])
@pytest.mark.parametrize("text", ["{", "[]", '{"global_step": "x", "source": 3, "peft_version": {}}'])
def test_files_that_only_tell_stories_may_be_broken(made: Made, tmp_path: Path, name: str, text: str) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path)
    (run / ROLE / name).write_text(text)
    assert set(said(inspect(run))) == {"transformers", "torch"}


def test_a_version_is_no_place_for_a_book(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path)
    edit_json(run / ROLE / "huggingface" / "config.json", transformers_version="9\x1b[31m" * 1000)
    assert len(said(inspect(run))["transformers"]) < 100
    assert "\x1b" not in cli("inspect", run).out


# --- what the model is


HEADS = {
    "fsdp2_w4": ("language model (lm_head.weight)",),
    "critic_w2": ("value (score.weight)",),
    "trl_vhead_w2": ("language model (pretrained_model.lm_head.weight)", "value (v_head.summary.weight)"),
    "fsdp2_tied_w4": ("language model (lm_head.weight)",),
}


@pytest.mark.parametrize("variant", HEADS)
def test_heads(made: Made, variant: str) -> None:
    assert inspect(made(variant)).heads == HEADS[variant]


def test_a_tied_head_that_is_not_stored_is_the_embedding(made: Made) -> None:
    assert inspect(made("fsdp2_tied_w4") / "hub").heads == ("language model (the embedding, tied)",)


def test_a_critic_of_megatron_has_a_value_head() -> None:
    assert inspect(megatron("critic_tp2")).heads == ("value (output_layer.weight)",)


def test_a_classifier_says_how_many_labels(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    weights = {"model.embed_tokens.weight": torch.zeros(11, 6), "score.weight": torch.zeros(5, 6)}
    assert inspect(save_ws1(weights, {"model_type": "odd"}, tmp_path)).heads == (
        "classifier of 5 labels (score.weight)",
    )


def test_lora(made: Made) -> None:
    assert inspect(made("lora_w4")).lora == "on 14 modules, r 5, alpha 7"
    assert inspect(made("lora_only_w2")).lora == "on 14 modules, r 5, alpha 7, without base weights"
    assert inspect(made("lora_noalpha_w2")).lora == "on 14 modules, r unknown, alpha unknown"
    assert (inspect(megatron("lora_mb")).lora or "").startswith("on ")
    assert inspect(made("fsdp2_w4")).lora is None


def test_optimizer_size_is_the_files_size() -> None:
    run = FIXTURES / "verl_fsdp2_w4" / "run"
    held = sum(path.stat().st_size for path in (run / "global_step_2" / "actor").glob("optim_*.pt"))
    assert inspect(run).optimizer_bytes == held > 0
    assert re.search(r"skipped +optimizer 277 kB, trainer state", cli("inspect", run).out)
    assert inspect(unpacked("deepspeed_z3_bf16_w4") / "run").optimizer_bytes > 0
    assert inspect(megatron("qwen2_optim_fully")).optimizer_bytes > 0


# --- the parts of the model

PARTS = {
    "model.layers.3.mlp.up_proj.weight": "3",
    "model.language_model.layers.3.mlp.up_proj.weight": "3",
    "language_model.decoder.layers.3.mlp.linear_fc1.weight": "3",
    "base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight": "3",
    "transformer.h.3.attn.c_attn.weight": "3",
    "model.visual.blocks.3.norm1.weight": "visual 3",
    "visual.blocks.3.norm1.weight": "visual 3",
    "model.visual.patch_embed.proj.weight": "visual",
    "visual.merger.mlp.0.weight": "visual",
    "vision_model.decoder.layers.3.mlp.linear_fc1.weight": "vision_model 3",
    "vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight": "vision_tower 3",
    "vision_tower.vision_model.embeddings.patch_embedding.weight": "vision_tower",
    "multi_modal_projector.linear_1.weight": "multi_modal_projector",
    "model.encoder.layers.3.fc1.weight": "encoder 3",
    "model.decoder.layers.3.fc1.weight": "3",
    "mtp.layers.0.transformer_layer.mlp.linear_fc1.weight": "mtp 0",
    "model.mtp_layers.0.input_proj.weight": "mtp 0",
    "model.embed_tokens.weight": "embedding",
    "embedding.word_embeddings.weight": "embedding",
    "transformer.wte.weight": "embedding",
    "lm_head.weight": "head",
    "model.norm.weight": "head",
    "scale": "other",
}


@pytest.mark.parametrize("name", PARTS)
def test_the_part_of_a_tensor(name: str) -> None:
    assert part_of(name) == PARTS[name]


def test_a_tower_and_the_text_layers_of_one_number_are_two_parts(made: Made) -> None:
    found = inspect(made("qwen2_5_vl_w4"))
    assert found.parts == ("visual", "visual 0", "visual 1", "embedding", "0", "1", "head")
    assert "visual 0–1, embedding, layers 0–1, head" in cli("inspect", made("qwen2_5_vl_w4")).out
    for part, share in zip(found.parts, zip(*(rank.parts for rank in found.ranks), strict=True), strict=True):
        assert sum(share) == pytest.approx(1), part


# --- what to do next


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not v.startswith("arch_")])
def test_next_is_what_the_merge_then_does(made: Made, variant: str, tmp_path: Path) -> None:
    """Planned: tensors, bytes and files are those of the dry run. Not planned: the merge says the same."""
    found = inspect(made(variant)).next
    assert found is not None
    assert found.command == f"ckptconv merge {made(variant)} MODEL"
    ran = cli("merge", made(variant), tmp_path / "out", "--dry-run", "--json")
    if found.writes:
        planned = json.loads(ran.out)
        assert (found.tensors, found.nbytes) == (len(planned["tensors"]), planned["bytes"])
    elif "must be read to tell" not in found.why_not:
        assert ran.errors == [f"error: {found.why_not}"]
        assert found.hint in ran.err


def test_next_names_the_flag_that_solves_it(made: Made) -> None:
    for run, flag in (
        (made("lora_noalpha_w2"), "--lora-alpha"),
        (made("lora_w4") / "adapter", "--base DIR"),
        (unpacked("deepspeed_z3_bf16_w4") / "run", "--config BASE_MODEL"),
    ):
        found = inspect(run).next
        assert found is not None
        assert not found.writes
        assert flag in f"{found.command} {found.hint}", run
        assert flag in cli("inspect", run).flat


def test_next_does_not_read_weights_to_find_out(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether tied weights are still equal is a matter of their bytes; inspect leaves that to the merge."""
    from ckptconv.read import reader as read

    def never(*_: Any) -> None:
        raise AssertionError("inspect read a tensor")

    monkeypatch.setattr(read.Reader, "interval", never)
    found = inspect(made("fsdp2_untied_but_config_tied_w4"), tensor="*", tree=True).next
    assert found is not None
    assert "must be read to tell" in found.why_not
    assert found.hint.endswith("--dry-run")
    for variant in ("fsdp2_tied_w4", "lora_w4", "hsdp_w4", "qwen3_moe_w4"):
        assert (inspect(made(variant)).next or found).writes, variant


def test_next_of_a_model_folder_is_to_verify_it(made: Made) -> None:
    found = inspect(made("fsdp2_w4") / "hub").next
    assert found is not None
    assert found.command == f"ckptconv verify {made('fsdp2_w4') / 'hub'}"


def test_next_can_be_typed_as_it_stands(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "a b")
    found = inspect(run, step=7).next
    assert found is not None
    assert found.command == f"ckptconv merge '{run}' --step 7 MODEL"
