"""The ways of sharding a model that verl's users have: FSDP1, FSDP2, HSDP, FSDP with TP.

Parameters are cut from each rank's own copy, so none of these communicates values.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

Sharder = Callable[[nn.Module], nn.Module]


def layers(model: nn.Module) -> list[nn.Module]:
    """The modules to wrap on their own: those transformers says must not be split, except the root."""
    names = set(getattr(model, "_no_split_modules", None) or [])
    for module in model.modules():
        names |= set(getattr(module, "_no_split_modules", None) or [])
    return [m for m in model.modules() if type(m).__name__ in names and m is not model]


def mesh_1d() -> DeviceMesh:
    """verl's mesh over all ranks."""
    return init_device_mesh("cpu", (torch.distributed.get_world_size(),), mesh_dim_names=("fsdp",))


def mesh_2d(*names: str) -> DeviceMesh:
    """A 2 x 2 mesh."""
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=names)


def mesh_shuffled() -> DeviceMesh:
    """A 2 x 2 mesh whose ranks are not in order and whose names say nothing verl would expect."""
    return DeviceMesh("cpu", [[3, 1], [0, 2]], mesh_dim_names=("replica_group", "dp_shard_cp"))


def fsdp2(mesh: Callable[[], DeviceMesh] = mesh_1d, **options: Any) -> Sharder:
    """fully_shard each layer, then the root, as verl's apply_fsdp2 does."""

    def shard(model: nn.Module) -> nn.Module:
        device_mesh = mesh()
        for module in layers(model):
            fully_shard(module, mesh=device_mesh, **options)
        return fully_shard(model, mesh=device_mesh, **options)

    return shard


def fsdp1(mesh: Callable[[], DeviceMesh] | None = mesh_1d, use_orig_params: bool = False) -> Sharder:
    """FSDP1 as verl wraps: with a mesh it saves DTensors, without one ShardedTensors."""

    def shard(model: nn.Module) -> nn.Module:
        device_mesh = mesh() if mesh else None
        hybrid = device_mesh is not None and device_mesh.ndim == 2
        return FullyShardedDataParallel(
            model,
            auto_wrap_policy=ModuleWrapPolicy({type(m) for m in layers(model)}),
            sharding_strategy=ShardingStrategy.HYBRID_SHARD if hybrid else ShardingStrategy.FULL_SHARD,
            device_mesh=device_mesh,
            device_id=torch.device("cpu"),
            use_orig_params=use_orig_params,
            sync_module_states=False,
        )

    return shard


def column_first(parameter: nn.Parameter) -> Shard | None:
    """Shard(1) where two ranks divide the second dim; FSDP2 takes no uneven dim but the first."""
    return Shard(1) if parameter.ndim > 1 and parameter.shape[1] % 2 == 0 else None


def fsdp2_tp(model: nn.Module) -> nn.Module:
    """Tensor parallel over the inner mesh dim, then FSDP2 over the outer one."""
    mesh = mesh_2d("dp", "tp")
    columns = {f"self_attn.{p}_proj": ColwiseParallel() for p in "qkv"} | {
        f"mlp.{p}_proj": ColwiseParallel() for p in ("gate", "up")
    }
    rows = {"self_attn.o_proj": RowwiseParallel(), "mlp.down_proj": RowwiseParallel()}
    for layer in layers(model):
        parallelize_module(layer, mesh["tp"], columns | rows, src_data_rank=None)
    ends = {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
        "lm_head": ColwiseParallel(output_layouts=Replicate()),
    }
    parallelize_module(model, mesh["tp"], ends, src_data_rank=None)
    return fsdp2(lambda: mesh["dp"])(model)
