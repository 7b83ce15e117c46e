"""verl's automodel and torchtitan engines on CPUs: the `save_checkpoint` of each (verl-project/verl at 1dda039b9).

The engines are made without their constructors, which build models on GPUs. Their checkpointers are NeMo-Automodel's
(NVIDIA-NeMo/Automodel at 36044ad3d, from AUTOMODEL=DIR) and torchtitan's (0.3.0 from PyPI), with the settings that the
engines give them.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
import torch.distributed as dist
from safetensors.torch import save_file


def automodel(run: Path, model: Any, optimizer: Any, step: int) -> None:
    """`AutomodelEngine.save_checkpoint`: RUN/global_step_N/actor/{model, optim}."""
    sys.path.insert(0, os.environ["AUTOMODEL"])
    from verl.workers.engine.automodel.transformer_impl import AutomodelEngine

    model.config.save_pretrained(base := run.parent / "base")
    if dist.get_rank() == 0 and not (base / "model.safetensors").exists():
        save_file({"unread": torch.zeros(1)}, base / "model.safetensors")
    dist.barrier()
    engine = object.__new__(AutomodelEngine)
    engine.model_config = SimpleNamespace(path=str(base))
    engine.device_mesh, engine.moe_mesh, engine.lr_scheduler = None, None, None
    engine.module, engine.optimizer, engine._is_offload_param = model, optimizer, False
    scope = AutomodelEngine._build_checkpointer.__globals__
    scope |= dict.fromkeys(("get_tp_rank", "get_pp_rank"), lambda *args, **options: 0)
    scope["get_dp_rank"] = lambda *args, **options: dist.get_rank()
    scope["load_automodel_model_to_gpu"] = scope["offload_automodel_model_to_cpu"] = lambda module: None
    MethodType(AutomodelEngine._build_checkpointer, engine)()
    engine.save_checkpoint(str(run / f"global_step_{step}" / "actor"), global_step=step)


def torchtitan(run: Path) -> None:
    """`TorchTitanEngine.save_checkpoint`: RUN/global_step_{6,8}/step-{6,8}, and torchtitan's conversion in RUN/../hf.

    The model and the CheckpointManager are those of `tests/make/torchtitan`. verl wants a nightly build of torchtitan: the
    modules that its engine imports for building models are empty.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "torchtitan"))
    spec = spec_from_file_location("titan_make", Path(__file__).parents[1] / "torchtitan" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    titan = module_from_spec(spec)
    spec.loader.exec_module(titan)
    from titan_0_3 import MODELS

    model, adapter = MODELS["llama"]()
    titan.number(model)
    titan.shard(model)
    manager = titan.manager_of(run, model, adapter)
    for name in ("components.loss", "components.lr_scheduler", "components.optimizer", "config", "train"):
        sys.modules[f"torchtitan.{name}"] = MagicMock()
    for name in ("utils", "activation_checkpoint", "context_parallel", "parallel_dims"):
        sys.modules[f"torchtitan.distributed.{name}"] = MagicMock()
    sys.modules["verl.workers.engine.torchtitan.utils"] = MagicMock()
    from verl.workers.engine.torchtitan.transformer_impl import TorchTitanEngine

    engine = object.__new__(TorchTitanEngine)
    engine._is_offload_param, engine.checkpointer = False, manager
    for at in (6, 8):  # the manager saves every second step
        engine.save_checkpoint(str(run / f"global_step_{at}" / "actor"), global_step=at)
    manager.close()
    state = {key: titan.whole(value) for key, value in model.state_dict().items()}
    if dist.get_rank() == 0:
        (run.parent / "hf").mkdir()
        (run.parent / "hf/config.json").write_text(json.dumps(titan.CONFIGS["llama"], indent=1))
        truth = titan.the_hubs(adapter.to_hf(dict(state)), state)
        truth = {name: value.clone().contiguous() for name, value in truth.items()}
        save_file(truth, run.parent / "hf" / "model.safetensors")
