"""One rank of the job that writes a size's ZeRO-2 checkpoint; started by `benchmarks.make_checkpoint` with torchrun.

Plain SGD keeps no moments, so the files hold masters and the bf16 module alone: what every reader must read.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.sizes import SIZES, Checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), required=True)
    parser.add_argument("--root", type=Path, required=True)
    args = parser.parse_args()
    size = SIZES[args.size]
    deepspeed.init_distributed("gloo", verbose=False)
    torch.set_num_threads(1)
    torch.manual_seed(7)
    torch.set_default_dtype(torch.bfloat16)
    config = Qwen2Config(**size.settings)
    model = Qwen2ForCausalLM(config)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": 2, "reduce_bucket_size": 1_000_000},
            "zero_allow_untested_optimizer": True,
        },
    )
    random = torch.Generator().manual_seed(100 + torch.distributed.get_rank())
    for masters in engine.optimizer.single_partition_of_fp32_groups:
        masters.data.normal_(0.0, 0.02, generator=random)  # the bf16 copies are not those of these masters
    folder = Checkpoint(args.root).zero
    engine.save_checkpoint(str(folder), tag="global_step1")
    if torch.distributed.get_rank() == 0:
        config.save_pretrained(folder)


if __name__ == "__main__":
    main()
