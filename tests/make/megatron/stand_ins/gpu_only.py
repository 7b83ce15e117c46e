"""Packages that Megatron-Bridge and mcore-bridge import and that checkpoint code never calls."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any

from te import Inert

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
