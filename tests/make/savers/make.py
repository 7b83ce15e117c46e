r"""Checkpoints that other trainers' own savers write on CPUs over gloo.

    cd EMPTY && CHECKOUT=DIR python -m torch.distributed.run --standalone --nproc-per-node N tests/make/savers/make.py CASE .

    prime_rl          PrimeIntellect-ai/prime-rl at 559b44772: CheckpointManager.save
    skyrl             NovaSky-AI/SkyRL at a9564572e: FSDPStrategy.save_checkpoint
    colossalai        colossalai 0.5.0 from PyPI: Booster.save_model(shard=True)
    composer_sharded, composer_full, composer_plain    mosaicml 0.32.1 from PyPI (write_composer.py)
    areal             inclusionAI/AReaL at 4aef98d8d (write_areal.py)
    xtuner_dense, xtuner_moe_EP_ETP                    InternLM/xtuner at b934f4620 (write_xtuner.py)
    verl_automodel, verl_torchtitan                    verl-project/verl at 1dda039b9 (write_verl.py)
    torchtune_hf      torchtune 0.6.1 from PyPI, N = 1 (write_torchtune.py)

CHECKOUT is the trainer's repository. Packages that only its other parts use are replaced by empty modules (MISSING). The
model is a tiny Qwen3 or Llama, or one of the trainer's own; ./run is the trainer's folder, ./truth.safetensors what the
runtime held.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import sys
import types
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import MagicMock

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import datasets  # noqa: F401  # looks for packages, so before the stand-ins
import torch
import torch.distributed as dist
import transformers
import transformers.trainer
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

STEP = 7
MISSING = {
    "pydantic_config",
    "dion",
    "wandb",
    "loguru",
    "skyrl_gym",
    "flash_attn",
    "jaxtyping",
    "torchvision",
    "ray",
}
MISSING |= {
    "lark",
    "aiofiles",
    "werkzeug",
    "orjson",
    "tenacity",
    "httpx",
    "openai",
    "numba",
    "uvloop",
    "flask",
    "hydra",
    "codetiming",
    "tensordict",
}


class Empty:
    """Finds the packages in MISSING, with any name in them."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        known = name.split(".")[0] in MISSING
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> Any:
        module = MagicMock(name=spec.name)
        module.__spec__, module.__path__, module.__name__, module.__all__ = spec, [], spec.name, []
        return module

    def exec_module(self, module: Any) -> None:
        pass


def tiny(kind: str = "Qwen3") -> Any:
    """Qwen3 or Llama with dims that differ and do not divide by the ranks; values that count up."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=131,
        hidden_size=23 if kind == "Qwen3" else 36,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10 if kind == "Qwen3" else 6,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        architectures=[f"{kind}ForCausalLM"],
    )
    model, at = getattr(transformers, f"{kind}ForCausalLM")(config), 0
    with torch.no_grad():
        for param in model.parameters():
            steps = torch.arange(at, at + param.numel()) * 37 % 251
            param.copy_((steps.float() / 1024 - 0.12).reshape(param.shape))
            at += param.numel()
    return model


def sharded(model: Any) -> Any:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def stepped(model: Any) -> Any:
    """AdamW after one step on a rank's own data."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.arange(9)[None] + dist.get_rank()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    with torch.no_grad():  # values that pack well
        for param in model.parameters():
            local = param.to_local() if hasattr(param, "to_local") else param
            local.copy_((local * 8192).round() / 8192)
            for key in ("exp_avg", "exp_avg_sq"):
                optimizer.state[param][key].fill_(0.25)
    return optimizer


def prime_rl(run: Path) -> Any:
    source = Path(os.environ["CHECKOUT"])
    sys.path[:0] = [str(source / "src"), *map(str, (source / "packages").glob("*/src"))]
    from prime_rl.configs.trainer import CheckpointConfig
    from prime_rl.trainer.ckpt import CheckpointManager, Progress

    model = sharded(tiny())
    optimizer = stepped(model)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    CheckpointManager(run, CheckpointConfig()).save(STEP, model, [optimizer], scheduler, Progress(step=STEP))
    if dist.get_rank() == 0:
        model.config.save_pretrained(run)
    return model


def skyrl(run: Path) -> Any:
    source = os.environ["CHECKOUT"]
    sys.path.insert(0, source)
    package = types.ModuleType("skyrl.backends")  # its own __init__ imports the other backends
    package.__path__ = [f"{source}/skyrl/backends"]
    sys.modules["skyrl.backends"] = package
    torch.cuda.synchronize = lambda *args: None
    from skyrl.backends.skyrl_train.distributed.fsdp_strategy import FSDPStrategy

    model = sharded(tiny())
    optimizer = stepped(model)
    strategy = object.__new__(FSDPStrategy)
    strategy.world_size, strategy.fsdp_strategy, strategy.is_lora = dist.get_world_size(), "fsdp2", False
    folder = str(run / f"global_step_{STEP}" / "policy")
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    strategy.save_checkpoint(model, folder, int(os.environ["LOCAL_RANK"]), optimizer, scheduler)
    return model


def colossalai(run: Path) -> Any:
    from colossalai.booster import Booster
    from colossalai.booster.plugin import TorchDDPPlugin

    booster, model = Booster(plugin=TorchDDPPlugin()), tiny()
    wrapped, *_ = booster.boost(model, stepped(model))
    booster.save_model(wrapped, str(run / "modeling"), shard=True, size_per_shard=1)
    if dist.get_rank() == 0:
        model.config.save_pretrained(run / "modeling")
    return model


def with_model(case: str, run: Path) -> Any:
    """The cases in which a saver gets a model of transformers; returns the model, whose state dict is the truth."""
    if case.startswith("composer_"):
        from write_composer import composer

        return composer(run, tiny(), case.removeprefix("composer_"))
    if case == "torchtune_hf":
        from write_torchtune import torchtune_hf

        return torchtune_hf(run, tiny("Llama"))
    sys.path.insert(0, os.environ["CHECKOUT"])
    model = sharded(tiny())
    optimizer = stepped(model)
    if case == "areal":
        from write_areal import areal

        areal(run, model, optimizer)
    else:
        from write_verl import automodel

        automodel(run, model, optimizer, STEP)
    return model


def finish(case: str, out: Path) -> NoReturn:
    """Write the versions, and leave at once: some trainers' threads and groups do not end."""
    if dist.get_rank() == 0:
        world = dist.get_world_size()
        about = {
            "case": case,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "world": world,
        }
        (out / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    dist.barrier()
    os._exit(0)


def main() -> None:
    case, out = sys.argv[1], Path(sys.argv[2])
    sys.meta_path.append(Empty())  # type: ignore[arg-type]
    dist.init_process_group("gloo")
    (out / "run").mkdir(parents=True, exist_ok=True)
    cases = {"prime_rl": prime_rl, "skyrl": skyrl, "colossalai": colossalai}
    if case.startswith("xtuner_"):
        sys.path.insert(0, os.environ["CHECKOUT"])
        from write_xtuner import xtuner

        kind, *cut = case.removeprefix("xtuner_").split("_")
        xtuner(out / "run", kind, *map(int, cut))
        finish(case, out)
    if case == "verl_torchtitan":
        sys.path.insert(0, os.environ["CHECKOUT"])
        from write_verl import torchtitan

        torchtitan(out / "run")
        finish(case, out)
    model = cases[case](out / "run") if case in cases else with_model(case, out / "run")
    full = {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone().contiguous()
        for name, value in model.state_dict().items()
    }
    if dist.get_rank() == 0:
        save_file(full, out / "truth.safetensors")
    finish(case, out)


if __name__ == "__main__":
    main()
