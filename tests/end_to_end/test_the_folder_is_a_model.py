"""A folder whose names, layers or biases are not those of the class that its config names is not published."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.helpers import cli, save_ws1, tensors
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from ckptconv import CkptconvError, merge

Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
SIZES = {
    "vocab_size": 41, "hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip


def model(experts: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state dict of a real model and its config."""
    torch.manual_seed(3)
    made: Any
    if experts:
        made = Qwen3MoeForCausalLM(
            Qwen3MoeConfig(
                **SIZES, head_dim=6, num_experts=experts, num_experts_per_tok=2, moe_intermediate_size=12
            )
        )
    else:
        made = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False))
    config = {**made.config.to_dict(), "architectures": [type(made).__name__], "dtype": "float32"}
    return {name: tensor.clone() for name, tensor in made.state_dict().items()}, config


def without(part: str) -> Change:
    return lambda state: {name: tensor for name, tensor in state.items() if part not in name}


def renamed(old: str, new: str) -> Change:
    return lambda state: {name.replace(old, new): tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("layers.0."), r"layers\.0"),
        (without("layers.2."), "num_hidden_layers"),
        (without("layers.1.mlp.up_proj"), r"layers\.1\.mlp\.up_proj\.weight"),
        (without("q_proj.bias"), r"q_proj\.bias"),
        (without("lm_head"), r"lm_head\.weight"),
        (without("model.norm"), r"model\.norm\.weight"),
        (renamed("self_attn.", "attention."), "names are not those of Qwen2ForCausalLM"),
        (renamed("model.layers.", "decoder.blocks."), "names are not those of Qwen2ForCausalLM"),
    ],
)
def test_a_model_that_lacks_a_part_or_has_other_names_is_refused(
    change: Change, says: str, tmp_path: Path
) -> None:
    state, config = model()
    merge(save_ws1(state, config, tmp_path / "good"), tmp_path / "fine")
    run = save_ws1(change(state), config, tmp_path / "run")
    with pytest.raises(CkptconvError, match=r"names are not those|are missing|does not belong") as error:
        merge(run, tmp_path / "out")
    found = f"{error.value.what} {error.value.found} {error.value.wanted}"
    assert re.search(says, found), found
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stated", [3, 6])
def test_another_number_of_fused_experts_than_the_config_states_is_refused(
    stated: int, tmp_path: Path
) -> None:
    state, config = model(experts=4)
    config["num_experts"] = config.pop("num_local_experts", 4)  # as the Hub's folders have it
    assert any(tensor.ndim == 3 for tensor in state.values())
    merge(save_ws1(state, config, tmp_path / "good"), tmp_path / "fine")
    run = save_ws1(state, config | {"num_experts": stated}, tmp_path / "run")
    with pytest.raises(CkptconvError, match=r"does not belong|are missing|does not match|names are not"):
        merge(run, tmp_path / "out")


@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod."])
def test_a_prefix_of_the_trainers_is_taken_off(prefix: str, tmp_path: Path) -> None:
    state, config = model()
    run = save_ws1({prefix + name: tensor for name, tensor in state.items()}, config, tmp_path / "run")
    merge(run, tmp_path / "out")
    assert tensors(tmp_path / "out").keys() == state.keys()


def test_of_a_student_and_its_teacher_the_student_is_taken_and_the_teacher_named(tmp_path: Path) -> None:
    state, config = model()
    both = {f"student.{name}": tensor for name, tensor in state.items()}
    both |= {f"teacher.{name}": tensor + 1 for name, tensor in state.items()}
    ran = cli(
        "merge", save_ws1(both, config, tmp_path / "run"), tmp_path / "out", "--dtype", "keep", columns=300
    )
    assert ran.code == 0, ran.err
    assert "also stored but not read: teacher" in ran.flat
    found = tensors(tmp_path / "out")
    assert {name: found[name].data for name in found} == {n: t.numpy().tobytes() for n, t in state.items()}
