"""Sharded state dicts as other releases of torch pickle them, in the layout of verl's FSDP folders.

    python -m venv OLD
    OLD/bin/pip install torch==2.4.1 "numpy<2" safetensors     # 2.4.1, 2.6.0 and 2.8.0 are in tests/fixtures
    OLD/bin/python tests/make/old_torch.py                     # writes tests/fixtures/torch_2_4

The folder is named after the running torch. It holds one sub-folder for each way of sharding one small model,
`truth.safetensors` (that model, whole; the same for every sub-folder but those with experts, which have
`truth_experts.safetensors`) and about.json. Newer releases, 2.14.1 and 2.15.0, are packed:

    NEW/bin/python tests/make/old_torch.py --out NEWDIR/torch_2_15
    python tests/make/pack.py NEWDIR/torch_2_15 tests/fixtures

With DEVICE=cuda in the environment, the shards are tensors of a GPU: all ranks use the first GPU and talk over gloo,
since NCCL takes one rank a device.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

FIXTURES = Path(__file__).parents[1] / "fixtures"
DEVICE = os.environ.get("DEVICE", "cpu")
VERSION = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
WIDE = 12 if (2, 5) <= VERSION < (2, 7) else 10  # 2.6's fully_shard wants TP's rows to divide

#: name: (ranks, FSDP version, how it is sharded)
CASES = {
    "fsdp2_w2": (2, 2, "fully_shard on a 1-D mesh"),
    "fsdp2_hsdp_w4": (4, 2, "fully_shard on a 2 x 2 mesh, replicated over the first dim"),
    "fsdp2_tp_w4": (4, 2, "colwise and rowwise TP, then fully_shard over the other dim: _StridedShard"),
    "fsdp1_w2": (2, 1, "FullyShardedDataParallel without a mesh: ShardedTensor"),
    "fsdp1_mesh_w2": (2, 1, "FullyShardedDataParallel with a mesh: DTensor"),
    "fsdp1_hsdp_w4": (4, 1, "FullyShardedDataParallel, HYBRID_SHARD on a 2 x 2 mesh"),
    "fsdp1_tp_w4": (4, 1, "colwise and rowwise TP, then FullyShardedDataParallel over the other dim"),
}
if VERSION >= (2, 14):
    CASES |= {
        "fsdp2_permuted_w4": (4, 2, "fully_shard on the 1-D mesh [2, 0, 3, 1]"),
        "fsdp2_ep3_w6": (
            6,
            2,
            "experts cut over ep 3, then fully_shard over ep_fsdp 2, as verl's VeOmni engine does",
        ),
        "fsdp2_ep2_outer_w4": (4, 2, "the same over the mesh (ep 2, ep_fsdp 2)"),
    }
if VERSION >= (2, 15):
    CASES |= {
        "fsdp2_preserved_w4": (4, 2, "fully_shard on the 1-D mesh [2, 0, 3, 1], preserve_rank_order=True"),
        "fsdp2_preserved_hsdp_w4": (4, 2, "the 2-D mesh [[3, 1], [2, 0]], preserve_rank_order=True"),
    }
if DEVICE == "cuda":
    del CASES["fsdp1_tp_w4"]  # 2.11's ranks die in it where they share a GPU
if VERSION < (2, 5):  # "2D state_dict is under development"
    CASES = {case: how for case, how in CASES.items() if case not in ("fsdp2_hsdp_w4", "fsdp2_tp_w4")}


class Block(nn.Module):
    """Parameters of odd sizes in 1, 2 and 3 dims, one of a single row, and buffers of other dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(7, WIDE)
        self.down = nn.Linear(WIDE, 7)
        self.taps = nn.Parameter(torch.randn(5, 3, 11))
        self.gate = nn.Parameter(torch.randn(1, 13))
        self.register_buffer("steps", torch.arange(3))
        self.register_buffer("scale", torch.tensor(0.37))
        self.register_buffer("mask", torch.tensor([True, False, True]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x))


class Model(nn.Module):
    """Two blocks, a bf16 part, and names with a dash, a space and a letter beyond ASCII."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(29, 7)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.low = nn.Linear(7, 9).to(torch.bfloat16)
        self.odd_names = nn.ModuleDict({"a-b": nn.Linear(7, 3), "c d": nn.Linear(3, 2), "é": nn.LayerNorm(7)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embed(x)


class WithExperts(Model):
    """The same with fused experts: six of them."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Module()
        self.experts.gate_up_proj = nn.Parameter(torch.randn(6, 10, 7))
        self.experts.down_proj = nn.Parameter(torch.randn(6, 8, 5))


def make(out: Path) -> None:
    """Writes every case, each under torchrun, and about.json."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for case, (ranks, _, _) in CASES.items():
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        call = [*launch, str(Path(__file__).resolve()), case, "--out", str(out.resolve())]
        subprocess.run(call, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    about = {
        "command": "python tests/make/old_torch.py",
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "cases": {case: how for case, (_, _, how) in CASES.items()},
    }
    (out / "about.json").write_text(json.dumps(about, indent=1) + "\n")


def write_rank(case: str, out: Path) -> None:
    """One rank's file of one case; rank 0 also writes fsdp_config.json and the truth."""
    dist.init_process_group("gloo")
    rank, folder = dist.get_rank(), out / case
    ranks, fsdp, _ = CASES[case]
    torch.manual_seed(23)
    model = WithExperts() if "_ep" in case else Model()
    folder.mkdir(exist_ok=True)
    if rank == 0:
        write_truth(model, out / ("truth_experts.safetensors" if "_ep" in case else "truth.safetensors"))
        (folder / "fsdp_config.json").write_text(
            json.dumps({"FSDP_version": fsdp, "world_size": ranks}, indent=4)
        )
    model.to(DEVICE)
    state = shard_fsdp1(model, case) if fsdp == 1 else shard_fsdp2(model, case)
    torch.save(state, folder / f"model_world_size_{ranks}_rank_{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def write_truth(model: nn.Module, file: Path) -> None:
    """The whole state dict before it is sharded."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}, file)


def parts(model: Any) -> list[nn.Module]:
    """The modules that are sharded on their own, as decoder layers are; the root comes after them."""
    return [*model.blocks, model.low]


def shard_fsdp2(model: Any, case: str) -> dict[str, Any]:
    """The state dict under fully_shard, DTensors."""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:  # before 2.6
        from torch.distributed._composable.fsdp import fully_shard

    mesh = mesh_of(model, case)
    if "_ep" in case:
        shard_experts(model.experts, mesh)
        mesh = init_device_mesh(DEVICE, (dist.get_world_size(),), mesh_dim_names=("dp_shard",))
    for part in [*parts(model), model]:
        fully_shard(part, mesh=mesh)
    return model.state_dict()


def shard_experts(experts: nn.Module, mesh: Any) -> None:
    """What veomni/distributed does: keep this rank's experts, then shard their second dim over the rest of the mesh."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    for name, whole in [*experts.named_parameters()]:
        mine = whole.detach().chunk(mesh["ep"].size())[mesh["ep"].get_local_rank()]
        setattr(experts, name, nn.Parameter(mine.clone()))
    fully_shard(experts, mesh=mesh["ep_fsdp"], shard_placement_fn=lambda _: Shard(1))


def mesh_of(model: Any, case: str) -> Any:
    """FSDP's mesh under verl's names; for TP it is a submesh, and the blocks are cut over the other dim."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    if "_ep" in case:
        sizes = {"ep_fsdp": 2, "ep": dist.get_world_size() // 2}
        names = ("ep", "ep_fsdp") if "outer" in case else ("ep_fsdp", "ep")
        return init_device_mesh(DEVICE, tuple(sizes[name] for name in names), mesh_dim_names=names)
    if "preserved" in case or "permuted" in case:
        flags = {"preserve_rank_order": True} if "preserved" in case else {}
        ranks, names = ([[3, 1], [2, 0]], ("ddp", "fsdp")) if "hsdp" in case else ([2, 0, 3, 1], ("fsdp",))
        return DeviceMesh(DEVICE, ranks, mesh_dim_names=names, **flags)
    if case.endswith("hsdp_w4"):
        return init_device_mesh(DEVICE, (2, 2), mesh_dim_names=("ddp", "fsdp"))
    if not case.endswith("tp_w4"):
        return init_device_mesh(DEVICE, (2,), mesh_dim_names=("fsdp",))
    mesh = init_device_mesh(DEVICE, (2, 2), mesh_dim_names=("fsdp", "tp"))
    for block in model.blocks:
        parallelize_module(block, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return mesh["fsdp"]


def shard_fsdp1(model: Any, case: str) -> dict[str, Any]:
    """The sharded state dict under FullyShardedDataParallel: ShardedTensors, or DTensors given a mesh."""
    from torch.distributed.fsdp import (
        FullyShardedDataParallel,
        ShardedStateDictConfig,
        ShardingStrategy,
        StateDictType,
    )
    from torch.distributed.fsdp.wrap import CustomPolicy

    apart = {id(part) for part in parts(model)}
    strategy = ShardingStrategy.HYBRID_SHARD if case == "fsdp1_hsdp_w4" else ShardingStrategy.FULL_SHARD
    wrapped = FullyShardedDataParallel(
        model,
        device_mesh=None if case == "fsdp1_w2" else mesh_of(model, case),
        sharding_strategy=strategy,
        device_id=torch.device(DEVICE, 0) if DEVICE != "cpu" else torch.device("cpu"),
        auto_wrap_policy=CustomPolicy(lambda module: id(module) in apart),
    )
    settings = ShardedStateDictConfig(offload_to_cpu=False)
    with FullyShardedDataParallel.state_dict_type(wrapped, StateDictType.SHARDED_STATE_DICT, settings):
        return wrapped.state_dict()


def main() -> None:
    """Without torchrun: makes every case. Under torchrun: is one rank of the named one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("case", nargs="?", choices=[*CASES], help="one case, for torchrun")
    parser.add_argument("--out", type=Path, default=FIXTURES / "torch_{}_{}".format(*VERSION))
    args = parser.parse_args()
    if "RANK" in os.environ:
        write_rank(args.case, args.out)
    else:
        make(args.out)


if __name__ == "__main__":
    main()
