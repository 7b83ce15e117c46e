"""merge ADAPTER --base MODEL: a PEFT folder of any form becomes what PEFT's merge_and_unload makes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import support.peft_models as models
import torch
from safetensors.torch import load_file, save_file
from support.helpers import cli, edit_json
from transformers import AutoModelForCausalLM

from ckptconv.commands.merge.run import merge
from ckptconv.errors import CkptconvError

FORMS: dict[str, dict[str, Any]] = {
    "all": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 3},
        "alpha_pattern": {"layers.0.*q_proj": 11},
    },
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "head": {"target_modules": ["lm_head", "v_proj"]},
    "saved": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "biases": {"target_modules": ["q_proj"], "bias": "all"},
    "lora_bias": {"target_modules": ["q_proj", "k_proj"], "lora_bias": True},
}
DORA: dict[str, dict[str, Any]] = {
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "dora_embedding": {"target_modules": ["embed_tokens", "down_proj"], "use_dora": True},
    "dora_rslora": {"target_modules": ["up_proj"], "use_dora": True, "use_rslora": True},
}
CONV1D = {"target_modules": ["c_attn", "attn.c_proj"], "fan_in_fan_out": True}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in found)


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_is_merged_as_peft_merges_it_bit_for_bit(form: str, tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, **FORMS[form])
    merge(trained.adapter, tmp_path / "out", base=trained.base)
    assert same(weights(tmp_path / "out"), trained.merged)


@pytest.mark.parametrize("form", DORA)
def test_dora_is_merged_as_peft_merges_it_up_to_the_last_bit(form: str, tmp_path: Path) -> None:
    """PEFT sums a length in float32, here in float64."""
    trained = models.train(models.qwen2(), tmp_path, **DORA[form])
    merge(trained.adapter, tmp_path / "out", base=trained.base)
    found = weights(tmp_path / "out")
    assert found.keys() == trained.merged.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, trained.merged[name], rtol=4e-7, atol=1e-9)


@pytest.mark.parametrize("dora", [False, True])
def test_weights_that_are_turned_round(dora: bool, tmp_path: Path) -> None:
    trained = models.train(models.gpt2(), tmp_path, **CONV1D, use_dora=dora)
    merge(trained.adapter, tmp_path / "out", base=trained.base)
    found = weights(tmp_path / "out")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, trained.merged[name], rtol=4e-7 if dora else 0, atol=0)


@pytest.mark.parametrize("form", [*FORMS, *DORA])
def test_an_adapter_is_exported_as_it_is_and_loads_in_peft(form: str, tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, **(FORMS | DORA)[form])
    merge(trained.adapter, tmp_path / "out", lora="adapter")
    name = "adapter_model.safetensors"
    assert same(load_file(tmp_path / "out" / name), load_file(trained.adapter / name))
    assert same(models.loaded(AutoModelForCausalLM, trained.base, tmp_path / "out"), trained.merged)


# --- tied models: PEFT's merge changes both of the two, its model only the one that was adapted


@pytest.mark.parametrize("form", ["embedding", "head", "dora_embedding", "saved"])
def test_an_adapted_half_of_a_tied_pair_gets_a_weight_of_its_own(form: str, tmp_path: Path) -> None:
    trained = models.train(models.qwen2(tied=True), tmp_path, **(FORMS | DORA)[form])
    done = merge(trained.adapter, tmp_path / "out", base=trained.base)
    assert any("which the config ties" in note for note in done.plan.notes)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(torch.arange(10)[None]).logits
    torch.testing.assert_close(logits, trained.logits, rtol=1e-4, atol=1e-4)


def test_a_tied_pair_that_was_not_adapted_stays_tied(tmp_path: Path) -> None:
    trained = models.train(models.qwen2(tied=True), tmp_path, target_modules=["q_proj"])
    merge(trained.adapter, tmp_path / "out", base=trained.base)
    assert "lm_head.weight" not in weights(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


# --- stacked experts


@pytest.mark.parametrize("targets", [EXPERTS, EXPERTS[1:]], ids=["both", "one"])
def test_experts_are_merged_whichever_way_they_are_stored(targets: list[str], tmp_path: Path) -> None:
    """The Hub keeps Qwen3-MoE's experts apart, the module stacks them; PEFT's names do not say which parameter it is."""
    trained = models.train(models.qwen3_moe(), tmp_path, target_modules=["q_proj"], target_parameters=targets)
    merge(trained.adapter, tmp_path / "out", base=trained.base)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, trained.merged[name], rtol=1e-6, atol=2e-6)
    merge(trained.adapter, tmp_path / "again", lora="adapter")
    assert same(models.loaded(AutoModelForCausalLM, trained.base, tmp_path / "again"), trained.merged)


def test_square_experts_are_told_by_the_version_of_peft(tmp_path: Path) -> None:
    """Since 0.19 PEFT takes Qwen3-MoE's stacks as (E, out, in), up to 0.18 as (E, in, out): A and B change places."""
    square = models.qwen3_moe(width=20)
    trained = models.train(square, tmp_path, target_modules=["q_proj"], target_parameters=EXPERTS[1:])
    merge(trained.adapter, tmp_path / "out", base=trained.base)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, trained.merged[name], rtol=1e-6, atol=2e-6)
    edit_json(trained.adapter / "adapter_config.json", peft_version="0.18.1")
    merge(trained.adapter, tmp_path / "old", base=trained.base)
    old = AutoModelForCausalLM.from_pretrained(tmp_path / "old").state_dict()
    name = "model.layers.0.mlp.experts.down_proj"
    began = AutoModelForCausalLM.from_pretrained(trained.base).state_dict()[name]
    turned = (model.state_dict()[name] - began).transpose(1, 2)
    torch.testing.assert_close(old[name] - began, turned, rtol=1e-4, atol=1e-5)
    edit_json(trained.adapter / "adapter_config.json", peft_version=None)
    with pytest.raises(CkptconvError, match="cannot tell which stacked parameter"):
        merge(trained.adapter, tmp_path / "unknown", base=trained.base)


def test_an_update_that_is_zero_is_reported(tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, target_modules=["q_proj", "embed_tokens"])
    done = merge(trained.adapter, tmp_path / "good", base=trained.base)
    assert not any("zero" in note for note in done.plan.notes)
    file = trained.adapter / "adapter_model.safetensors"
    stored = load_file(file)
    for name, tensor in stored.items():
        if name.endswith("layers.0.self_attn.q_proj.lora_B.weight"):
            tensor[: len(tensor) // 2 + 1] = 0
    save_file(stored, file)
    done = merge(trained.adapter, tmp_path / "half", base=trained.base)
    assert any("mostly zero in 1 of 3 modules: model.layers.0" in note for note in done.plan.notes)
    save_file({n: t * (0 if "lora_B" in n or "embedding_A" in n else 1) for n, t in stored.items()}, file)
    done = merge(trained.adapter, tmp_path / "none", base=trained.base)
    assert any("every LoRA update is zero (3 modules)" in note for note in done.plan.notes)


@pytest.mark.parametrize(
    ("names", "taken"), [(("reference", "trained"), "trained"), (("aa", "ref"), "aa"), (("one", "two"), None)]
)
def test_of_several_adapters_the_trained_one_is_taken(
    names: tuple[str, str], taken: str | None, tmp_path: Path
) -> None:
    trained = models.train(models.qwen2(), tmp_path, target_modules=["q_proj"])
    for name in names:
        Path(shutil.copytree(trained.adapter, tmp_path / "run" / "checkpoint-3" / name))
    if taken is None:
        with pytest.raises(CkptconvError, match="several models") as refused:
            merge(tmp_path / "run", tmp_path / "out", base=trained.base)
        assert refused.value.found == "one, two"
        return
    done = merge(tmp_path / "run", tmp_path / "out", base=trained.base)
    assert done.plan.checkpoint.root.name == taken


def test_experts_that_the_hub_stacks_too(tmp_path: Path) -> None:
    trained = models.train(models.gpt_oss(), tmp_path, target_modules=["q_proj"], target_parameters=EXPERTS)
    merge(trained.adapter, tmp_path / "out", base=trained.base)
    found = weights(tmp_path / "out")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, trained.merged[name], rtol=1e-6, atol=2e-6)


# --- the base


def test_a_folder_that_only_the_adapter_names_is_not_opened(tmp_path: Path) -> None:
    """adapter_config.json may come from anywhere. The hint works as it is."""
    trained = models.train(models.qwen2(), tmp_path, **FORMS["all"])
    with pytest.raises(CkptconvError, match="its base model is needed") as refused:
        merge(trained.adapter, tmp_path / "out")
    assert f"--base {trained.base}" in str(refused.value.hint)
    done = merge(trained.adapter, tmp_path / "out", base=trained.base)
    assert same(weights(tmp_path / "out"), trained.merged)
    assert any("the base model in base" in note for note in done.plan.notes)


def test_a_base_that_is_on_the_hub_only_is_asked_for(tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, **FORMS["all"])
    edit_json(trained.adapter / "adapter_config.json", base_model_name_or_path="org/name")
    ran = cli("merge", trained.adapter, tmp_path / "out")
    assert ran.code == 2
    assert "--base" in ran.flat
    assert "org/name" in ran.flat
    assert not (tmp_path / "out").exists()


def test_an_exported_adapter_names_the_base_that_the_user_named(tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, target_modules=["q_proj"])
    cache = tmp_path / "hub" / "models--org--name" / "snapshots" / "abc"
    shutil.copytree(trained.base, cache)
    merge(trained.adapter, tmp_path / "out", base=cache, lora="both")
    settings = json.loads((tmp_path / "out" / "lora_adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "org/name"


def test_an_exported_adapter_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    """The adapter's own config states the folder that it was trained from, and --base is that folder too."""
    trained = models.train(models.qwen2(), tmp_path, target_modules=["q_proj"])
    ways: dict[str, dict[str, Any]] = {
        "alone": {"lora": "adapter"},
        "both": {"lora": "both", "base": trained.base},
    }
    for name, words in ways.items():
        done = merge(trained.adapter, tmp_path / name, **words)
        (file,) = (tmp_path / name).rglob("adapter_config.json")
        assert str(tmp_path) not in file.read_text()
        assert json.loads(file.read_text())["base_model_name_or_path"] is None
        assert any("fill in base_model_name_or_path" in note for note in done.plan.notes)
    edit_json(trained.base / "config.json", _name_or_path="org/name")
    done = merge(trained.adapter, tmp_path / "named", lora="both", base=trained.base)
    (file,) = (tmp_path / "named").rglob("adapter_config.json")
    assert json.loads(file.read_text())["base_model_name_or_path"] == "org/name"
    assert not any("fill in" in note for note in done.plan.notes)


def test_a_base_of_another_width_is_refused(tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path / "one", target_modules=["q_proj"])
    other = models.train(models.qwen3_moe(), tmp_path / "two", target_modules=["q_proj"])
    with pytest.raises(CkptconvError, match="does not fit its weight"):
        merge(trained.adapter, tmp_path / "out", base=other.base)


# --- refused by name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "LOHA"}, "type LOHA"),
        ({"peft_type": "ADALORA"}, "type ADALORA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"layer_replication": [[0, 2]]}, "layer replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices, and none is stored"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "olora"),
    ],
)
def test_what_is_more_than_lora_is_refused_by_name(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    trained = models.train(models.qwen2(), tmp_path, target_modules=["q_proj"])
    edit_json(trained.adapter / "adapter_config.json", **settings)
    with pytest.raises(CkptconvError, match=said):
        merge(trained.adapter, tmp_path / "out", base=trained.base)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["IA3Config", "LoHaConfig", "VeraConfig", "AdaLoraConfig"])
def test_other_adapters_that_peft_writes_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    import peft

    more = {"IA3Config": {"feedforward_modules": []}, "AdaLoraConfig": {"total_step": 9}}.get(kind, {})
    config = getattr(peft, kind)(target_modules=["q_proj"], **more)
    peft.get_peft_model(models.qwen2(), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CkptconvError, match=r"(?i)ia3|loha|vera|adalora"):
        merge(tmp_path / "adapter", tmp_path / "out", lora="adapter")


def test_a_dora_that_lost_its_rows_is_refused(tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, **DORA["dora"])
    path = trained.adapter / "adapter_model.safetensors"
    stored = load_file(path)
    name = next(name for name in stored if name.endswith("lora_magnitude_vector"))
    save_file(stored | {name: stored[name][:-1].clone()}, path)
    with pytest.raises(CkptconvError, match="magnitudes"):
        merge(trained.adapter, tmp_path / "out", base=trained.base)
