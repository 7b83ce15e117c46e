"""The keys and folders of trainers on torch's DCP (docs/trainers.md), written by the function that they call, dcp.save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from make.hf import model_of
from safetensors.torch import save_file
from support.helpers import assert_equal, tensors

from ckptconv import merge

State = dict[str, Any]


def composer(model: State, optimizer: State) -> State:
    """composer/core/state.py, State.state_dict: the HuggingFaceModel keeps the model as `model`."""
    import torch

    wrapped = {f"model.{name}": value for name, value in model.items()}
    beside = {"schedulers": {"Cosine": {"last_epoch": 1}}, "callbacks": [("a", {"b": torch.ones(3)})]}
    return {"state": {"model": wrapped, "optimizers": {"AdamW": optimizer}, "rank_zero_seed": 17, **beside}}


def prime_rl(model: State, optimizer: State) -> State:
    """prime_rl/trainer/ckpt.py, AppState."""
    import torch

    beside = {"scheduler": {"a": 1}, "progress": {"step": torch.tensor(3)}}
    return {"app": {"model": model, "optimizers": [optimizer], **beside}}


def areal(model: State, optimizer: State) -> State:
    """areal/engine/fsdp_utils/checkpoint.py, DCPState."""
    return {"dcp": {"model": model, "optim": optimizer}}


def xtuner(model: State, optimizer: State) -> State:
    """xtuner/v1/engine/train_engine.py, save_dcp; the names of xtuner/v1/model/dense/qwen3.py."""
    return {
        "model": {name.removeprefix("model."): value for name, value in model.items()},
        "optimizer": optimizer,
    }


TRAINERS: dict[str, tuple[str, Callable[[State, State], State]]] = {
    "Composer": ("ep0-ba10", composer),
    "prime-rl": ("checkpoints/step_10/trainer", prime_rl),
    "AReaL": ("epoch0epochstep9globalstep10", areal),
    "slime": ("iter_0000010/model", lambda model, optimizer: {"model_state": {"model": model}}),
    "XTuner": ("ckpt-step-10/weights", xtuner),
    "verl automodel": ("global_step_10/actor/model", lambda model, optimizer: model),
    "verl torchtitan": (
        "global_step_10/step-10",
        lambda model, optimizer: {"model": model, "optimizer": optimizer},
    ),
}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainers_folder_and_keys_become_the_model(trainer: str, tmp_path: Path) -> None:
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    folder, keys = TRAINERS[trainer]
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    state = keys(dict(model.state_dict()), dict(get_optimizer_state_dict(model, optimizer)))
    dcp.save(state, checkpoint_id=tmp_path / "run" / folder, no_dist=True)
    model.config.save_pretrained(tmp_path / "run")
    save_file(
        {name: value.clone() for name, value in model.state_dict().items()}, tmp_path / "truth.safetensors"
    )
    named = tmp_path / "run" if trainer != "XTuner" else tmp_path / "run" / "ckpt-step-10"
    merged = merge(named, tmp_path / "out", dtype="keep")
    found, truth = tensors(tmp_path / "out"), tensors(tmp_path / "truth.safetensors")
    assert_equal(found, {name: truth[name] for name in found})
    assert set(truth) - set(found) <= {"lm_head.weight"}
    if trainer in ("Composer", "prime-rl", "AReaL", "verl torchtitan"):
        assert any("optimizer" in item.reason for item in merged.plan.checkpoint.skipped)
