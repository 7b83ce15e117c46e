"""open-instruct's GRPO saver under DeepSpeed ZeRO 3: a LoRA adapter whose safetensors file is empty, and its gathered .bin.

    GRPO=open_instruct/grpo_fast.py torchrun --nproc-per-node 2 write_open_instruct.py OUT   # e6c3044aa; DeepSpeed 0.19.8

Real: DeepSpeed's engine and partitions, peft's save_pretrained, and `save_model`, whose source is taken out of the module,
since that imports vLLM and Ray. OUT/truth.safetensors is the adapter before it was partitioned.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import pathlib
import sys
from types import SimpleNamespace
from typing import Any

os.environ |= {"DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

import deepspeed
import torch
import torch._dynamo  # zero.Init wants it imported
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

SIZES = {
    "vocab_size": 131,
    "hidden_size": 20,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def saver() -> Any:
    """open-instruct's `save_model`."""
    tree = ast.parse(pathlib.Path(os.environ["GRPO"]).read_text())
    named = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    function = next(node for node in named if node.name == "save_model")
    for argument in function.args.args:
        argument.annotation = None
    known = {
        "deepspeed": deepspeed,
        "pathlib": pathlib,
        "torch": torch,
        "PeftModel": PeftModel,
        "get_peft_model_state_dict": get_peft_model_state_dict,
        "CHECKPOINT_COMPLETE_MARKER": ".checkpoint_complete",
        "logger": logging.getLogger(),
        "_z3_params_to_fetch": lambda params: [
            p for p in params if hasattr(p, "ds_id") and p.ds_status == ZeroParamStatus.NOT_AVAILABLE
        ],
    }
    exec(compile(ast.Module([function], []), "grpo_fast", "exec"), known)
    return known["save_model"]


def main() -> None:
    out = pathlib.Path(sys.argv[1])
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]  # no C++ to compile
    deepspeed.init_distributed("gloo")
    torch.manual_seed(7)
    base = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False)).to(torch.bfloat16)
    lora = LoraConfig(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(base, lora).to(torch.bfloat16)
    truth = {name: value.clone().contiguous() for name, value in get_peft_model_state_dict(model).items()}
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32",
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    trained = [param for param in model.parameters() if param.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(trained), config=settings)
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    actor = SimpleNamespace(model=engine, rank=dist.get_rank(), stage=3, tokenizer=tokenizer)
    saver()(actor, str(out / "run" / "step_3"), None, tokenizer)
    if dist.get_rank() == 0:
        save_file(truth, out / "truth.safetensors")
        about = {
            "command": "write_open_instruct.py",
            "open-instruct": "e6c3044aa",
            "deepspeed": deepspeed.__version__,
        }
        (out / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
