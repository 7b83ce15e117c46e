"""Packages that Megatron-Bridge and mcore-bridge import and that checkpoint code never calls."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import typing
from typing import Any

import torch
import torch._functorch.aot_autograd  # asks for triton, of which it needs a real one or none
from te import Inert
from torch import nn

if not hasattr(typing, "override"):  # Python 3.11
    typing.override = lambda function: function  # type: ignore[attr-defined]
ROOTS = {
    *("triton", "causal_conv1d", "mamba_ssm", "fla", "flash_attn", "nvidia_resiliency_ext", "modelopt"),
    *("qwen_vl_utils", "open_clip", "timm", "mlflow", "wandb", "comet_ml", "modelscope", "nemo_run"),
}


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an inert module for every name below ROOTS."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] in ROOTS:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = Inert(spec.name)
        module.__path__ = []
        module.__version__ = "3.0.0"
        return module

    def exec_module(self, module: types.ModuleType) -> None: ...


sys.meta_path.append(Finder())


class GatedNorm(nn.Module):
    """mamba_ssm's norm: one weight."""

    def __init__(
        self, hidden_size: int, *args: Any, device: Any = None, dtype: Any = None, **kwargs: Any
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=dtype))


importlib.import_module("mamba_ssm.ops.triton.layernorm_gated").RMSNorm = GatedNorm
