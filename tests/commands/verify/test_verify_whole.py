"""The layer model: the list of the class tells what a reference that lacks the same tensors does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from ckptconv.commands import packages
from ckptconv.commands.verify import verify


def folder(path: Path, without: str = "", fp8: bool = False, **changes: Any) -> Path:
    """A folder of a small real model, with float8 projections and a scale for each if fp8."""
    torch.manual_seed(3)
    made = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=41, hidden_size=20, intermediate_size=28, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=False,
        )
    )  # fmt: skip
    state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    if fp8:
        for name in [n for n in state if n.endswith("_proj.weight")]:
            state[name] = state[name].to(torch.float8_e4m3fn)
            state[f"{name}_scale_inv"] = torch.ones(1, 1)
        changes["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    path.mkdir()
    save_file({n: t for n, t in state.items() if not without or without not in n}, path / "model.safetensors")
    config = {**made.config.to_dict(), "architectures": ["Qwen2ForCausalLM"], "dtype": "float32", **changes}
    (path / "config.json").write_text(json.dumps(config))
    return path


def states(target: Path, **options: Any) -> dict[str, bool | None]:
    return {layer.name: layer.ok for layer in verify(target, **options).layers}


def test_a_layer_that_the_reference_lacks_too_is_missing(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two")
    assert "model" not in states(one, against=two)
    one, two = folder(tmp_path / "a", "layers.1."), folder(tmp_path / "b", "layers.1.")
    found = verify(one, against=two)
    assert found.layer("names").ok
    assert found.layer("model").ok is False
    assert [problem.name for problem in found.layer("model").problems] == ["model.layers.1 (all of it)"]
    assert found.code == 1


def test_a_quantised_folder_is_compared_by_what_its_codes_stand_for(tmp_path: Path) -> None:
    assert states(folder(tmp_path / "whole", fp8=True))["model"] is True
    assert states(folder(tmp_path / "cut", "layers.1.", fp8=True))["model"] is False
    assert (
        states(folder(tmp_path / "bare", "layers.1.mlp.up_proj.weight_scale_inv", fp8=True))["model"] is False
    )


def test_without_transformers_the_list_of_the_class_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    whole = states(folder(tmp_path / "whole"))
    assert (whole["loads"], whole["model"]) == (None, True)
    assert states(folder(tmp_path / "cut", "lm_head"))["model"] is False
