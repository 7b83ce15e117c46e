"""What nanotron imports and a CPU lacks: flash-attn, Triton and CUDA devices. Only the forward pass would use them."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

_MISSING = ("flash_attn", "triton", "grouped_gemm", "functorch")


class _Module(ModuleType):
    """A module with any name in it: a class without parameters."""

    __path__ = ()
    __version__ = "2.6.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (nn.Module,), {"__init__": lambda self, *args, **options: nn.Module.__init__(self)})
        if name in ("jit", "autotune", "heuristics"):  # Triton's decorators
            return lambda *args, **options: (
                args[0] if args and callable(args[0]) else lambda function: function
            )
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.split(".")[0] not in _MISSING:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def install() -> None:
    """Install the stand-ins, and gloo in place of NCCL."""
    sys.meta_path.insert(0, _Finder())
    torch.cuda.set_device = lambda device: None
    torch.cuda.device = lambda device: None
    from nanotron import distributed

    distributed.initialize_torch_distributed = lambda: dist.init_process_group("gloo")


def buffers_on_cpu() -> None:
    """Give the buffers of pipelines and rotary tables, which ask for CUDA, memory of the CPU."""
    empty = torch.empty

    def made(*args: Any, **options: Any) -> torch.Tensor:
        if torch.device(options.get("device") or "cpu").type == "cuda":
            options["device"] = "cpu"
        return empty(*args, **options)

    torch.empty = made
