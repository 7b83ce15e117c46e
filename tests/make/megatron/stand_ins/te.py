"""Transformer Engine without kernels: names, shapes, tensor parallel attributes and extra states of its modules.

Import it before megatron. Megatron's own wrappers and their sharded_state_dict run on top of it unchanged.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import sys
import types
from typing import Any

import torch
from torch import distributed, nn

VERSION = "2.8.0"  # from 2.0 on an extra state is an empty uint8 tensor; from 2.8 on attention has sinks
MODULES = [
    "common",
    "common.recipe",
    "pytorch",
    "pytorch.fp8",
    "pytorch.distributed",
    "pytorch.ops",
    "pytorch.tensor",
    "pytorch.tensor.utils",
    "pytorch.tensor.float8_tensor",
    "pytorch.tensor.mxfp8_tensor",
    "pytorch.tensor.float8_blockwise_tensor",
    "pytorch.float8_tensor",
    "pytorch.module",
    "pytorch.module.base",
    "pytorch.cpp_extensions",
    "pytorch.router",
    "pytorch.utils",
    "pytorch.attention",
    "pytorch.attention.rope",
    "pytorch.constants",
    "pytorch.permutation",
    "pytorch.cross_entropy",
]


ABSENT = {"ep"}  # newer kernels, which Megatron-Core looks into if it finds them


class Inert(types.ModuleType):
    """A module in which every name is a class that does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ABSENT:
            raise AttributeError(name)
        body = {
            "__init__": lambda self, *args, **kwargs: None,
            "__call__": lambda self, wrapped=None, *args, **kwargs: wrapped,
            "apply": staticmethod(lambda *args, **kwargs: None),
        }
        made = type(name, (), body)
        setattr(self, name, made)
        return made


def inert(name: str) -> Inert:
    """Registers an inert package under its full name and in its parent."""
    module = Inert(name)
    module.__path__ = []
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
    return module


class Base(nn.Module):
    """What Megatron asks of any Transformer Engine module."""

    def __init__(self) -> None:
        super().__init__()
        self.fp8_meta = {"fp8_checkpoint": False, "recipe": None}
        self.fp8 = self.fp8_calibration = False

    def init_fp8_metadata(self, num_gemms: int = 1) -> None: ...

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None: ...

    def set_tensor_parallel_group(self, group: Any) -> None: ...

    def reset_fp8_meta_tensors(self) -> None: ...


def add(module: nn.Module, name: str, shape: tuple[int, ...], kwargs: dict, dim: int | None = None) -> None:
    """Registers a parameter; its attributes come after that, as Transformer Engine sets them."""
    where = {"dtype": kwargs.get("params_dtype", torch.float32), "device": kwargs.get("device", "cpu")}
    setattr(module, name, nn.Parameter(torch.zeros(*shape, **where)))
    if dim is not None:
        parameter = getattr(module, name)
        parameter.tensor_model_parallel, parameter.partition_dim, parameter.partition_stride = True, dim, 1


class Linear(Base):
    """One matrix, or `num_gemms` of them; columns or rows split over the tensor parallel group."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        tp_group: Any = None,
        tp_size: int = 1,
        bias: bool = True,
        parallel_mode: str | None = None,
        num_gemms: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.tp_size = tp_size
        self.tp_rank = distributed.get_rank(tp_group) if tp_group is not None and tp_size > 1 else 0
        if parallel_mode == "column":
            out_features //= tp_size
        if parallel_mode == "row":
            in_features //= tp_size
        self.in_features, self.out_features = in_features, out_features
        self.use_bias, self.parallel_mode, self.num_gemms = bias, parallel_mode, num_gemms
        dim = {"column": 0, "row": 1}.get(parallel_mode or "")
        for index in [""] if num_gemms is None else range(num_gemms):
            add(self, f"weight{index}", (out_features, in_features), kwargs, dim)
            if bias:
                add(self, f"bias{index}", (out_features,), kwargs, 0 if dim == 0 else None)


class LayerNormLinear(Linear):
    """A norm and a linear layer in one."""

    def __init__(
        self, in_features: int, out_features: int, *, normalization: str = "LayerNorm", **kwargs: Any
    ) -> None:
        kwargs.pop("zero_centered_gamma", None)
        super().__init__(in_features, out_features, **kwargs)
        add(self, "layer_norm_weight", (in_features,), kwargs)
        if normalization == "LayerNorm":
            add(self, "layer_norm_bias", (in_features,), kwargs)


class GroupedLinear(Linear):
    """The matrices of several experts."""

    def __init__(self, num_gemms: int, in_features: int, out_features: int, **kwargs: Any) -> None:
        super().__init__(in_features, out_features, num_gemms=num_gemms, **kwargs)


class RMSNorm(Base):
    """A norm of its own."""

    def __init__(self, hidden_size: int = 0, eps: float = 1e-5, **kwargs: Any) -> None:
        super().__init__()
        add(self, "weight", (hidden_size or kwargs["normalized_shape"],), kwargs)


class LayerNorm(RMSNorm):
    """A norm with a bias."""

    def __init__(self, hidden_size: int = 0, eps: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(hidden_size, eps, **kwargs)
        add(self, "bias", tuple(self.weight.shape), kwargs)


class DotProductAttention(Base):
    """Attention has nothing to store but its extra state; with sinks, `softmax_offset`."""

    def __init__(self, num_attention_heads: int, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        if kwargs.get("softmax_type") == "learnable":
            heads = num_attention_heads // kwargs.get("tp_size", 1)
            self.softmax_offset = nn.Parameter(torch.zeros(heads, dtype=torch.float32))


engine = inert("transformer_engine")
engine.__version__ = VERSION
for each in MODULES:
    inert(f"transformer_engine.{each}")
pytorch = engine.pytorch
for each in (Linear, LayerNormLinear, GroupedLinear, RMSNorm, LayerNorm, DotProductAttention):
    setattr(pytorch, each.__name__, each)
pytorch.TransformerEngineBaseModule = pytorch.module.base.TransformerEngineBaseModule = Base
pytorch.fp8_model_init = lambda *args, **kwargs: contextlib.nullcontext()
