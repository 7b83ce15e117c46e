"""One case, by DeepSpeed itself: train a step, give every parameter values of its own, save, and write down the truth.

python -m torch.distributed.run --standalone --nproc-per-node W write.py CASE OUT

The truth is what the runtime holds: `safe_get_full_fp32_param` for trained parameters, `GatheredParameters` for
frozen ones. Values count up in steps of 2^-13, so that they differ in every element and still pack well; bf16 and fp16
copies hold them rounded, as the runtime has them, so that a reader who takes them for the masters is found out.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

os.environ.update(DS_ACCELERATOR=os.environ.get("DEVICE", "cpu"), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
os.environ.update({"LOCAL_RANK": "0"} if "DEVICE" in os.environ else {})  # all ranks share the first GPU

import deepspeed
import torch
import torch._dynamo  # zero.Init wants it imported
from cases import CASES, Case
from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param, safe_set_local_fp32_param
from models import Experts, Odd, decay_groups, loss_of, pipeline, qwen2, wrapped
from safetensors.torch import save_file

DEVICE, STEP = os.environ["DS_ACCELERATOR"], 7


def settings(case: Case) -> dict[str, Any]:
    """The DeepSpeed configuration of a case."""
    made: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": case.stage} | case.zero,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
    }
    if case.dtype != "fp32":
        made[case.dtype] = {"enabled": True} | ({"initial_scale_power": 4} if case.dtype == "fp16" else {})
    return made | case.more


def build(case: Case, world: int) -> Any:
    torch.manual_seed(5)
    if case.model == "odd":
        return Odd()
    if case.model == "moe":
        return Experts(world)
    if case.model == "pipeline":
        return pipeline()
    if case.model in ("compiled", "frozen", "module", "_forward_module"):
        return wrapped(case.model)
    return qwen2(lora=case.model == "lora", tied=case.model == "tied")


def train(case: Case, engine: Any, model: Any) -> None:
    """A step, then values that count up in place of what the step made."""
    ids = (torch.arange(8).reshape(1, 8) % 23).to(DEVICE)
    engine.backward(loss_of(model, engine, ids))
    engine.step()
    for state in engine.optimizer.state.values():  # moments pack as badly as noise
        for key in ("exp_avg", "exp_avg_sq"):
            state[key].fill_(0.25)
        state["step"].fill_(STEP)
    at = 0
    for _, param in model.named_parameters():
        shape = tuple(getattr(param, "ds_shape", param.shape))
        size = torch.Size(shape).numel()
        values = (torch.arange(at, at + size, dtype=torch.float32) / 8192 + 1).reshape(shape)
        at += size
        if param.requires_grad and case.masters:
            set_master(case, param, values)
        with gathered(case, param):
            param.data.copy_(values.to(param.dtype))


def set_master(case: Case, param: Any, values: torch.Tensor) -> None:
    """Through DeepSpeed's own setters; the one for whole parameters cannot do uneven cuts at stage 3 (0.19.8)."""
    if case.stage < 3:
        safe_set_full_fp32_param(param, values)
        return
    each, rank = param.ds_tensor.numel(), torch.distributed.get_rank()
    flat = torch.full((each * torch.distributed.get_world_size(),), -777.0, device=DEVICE)
    flat[: values.numel()] = values.flatten()
    safe_set_local_fp32_param(param, flat[rank * each : (rank + 1) * each])


def gathered(case: Case, param: Any) -> Any:
    return deepspeed.zero.GatheredParameters([param], modifier_rank=0, enabled=case.stage == 3)


def truth_of(case: Case, model: Any) -> dict[str, torch.Tensor]:
    """Every tensor of the state dict, tied names too, as the runtime holds it."""
    found: dict[str, torch.Tensor] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        if param.requires_grad and case.masters:
            found[name] = safe_get_full_fp32_param(param).detach().clone()
        else:
            with gathered(case, param):
                found[name] = param.data.detach().clone()
    persistent = {name for name, _ in model.named_buffers()} & set(model.state_dict())
    found |= {name: buffer.detach().clone() for name, buffer in model.named_buffers() if name in persistent}
    return {name: tensor.cpu().contiguous().clone() for name, tensor in found.items()}


def compare(folder: Path, tag: str, truth: dict[str, torch.Tensor]) -> str:
    """What DeepSpeed's own zero_to_fp32 makes of the files, against the truth."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint as merge

    try:
        merged = merge(str(folder), tag)
    except (
        ValueError,
        FileNotFoundError,
        KeyError,
        TypeError,
        AttributeError,
        NotImplementedError,
        UnpicklingError,
    ) as error:
        return f"refuses: {type(error).__name__}"
    lacks = sorted(set(truth) - set(merged))
    other = [name for name in merged if not torch.equal(merged[name].float(), truth[name].float())]
    return ("equal" if not other else f"differs in {other}") + (f", lacks {lacks}" if lacks else "")


def finish(name: str, folder: Path, out: Path, model: Any, truth: dict[str, torch.Tensor]) -> None:
    """What lies beside the checkpoint: the truth, configs, and what this case is."""
    case = CASES[name]
    for script in folder.glob("zero_to_*.py"):
        script.write_text(
            "raise SystemExit('this is never run')\n"
        )  # 33 kB of DeepSpeed's source, not ours to keep
    save_file(truth, out / "truth.safetensors")
    own = getattr(model, "base_model", model)
    if hasattr(own, "config") and hasattr(own.config, "save_pretrained"):
        own.config.save_pretrained(out / "hf" if case.model == "lora" else folder)
    if case.model == "lora":
        model.peft_config["default"].save_pretrained(str(folder))
    about = {
        "case": name,
        "shows": case.shows,
        "zero_to_fp32": compare(folder, case.tag or "global_step7", truth),
        "versions": {"deepspeed": deepspeed.__version__, "torch": torch.__version__},
        "device": DEVICE,
        "world": case.world,
    }
    (out / "about.json").write_text(json.dumps(about, indent=1) + "\n")


def main() -> None:
    name, out = sys.argv[1], Path(sys.argv[2])
    case = CASES[name]
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]  # no C++ to compile
    deepspeed.init_distributed("gloo", verbose=False)
    # DeepSpeed says that no CPU can do fp16; torch's CPU kernels can.
    if DEVICE == "cpu":
        deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = build(case, world)
    groups = decay_groups(model) if case.groups else [p for p in model.parameters() if p.requires_grad]
    if case.model == "moe":
        from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer as by_expert

        groups = by_expert({"params": list(model.parameters()), "name": "all"})
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings(case))
    if case.model not in ("moe", "pipeline"):
        train(case, engine, model)
    truth = {} if case.model == "pipeline" else truth_of(case, model)
    folder = out / "run" / case.folder
    engine.global_steps = STEP
    engine.save_checkpoint(str(folder), tag=case.tag, exclude_frozen_parameters=case.exclude_frozen)
    torch.distributed.barrier()
    if rank == 0:
        finish(name, folder, out, model, truth)
    torch.distributed.barrier()
    os._exit(0)  # hpZ's process groups abort in their destructors


if __name__ == "__main__":
    main()
