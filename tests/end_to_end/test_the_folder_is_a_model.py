"""A folder whose names, layers or biases are not those of the class that its config names is not published."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.helpers import cli, save_ws1, tensors
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from ckptconv import CkptconvError, inspect, merge

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
    with pytest.raises(CkptconvError, match=r"names are not those|are missing|does not match") as error:
        merge(run, tmp_path / "out")
    found = f"{error.value.what} {error.value.found} {error.value.wanted}"
    assert re.search(says, found), found
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "part", ["layers.0.", "layers.1.mlp.up_proj", "q_proj.bias", "lm_head", "model.norm"]
)
def test_inspect_calls_no_checkpoint_complete_that_lacks_a_part_of_the_model(
    part: str, tmp_path: Path
) -> None:
    state, config = model()
    whole = cli("inspect", save_ws1(state, config, tmp_path / "good"), "--json")
    assert (whole.code, json.loads(whole.out)["complete"]) == (0, True)
    run = save_ws1(without(part)(state), config, tmp_path / "run")
    asked = cli("inspect", run, "--json")
    found = json.loads(asked.out)
    assert (asked.code, found["complete"]) == (1, False)
    assert part.rstrip(".") in found["why_not"]
    shown = cli("inspect", run, columns=300)
    assert shown.code == 1
    assert "✗ not a whole model: tensors of Qwen2ForCausalLM are missing" in shown.flat


def test_inspect_looks_for_missing_tensors_in_a_hugging_face_folder_too(tmp_path: Path) -> None:
    state, config = model()
    for name, change in (("whole", without("nothing")), ("cut", without("layers.1."))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        save_file(change(state), tmp_path / name / "model.safetensors")
    assert inspect(tmp_path / "whole").complete is True
    cut = inspect(tmp_path / "cut")
    assert (cut.complete, "layers.1 (all of it)" in cut.why_not) == (False, True), cut.why_not


@pytest.mark.parametrize(
    ("change", "why_not"),
    [
        ({"architectures": ["Odd"], "model_type": "odd"}, "ckptconv has no list of the tensors of Odd"),
        ({"architectures": None, "model_type": None}, "config.json names no class"),
        (None, "no config.json"),
    ],
)
def test_inspect_says_why_a_checkpoint_is_not_compared_with_a_model(
    change: dict[str, Any] | None, why_not: str, tmp_path: Path
) -> None:
    state, config = model()
    run = save_ws1(state, {**config, **(change or {})}, tmp_path / "run")
    if change is None:
        next(run.rglob("config.json")).unlink()
    found = inspect(run)
    assert (found.complete, found.why_not) == (None, why_not)
    shown = cli("inspect", run, columns=300)
    assert shown.code == 0
    assert f"every stored element is there; not compared with a model: {why_not}" in shown.flat


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


def test_a_layer_more_than_config_json_counts_is_no_mtp_layer(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    """DeepSeek-V3 numbers its MTP layer after the last one; without the modules of such a layer it is an ordinary one."""
    folder = Path(shutil.copytree(made("arch_deepseek_v3_w2") / "global_step_7/actor", tmp_path / "actor"))
    path = folder / "huggingface/config.json"
    config = json.loads(path.read_text())
    assert (config["num_hidden_layers"], config["num_nextn_predict_layers"]) == (2, 1)
    path.write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(CkptconvError, match="does not match these tensors"):
        merge(folder, tmp_path / "out")
