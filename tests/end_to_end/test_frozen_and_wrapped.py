"""Frozen parameters that a trainer did not save come from the base model; a wrapper's attribute is no part of names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.helpers import cli, save_ws1, unpacked
from torch.distributed import checkpoint as dcp
from transformers import Qwen2Config, Qwen2ForCausalLM

from ckptconv import CkptconvError, Kind, inspect, merge

State = dict[str, torch.Tensor]
FROZEN = ("model.embed_tokens.", "model.layers.0.")


def small(seed: int) -> tuple[State, dict[str, Any]]:
    """The state dict of a real model and its config."""
    torch.manual_seed(seed)
    made = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=41,
            hidden_size=20,
            intermediate_size=28,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            tie_word_embeddings=False,
        )
    )
    config = {**made.config.to_dict(), "architectures": ["Qwen2ForCausalLM"], "dtype": "float32"}
    return {name: tensor.clone() for name, tensor in made.state_dict().items()}, config


def model_folder(state: State, config: dict[str, Any], folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def dcp_run(state: State, config: dict[str, Any], folder: Path) -> Path:
    dcp.save(dict(state), checkpoint_id=folder, no_dist=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("save", [save_ws1, dcp_run])
def test_what_was_frozen_and_not_saved_comes_from_the_base(save: Any, tmp_path: Path) -> None:
    trained, config = small(1)
    original, _ = small(2)
    kept = {name: tensor for name, tensor in trained.items() if not name.startswith(FROZEN)}
    run = save(kept, config, tmp_path / "run")
    assert inspect(run).complete is False
    with pytest.raises(CkptconvError, match="are missing from the checkpoint") as error:
        merge(run, tmp_path / "out")
    assert error.value.kind is Kind.INCOMPLETE
    assert "--base" in str(error.value.hint)

    base = model_folder(original, config, tmp_path / "base")
    ran = cli("merge", run, tmp_path / "out", "--base", base, "--dtype", "keep", columns=300)
    assert ran.code == 0, ran.err
    missing = len(trained) - len(kept)
    assert f"{missing} tensors that the checkpoint does not hold are taken from base" in ran.flat
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == trained.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, (original if name.startswith(FROZEN) else trained)[name]), name


def test_a_base_that_lacks_the_frozen_parameters_too_is_refused(tmp_path: Path) -> None:
    trained, config = small(1)
    kept = {name: tensor for name, tensor in trained.items() if not name.startswith(FROZEN)}
    partial = {name: tensor for name, tensor in trained.items() if "layers.0." not in name}
    run = save_ws1(kept, config, tmp_path / "run")
    with pytest.raises(CkptconvError, match="are missing from the checkpoint") as error:
        merge(run, tmp_path / "out", base=model_folder(partial, config, tmp_path / "base"))
    assert "layers.0" in str(error.value.found)
    assert not (tmp_path / "out").exists()


def test_a_base_for_a_checkpoint_that_lacks_nothing_is_refused(tmp_path: Path) -> None:
    state, config = small(1)
    run = save_ws1(state, config, tmp_path / "run")
    with pytest.raises(CkptconvError, match="lacks nothing that the base model has"):
        merge(run, tmp_path / "out", base=model_folder(state, config, tmp_path / "base"))


@pytest.mark.parametrize("prefix", ["model.", "module.model.", "student."])
def test_deepspeed_names_under_an_attribute_of_the_engines_module_are_read(
    prefix: str, tmp_path: Path
) -> None:
    state, config = small(1)
    run = shutil.copytree(unpacked("deepspeed_z0_fp32_w2") / "run", tmp_path / "run")
    (run / "config.json").write_text(json.dumps(config))
    (file,) = run.rglob("*model_states.pt")
    root = torch.load(file, weights_only=False)
    root["module"] = {prefix + name: tensor for name, tensor in state.items()}
    for key in ("buffer_names", "param_shapes", "frozen_param_shapes", "shared_params"):
        root.pop(key, None)
    torch.save(root, file)
    ran = cli("merge", run, tmp_path / "out", "--dtype", "keep", columns=300)
    assert ran.code == 0, ran.err
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
