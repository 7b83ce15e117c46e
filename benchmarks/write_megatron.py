"""One rank of four, by the Python of tests/make/megatron/README.md: saves a Qwen2 by Megatron-Core, or exports it.

    torchrun --nproc-per-node=4 benchmarks/write_megatron.py save      # ./hf -> ./run, as verl saves it
    torchrun --nproc-per-node=4 benchmarks/write_megatron.py export OUT

Runs in the checkpoint's folder. Megatron-Core's writer starts processes that import this file again: nothing but constants
belongs to its top level. The model is the 0.5B shape of sizes.py with random bf16 weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
MAKERS = REPOSITORY / "tests/make/megatron"
TP, PP = 2, 2
HF, SAVED = Path("hf"), Path("run/global_step_10/actor/dist_ckpt")


def make_model() -> None:
    """./hf: the model, its config and an index, as mbridge wants it."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    from benchmarks.sizes import SIZES

    size = SIZES["0.5b"]
    config = Qwen2Config(**size.settings)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zeros would hide a mistake
                parameter.normal_()
    model.save_pretrained(HF)
    index = HF / "model.safetensors.index.json"
    if not index.is_file():
        names = dict.fromkeys(model.state_dict(), "model.safetensors")
        index.write_text(json.dumps({"metadata": {}, "weight_map": names}))


def start() -> None:
    """Megatron-Core on a CPU, two by two ranks."""
    import cpu  # noqa: F401
    import torch.distributed as dist
    from megatron.core import mpu
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    dist.init_process_group("gloo")
    mpu.initialize_model_parallel(TP, PP)
    model_parallel_cuda_manual_seed(0)


def save() -> None:
    """The model in Megatron-Core's classes, saved as verl does."""
    from bridges import load
    from cases import Case
    from write import Writer

    case = Case("qwen2", "", tp=TP, pp=PP)
    loaded = load(case)
    Writer(case, loaded, loaded.models, None).write()


def export(out: str) -> None:
    """What one does with mbridge: an empty model, Megatron-Core's loader, mbridge's writer."""
    import mbridge
    from mbridge.core.util import unwrap_model
    from megatron.core import dist_checkpointing

    bridge: Any = mbridge.AutoBridge.from_pretrained(str(HF))
    bridge.set_extra_args(use_cpu_initialization=True, gradient_accumulation_fusion=False)
    (model,) = bridge.get_model(wrap_with_ddp=False)
    model = unwrap_model(model)
    told = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
    state = dist_checkpointing.load({"model": model.sharded_state_dict(metadata=told)}, str(SAVED))
    model.load_state_dict(state["model"], strict=False)  # Transformer Engine's extra states are stand-ins
    bridge.safetensor_io = bridge._get_safetensor_io(str(HF))  # as load_weights sets it
    bridge.save_weights([model], out)


def main() -> None:
    # Instead of this file's folder, whose megatron.py is not Megatron.
    sys.path[:1] = [str(REPOSITORY), str(MAKERS), str(MAKERS / "stand_ins")]
    what, *rest = sys.argv[1:]
    if what == "make":
        make_model()
        return
    start()
    save() if what == "save" else export(*rest)
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
