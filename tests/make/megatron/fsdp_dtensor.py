"""Checkpoints of Megatron-FSDP (--ckpt-format fsdp_dtensor), written by Megatron-FSDP itself on gloo.

    python tests/make/megatron/fsdp_dtensor.py [NAME …] [--out DIR]      # with the venv of README.md

Real: Megatron-Core's model and its FSDP, whose flat buffers decide what a rank holds; its preprocessing of the state dict;
torch's DCP. Not real: Transformer Engine and CUDA (stand_ins/), and save_checkpoint of the trainers, whose few lines are
repeated here. No optimizer is saved: its entries are named `optimizer.*`, which a reader leaves out by name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
HF, FOLDER = "hf", Path("run/iter_0000010")


@dataclass(frozen=True)
class FsdpCase:
    """One checkpoint; all ranks that are not for TP are data-parallel, and weights are sharded over those."""

    family: str
    shows: str
    ranks: int
    tp: int = 1
    ep: int = 1
    pad: int = 0  # the vocabulary is padded to a multiple of this


CASES = {
    "qwen2_fsdp3": FsdpCase("qwen2", "flat buffers over three ranks: some hold no row of a tensor", 3),
    "qwen2_fsdp_tp2": FsdpCase("qwen2", "two meshes: tensor and data parallel; halves of fc1 over both", 4, tp=2, pad=32),
    "qwen3_moe_fsdp_ep2": FsdpCase("qwen3_moe", "experts by number in their names, over EP 2 and DP 2", 4, ep=2),
    "deepseek_v3_fsdp_ep2": FsdpCase("deepseek_v3", "MLA, shared experts, expert bias: a plain tensor", 4, ep=2),
}  # fmt: skip


def rank_main(name: str) -> None:
    """One rank, for torchrun, in the case's folder."""
    import cpu  # noqa: F401
    import torch
    import torch.distributed as dist
    from megatron.core import mpu
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from torch.distributed.device_mesh import DeviceMesh

    case = CASES[name]
    dist.init_process_group("gloo")
    mpu.initialize_model_parallel(
        case.tp, 1, None, expert_model_parallel_size=case.ep, expert_tensor_parallel_size=1
    )
    model_parallel_cuda_manual_seed(0)
    from_group = DeviceMesh.from_group
    DeviceMesh.from_group = staticmethod(  # type: ignore[method-assign]
        lambda group, device_type, *args, **kwargs: from_group(group, "cpu", *args, **kwargs)
    )
    from bridges import load
    from cases import Case
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.distributed.fsdp.mcore_fsdp_adapter import FullyShardedDataParallel

    loaded = load(Case(case.family, "", tp=case.tp, ep=case.ep, ranks=case.ranks, pad=case.pad))
    settings = DistributedDataParallelConfig(
        use_megatron_fsdp=True,
        data_parallel_sharding_strategy="optim_grads_params",
        use_distributed_optimizer=True,
        overlap_grad_reduce=True,
        overlap_param_gather=True,
        bucket_size=10_000,
    )
    model = FullyShardedDataParallel(loaded.config, settings, loaded.models[0], device=torch.device("cpu"))
    save(model, loaded.config.num_moe_experts)
    if dist.get_rank() == 0:
        (Path("run") / "latest_checkpointed_iteration.txt").write_text("10")
    dist.barrier()
    dist.destroy_process_group()


def save(model: Any, experts: int | None) -> None:
    """megatron/training/checkpointing.py: generate_state_dict, preprocess_fsdp_dtensor_state_dict and the save."""
    import argparse

    import torch.distributed.checkpoint as dcp
    from megatron.core import mpu
    from megatron.core.distributed.fsdp.src.megatron_fsdp.uneven_dtensor import (
        preprocess_state_dict_for_uneven_dtensor,
    )
    from megatron.core.transformer import fsdp_dtensor_checkpoint as megatron

    state: dict[str, Any] = {
        "args": argparse.Namespace(ckpt_format="fsdp_dtensor", swiglu=True, num_experts=experts),
        "checkpoint_version": 3.0,
        "iteration": 10,
        "model": model.state_dict_for_save_checkpoint(),
        "rng_state": {
            f"(0, {mpu.get_tensor_model_parallel_rank()})": [{"random_rng_state": (3, (1, 2), None)}]
        },
    }
    megatron.handle_fp8_extra_state_case(state["model"])
    state["model"], _ = megatron.handle_swiglu_in_state_dict(model, state["model"], None)
    if experts:
        state["model"] = megatron.handle_experts_in_state_dict(state["model"], experts)
    preprocess_state_dict_for_uneven_dtensor(state)
    FOLDER.mkdir(parents=True, exist_ok=True)
    dcp.save(state, storage_writer=dcp.FileSystemWriter(FOLDER))


def make(name: str, out: Path) -> str:
    """One fixture; the test is what compares it with ./hf. Returns a line about it."""
    sys.path.append(str(HERE.parent))
    import tiny
    from pack import pack

    case = CASES[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        tiny.make(case.family, folder / HF)
        index = tiny.write_index(folder / HF)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        launch = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
        command = [*launch, f"--nproc-per-node={case.ranks}", str(Path(__file__).resolve()), "--rank", name]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("[rank0]")]
            return f"FAILED  {name}\n" + "\n".join(lines[-30:])
        index.unlink()
        versions = {each: version(each) for each in ("torch", "transformers", "megatron-core", "mbridge")}
        about = {"command": f"python tests/make/megatron/fsdp_dtensor.py {name}", **asdict(case)}
        about |= {"versions": versions, "not_real": "Transformer Engine and CUDA; Megatron-FSDP is"}
        (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")
        return f"OK      {name}  {pack(folder, out).stat().st_size / 1000:.0f} kB"


def main() -> None:
    sys.path[:1] = [str(HERE), str(HERE / "stand_ins")]
    if sys.argv[1:2] == ["--rank"]:
        rank_main(sys.argv[2])
        return
    words = sys.argv[1:]
    out = (
        Path(words.pop(words.index("--out") + 1))
        if "--out" in words
        else HERE.parents[1] / "fixtures/megatron_fsdp"
    )
    for name in [word for word in words if word != "--out"] or CASES:
        print(make(name, out), flush=True)


if __name__ == "__main__":
    main()
