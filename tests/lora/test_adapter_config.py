"""adapter_config.json against the tensors next to it: adapters that PEFT wrote, with one thing changed in either."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support.peft_models as models
import torch
from safetensors.torch import load_file, save_file
from support.helpers import cli, edit_json, save_ws1
from tokenizers import Tokenizer
from tokenizers import models as kinds
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ckptconv import CkptconvError
from ckptconv.commands.merge.run import merge

TARGETS = {"target_modules": ["q_proj", "v_proj"]}
Edit = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def adapter(tmp_path: Path, **settings: Any) -> models.Trained:
    return models.train(models.qwen2(), tmp_path, **{**TARGETS, **settings})


def edit_tensors(trained: models.Trained, change: Edit) -> None:
    path = trained.adapter / "adapter_model.safetensors"
    save_file({name: t.contiguous() for name, t in change(load_file(path)).items()}, path)


def edit_settings(trained: models.Trained, **values: Any) -> None:
    edit_json(trained.adapter / "adapter_config.json", **values)


def refused(trained: models.Trained, tmp_path: Path, found: str, wanted: str) -> None:
    with pytest.raises(CkptconvError, match=r"adapter_config\.json does not describe") as error:
        merge(trained.adapter, tmp_path / "out", base=trained.base)
    assert found in str(error.value.found)
    assert wanted in str(error.value.wanted)
    assert "--base" in str(error.value.hint)
    assert not (tmp_path / "out").exists()


def test_a_module_of_target_modules_without_factors_is_refused(tmp_path: Path) -> None:
    trained = adapter(tmp_path)
    edit_tensors(trained, lambda old: {n: t for n, t in old.items() if "layers.1.self_attn.v_proj" not in n})
    refused(
        trained, tmp_path, "no factors for model.layers.1.self_attn.v_proj", "target_modules names v_proj"
    )


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (
            {"target_modules": ["q_proj", "v_proj", "o_proj"]},
            "no factors for model.layers.0.self_attn.o_proj",
        ),
        ({"use_dora": True}, "no lora_magnitude_vector"),
        ({"lora_bias": True}, "no lora_B.bias"),
        ({"bias": "all"}, "no model.layers.0.self_attn.k_proj.bias"),
        ({"bias": "lora_only"}, "no model.layers.0.self_attn.q_proj.bias"),
        ({"modules_to_save": ["lm_head"]}, "no weight of lm_head"),
        ({"layers_to_transform": [1]}, "LoRA on model.layers.0.self_attn.q_proj"),
        ({"task_type": "SEQ_CLS"}, "no score or classifier"),
        (
            {
                "auto_mapping": {
                    "base_model_class": "X",
                    "parent_library": "transformers.models.llama.modeling_llama",
                }
            },
            "model_type qwen2",
        ),
    ],
)
def test_settings_that_name_what_is_not_stored_are_refused(
    settings: dict[str, Any], found: str, tmp_path: Path
) -> None:
    trained = adapter(tmp_path)
    edit_settings(trained, **settings)
    refused(trained, tmp_path, found, next(iter(settings)))


def test_magnitudes_that_the_settings_do_not_know_are_refused(tmp_path: Path) -> None:
    trained = adapter(tmp_path, use_dora=True)
    edit_settings(trained, use_dora=False)
    refused(trained, tmp_path, "a lora_magnitude_vector", "use_dora false")


def test_a_base_with_more_layers_than_the_adapter_is_refused(tmp_path: Path) -> None:
    trained = adapter(tmp_path)
    sizes = json.loads((trained.base / "config.json").read_text())
    other = models.qwen2().config.__class__(**{**sizes, "num_hidden_layers": 4, "layer_types": None})
    AutoModelForCausalLM.from_config(other).save_pretrained(tmp_path / "deep")
    with pytest.raises(CkptconvError, match=r"adapter_config\.json does not describe") as error:
        merge(trained.adapter, tmp_path / "out", base=tmp_path / "deep")
    assert "model.layers.2.self_attn.q_proj" in str(error.value.found)


@pytest.mark.parametrize(
    "settings",
    [
        {"layers_to_transform": [1]},
        {"exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": r".*layers\.1\..*(q|k)_proj"},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"modules_to_save": ["lm_head", "input_layernorm"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
    ],
)
def test_what_peft_writes_for_a_part_of_the_model_is_merged_in_silence(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    trained = adapter(tmp_path, **settings)
    result = merge(trained.adapter, tmp_path / "out", base=trained.base)
    assert not any("adapter_config" in note for note in result.plan.notes)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], trained.merged[name]) for name in found)


def test_factors_that_target_modules_does_not_name_and_unknown_settings_are_reported(tmp_path: Path) -> None:
    trained = adapter(tmp_path)
    edit_settings(trained, target_modules=["q_proj"], use_superlora=True)
    notes = " ".join(merge(trained.adapter, tmp_path / "out", base=trained.base).plan.notes)
    assert "does not name 2 modules" in notes
    assert "does not know were not applied: use_superlora" in notes


def test_fan_in_fan_out_of_linear_layers_is_not_believed_as_in_peft(tmp_path: Path) -> None:
    """A square weight would be updated by the transposed product."""
    trained = adapter(tmp_path, target_modules=["q_proj"])
    edit_settings(trained, fan_in_fan_out=True)
    merge(trained.adapter, tmp_path / "out", base=trained.base)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], trained.merged[name]) for name in found)


def test_a_first_factor_of_zeros_is_reported_too(tmp_path: Path) -> None:
    trained = adapter(tmp_path)
    edit_tensors(trained, lambda old: {n: t * 0 if "lora_A" in n else t for n, t in old.items()})
    result = merge(trained.adapter, tmp_path / "out", base=trained.base)
    assert any("every LoRA update is zero" in note for note in result.plan.notes)


def test_a_classifier_without_a_task_type_is_known_by_its_class(tmp_path: Path) -> None:
    """PEFT writes auto_mapping instead of a task type."""
    trained = models.train(
        models.qwen2(),
        tmp_path,
        kind=AutoModelForSequenceClassification,
        **TARGETS,
        task_type=None,
        modules_to_save=["score"],
    )
    result = merge(trained.adapter, tmp_path / "out", base=trained.base)
    assert result.plan.config is not None
    assert result.plan.config["architectures"] == ["Qwen2ForSequenceClassification"]
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], trained.merged[name]) for name in found)


def test_other_tokens_of_a_tied_head_than_of_its_embedding_take_them_apart(tmp_path: Path) -> None:
    rows = {"embed_tokens": [3, 5], "lm_head": [1, 2]}
    trained = models.train(models.qwen2(tied=True), tmp_path, **TARGETS, trainable_token_indices=rows)
    result = merge(trained.adapter, tmp_path / "out", base=trained.base)
    assert any("both are written" in note for note in result.plan.notes)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(torch.arange(10)[None]).logits
    assert torch.allclose(logits, trained.logits, atol=1e-4)


def test_added_tokens_without_rows_are_reported(tmp_path: Path) -> None:
    """save_embedding_layers=False, or a resized embedding that a script forgot."""
    trained = adapter(tmp_path)
    tokenizer = Tokenizer(kinds.WordLevel({f"w{n}": n for n in range(41)}, unk_token="w0"))
    tokenizer.save(str(trained.base / "tokenizer.json"))
    tokenizer.save(str(trained.adapter / "tokenizer.json"))
    assert "no row" not in cli("merge", trained.adapter, tmp_path / "same", "--base", trained.base).flat
    tokenizer.add_tokens(["<a>", "<b>"])
    tokenizer.save(str(trained.adapter / "tokenizer.json"))
    ran = cli("merge", trained.adapter, tmp_path / "out", "--base", trained.base)
    assert "2 added tokens (from id 41) for which the weights have no row: vocab_size is 41" in ran.flat


def saved_state(trained: models.Trained, folder: Path, without: str) -> Path:
    """PEFT's whole state dict, as a trainer of one rank saves it, without some tensors."""
    state = {name: tensor for name, tensor in trained.state.items() if without not in name}
    config = json.loads((trained.base / "config.json").read_text())
    return save_ws1(state, config, folder)


def test_an_adapted_module_that_lost_its_factors_is_refused(tmp_path: Path) -> None:
    run = saved_state(adapter(tmp_path), tmp_path / "run", "layers.0.self_attn.q_proj.lora_")
    with pytest.raises(CkptconvError, match="an adapted module has no LoRA factors") as error:
        merge(run, tmp_path / "out", lora_alpha=6)
    assert "layers.0.self_attn.q_proj.base_layer.weight" in str(error.value.found)


def test_adapted_modules_that_all_lost_their_factors_are_reported(tmp_path: Path) -> None:
    run = saved_state(adapter(tmp_path), tmp_path / "run", "lora_")
    notes = " ".join(merge(run, tmp_path / "out").plan.notes)
    assert "have PEFT's name base_layer, and no LoRA factors are stored" in notes
    whole = saved_state(adapter(tmp_path / "again"), tmp_path / "whole", "nothing")
    assert "base_layer" not in " ".join(merge(whole, tmp_path / "fused", lora_alpha=6).plan.notes)
