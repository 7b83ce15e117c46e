"""Adapters of models whose modules have other names or layouts than their folder, and patterns that overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import support.peft_models as models
import torch
from safetensors.torch import load_file
from support.helpers import edit_json
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from ckptconv.commands.merge.run import merge
from ckptconv.errors import CkptconvError

Q = {"target_modules": ["q_proj", "v_proj"]}
BOTH = ["lm_head", "embed_tokens"]


def logits_of(folder: Path, auto: Any = AutoModelForCausalLM) -> torch.Tensor:
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(10)[None]).logits
    return found


def assert_same(trained: models.Trained, out: Path, auto: Any = AutoModelForCausalLM) -> None:
    merge(trained.adapter, out, base=trained.base)
    torch.testing.assert_close(logits_of(out, auto), trained.logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        Q,
        {**Q, "modules_to_save": BOTH},
        {**Q, "trainable_token_indices": [1, 3]},
        {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    ],
    ids=["plain", "whole", "tokens", "both"],
)
def test_an_adapter_of_a_vision_model_finds_the_names_of_its_folder(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """The module is model.language_model.layers, the folder has language_model.model.layers."""
    assert_same(
        models.train(models.llava(), tmp_path, **settings), tmp_path / "out", AutoModelForImageTextToText
    )


def test_a_vision_models_module_without_factors_is_still_missed(tmp_path: Path) -> None:
    trained = models.train(models.llava(), tmp_path, **Q)
    edit_json(trained.adapter / "adapter_config.json", target_modules=["q_proj", "v_proj", "gate_proj"])
    with pytest.raises(CkptconvError, match="does not describe the tensors") as error:
        merge(trained.adapter, tmp_path / "out", base=trained.base)
    assert "gate_proj" in str(error.value.found)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["query_key_value"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["query_key_value", "lm_head"]},
    ],
)
def test_the_head_of_gpt_neox_has_its_own_name_in_the_folder(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    assert_same(models.train(models.neox(), tmp_path, **settings), tmp_path / "out")


def test_the_head_of_gpt2_is_no_conv1d(tmp_path: Path) -> None:
    trained = models.train(models.gpt2(), tmp_path, target_modules=["c_attn", "lm_head"])
    assert_same(trained, tmp_path / "out")


def test_linear_layers_that_are_one_parameter_of_experts(tmp_path: Path) -> None:
    """PEFT writes target_parameters without a module, and gate_up_proj with twice the rank."""
    trained = models.train(models.qwen3_moe(), tmp_path, target_modules="all-linear")
    merge(trained.adapter, tmp_path / "out", base=trained.base)
    settings = (trained.adapter / "adapter_config.json").read_text()
    assert '"gate_up_proj"' in settings
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert found.keys() == trained.merged.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, trained.merged[name], rtol=1e-5, atol=1e-5)


def test_alphas_of_patterns_that_overlap_are_reported(tmp_path: Path) -> None:
    """PEFT sorts the patterns when it saves; training took the first of those that were given."""
    patterns = {"q_proj": 9, r"^model\.layers\.1\..*": 5}
    trained = models.train(models.qwen2(), tmp_path, **Q, alpha_pattern=patterns)
    done = merge(trained.adapter, tmp_path / "out", base=trained.base)
    (note,) = [note for note in done.plan.notes if "several patterns of alpha_pattern" in note]
    assert "model.layers.1.self_attn.q_proj is scaled by alpha 5" in note
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in trained.merged.items())


def test_alphas_of_one_pattern_for_each_module_are_not_reported(tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, **Q, alpha_pattern={"q_proj": 9, "v_proj": 5})
    done = merge(trained.adapter, tmp_path / "out", base=trained.base)
    assert not [note for note in done.plan.notes if "alpha_pattern" in note]


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "lm_head"], "resized": 3},
        {**Q, "resized": -2, "trainable_token_indices": {"embed_tokens": [1, 3]}},
        {**Q, "trainable_token_indices": {"lm_head": [2, 3]}},
    ],
    ids=["head, resized", "tokens, resized", "tokens of the head"],
)
def test_one_half_of_a_tied_pair_tells_of_the_other(settings: dict[str, Any], tmp_path: Path) -> None:
    assert_same(models.train(models.qwen2(tied=True), tmp_path, **settings), tmp_path / "out")


def test_lora_on_a_tied_head_and_trained_tokens_of_its_embedding_is_refused(tmp_path: Path) -> None:
    trained = models.train(
        models.qwen2(tied=True), tmp_path, target_modules=["q_proj", "lm_head"], trainable_token_indices=[1]
    )
    with pytest.raises(CkptconvError, match="which the config ties, is not supported"):
        merge(trained.adapter, tmp_path / "out", base=trained.base)
