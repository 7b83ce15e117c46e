"""Real torchtitan checkpoints on CPU ranks: its model classes, optimizer container and CheckpointManager, FSDP2 over gloo.

torchrun --nproc-per-node 3 tests/make/torchtitan/make.py TO     # TO/<name>/{run, hf}; see README.md

Every element is a number of its own, so that a wrong place cannot pass. hf/ is what torchtitan's own adapter makes of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from sizes import CONFIGS
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

NEW = version("torchtitan") >= "0.3"
EXPERTS = {
    "mlp1_weight": "gate_up_proj",
    "mlp2_weight": "down_proj",
    "mlp1_bias": "gate_up_proj_bias",
    "mlp2_bias": "down_proj_bias",
}


class Counter:
    """Something with a state, as the trainer itself and its dataloader have one."""

    def __init__(self, **state: Any) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def main() -> None:
    to = Path(sys.argv[1])
    dist.init_process_group("gloo")
    models = __import__("titan_0_3" if NEW else "titan_0_2").MODELS
    for name, make in models.items():
        torch.manual_seed(0)
        model, adapter = make()
        write(to / name, name, model, adapter)
    about(to)
    dist.destroy_process_group()


def about(to: Path) -> None:
    """The versions, and how many ranks wrote it."""
    if dist.get_rank() == 0:
        found = {
            "torchtitan": version("torchtitan"),
            "torch": torch.__version__,
            "ranks": dist.get_world_size(),
        }
        (to / "about.json").write_text(json.dumps(found, indent=1))


def write(to: Path, name: str, model: nn.Module, adapter: Any) -> None:
    number(model)
    shard(model)
    manager = manager_of(to / "run", model, adapter)
    manager.save(2)
    if name == "llama":
        manager.save(3, last_step=True)  # the model alone, in bfloat16
    manager.close()
    state = {key: whole(value) for key, value in model.state_dict().items()}
    if dist.get_rank() == 0:
        (to / "hf").mkdir()
        (to / "hf/config.json").write_text(json.dumps(CONFIGS[name], indent=1))
        truth = the_hubs(adapter.to_hf(dict(state)), state)
        save_file({k: v.clone().contiguous() for k, v in truth.items()}, to / "hf/model.safetensors")
    dist.barrier()


def number(model: nn.Module) -> None:
    """Fill every parameter and stored buffer with numbers that occur once; small bit patterns in bfloat16, whole numbers
    in float32, which pack well."""
    stored = model.state_dict()
    at = 1
    with torch.no_grad():
        for value in chain(model.parameters(), (b for n, b in model.named_buffers() if n in stored)):
            numbers = torch.arange(at, at + value.numel()).view(value.shape)
            small = value.dtype is torch.bfloat16
            value.copy_(numbers.to(torch.int16).view(torch.bfloat16) if small else numbers)
            at += value.numel()
            assert at < (2**15 - 2**7 if small else 2**24)


def shard(model: nn.Module) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("fsdp",))
    layers: Any = model.layers
    for layer in layers.values():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value.clone()


def the_hubs(truth: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the adapter makes, and what it loses: gpt-oss' experts (0.2.2: under the quantised model's names and in its
    layout; 0.3.0: not at all), where the Hub's unquantised ones are (expert, in, out), and Llama 4's dense layers (0.2.2).
    Source: transformers, GptOssExperts and Llama4TextMLP."""
    found = {name: value for name, value in truth.items() if not name.endswith("_blocks")}
    for name, value in state.items():
        _, layer, _, *_, last = name.split(".") if name.startswith("layers.") else ("", "", "", "")
        part = EXPERTS.get("_".join(last.split("_")[:2]))
        if part:
            weight = last.startswith(("mlp1_weight", "mlp2_weight"))
            found[f"model.layers.{layer}.mlp.experts.{part}"] = value.transpose(1, 2) if weight else value
        if ".feed_forward." in name and any(key.startswith("language_model.") for key in truth):
            part = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}[name.split(".")[3]]
            found[f"language_model.model.layers.{layer}.feed_forward.{part}.weight"] = value
    return found


def manager_of(run: Path, model: nn.Module, adapter: Any, export_dtype: str = "bfloat16") -> Any:
    """torchtitan's own CheckpointManager over a model whose optimizer has made a step that changes nothing."""
    optimizers, schedulers = new_optimizers(model) if NEW else old_optimizers(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.step()
    states = {"train_state": Counter(step=2, ntokens_seen=1234)}
    common: dict[str, Any] = {
        "dataloader": Counter(dp_rank_0={"position": 7}, world_size=dist.get_world_size()),
        "model_parts": [model],
        "optimizers": optimizers,
        "lr_schedulers": schedulers,
        "states": states,
        "sd_adapter": adapter,
        "base_folder": str(run),
    }
    settings: dict[str, Any] = {
        "enable": True,
        "interval": 2,
        "export_dtype": export_dtype,
        "keep_latest_k": 0,
    }
    from torchtitan.components.checkpoint import CheckpointManager

    if NEW:
        return CheckpointManager(CheckpointManager.Config(**settings, last_save_model_only=True), **common)
    from torchtitan.config.job_config import Checkpoint

    return CheckpointManager(checkpoint_config=Checkpoint(**settings, last_save_model_only=True), **common)


def new_optimizers(model: nn.Module) -> tuple[Any, Any]:
    from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer, default_adamw

    config = default_adamw(lr=0.0)
    config.implementation = "for-loop"
    optimizers = OptimizersContainer(config, model_parts=[model])
    return optimizers, LRSchedulersContainer(optimizers, lambda step: 1.0)


def old_optimizers(model: nn.Module) -> tuple[Any, Any]:
    from torchtitan.components.lr_scheduler import LRSchedulersContainer
    from torchtitan.components.optimizer import OptimizersContainer

    optimizers: Any = OptimizersContainer([model], torch.optim.AdamW, {"lr": 0.0, "weight_decay": 0.0})
    return optimizers, LRSchedulersContainer(optimizers, lambda step: 1.0)


if __name__ == "__main__":
    main()
