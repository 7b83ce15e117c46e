"""torchtune's own names: its model classes, saved by its DistributedCheckpointer, and its own conversion to Hugging Face.

pip install torch==2.13.0 transformers==5.23.0 safetensors sentencepiece tiktoken omegaconf tqdm
pip install --no-deps torchtune==0.6.1 torchao==0.9.0 torchdata
torchrun --nproc-per-node 2 tests/make/tune.py OUT      # OUT/torchtune/{llama,qwen2}/{run, hf}
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard
from torchtune import training
from torchtune.models.convert_weights import tune_to_hf
from torchtune.models.llama3 import llama3
from torchtune.models.qwen2 import qwen2
from torchtune.models.qwen2._convert_weights import qwen2_tune_to_hf
from torchtune.training import DistributedCheckpointer

SIZES = {"vocab_size": 35, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 16}
SIZES |= {"max_seq_len": 64, "intermediate_dim": 22, "norm_eps": 1e-6}


def main() -> None:
    dist.init_process_group("gloo")
    to = Path(sys.argv[1]) / "torchtune"
    if dist.get_rank() == 0:
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir(parents=True)
    dist.barrier()
    write(to / "llama", llama3(**SIZES, rope_base=10_000), "llama")
    write(to / "qwen2", qwen2(**SIZES, rope_base=10_000.0, tie_word_embeddings=True), "qwen2")
    if dist.get_rank() == 0:
        about = {"command": "tune.py", "torchtune": "0.6.1", "torch": torch.__version__}
        (to / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    dist.destroy_process_group()


def write(to: Path, model: Any, kind: str) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape).mul_(0.3).bfloat16())
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    sharded = model.state_dict()
    full = {name: value.full_tensor().detach().clone() for name, value in sharded.items()}
    if dist.get_rank() == 0:
        (to / "run").mkdir(parents=True)
    dist.barrier()
    keeper = DistributedCheckpointer(checkpoint_dir=str(to / "run"), output_dir=str(to / "run"))
    for epoch in (0, 1):
        state = {training.MODEL_KEY: sharded, training.EPOCHS_KEY: epoch + 1, training.SEED_KEY: 7}
        keeper.save_checkpoint(state, epoch=epoch, save_async=False)
    if dist.get_rank() == 0:
        truth(to / "hf", full, kind)
    dist.barrier()


def truth(to: Path, full: dict[str, Any], kind: str) -> None:
    import transformers

    sizes = {"num_heads": 4, "num_kv_heads": 2, "dim": 16}
    tied = kind == "qwen2"
    state = qwen2_tune_to_hf(full, **sizes, tie_word_embeddings=True) if tied else tune_to_hf(full, **sizes)
    make = transformers.Qwen2Config if tied else transformers.LlamaConfig
    config = make(
        **{"vocab_size": 35, "hidden_size": 16, "intermediate_size": 22, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6},
        tie_word_embeddings=tied,
    )
    config.save_pretrained(to)
    save_file({name: value.contiguous().clone() for name, value in state.items()}, to / "model.safetensors")


if __name__ == "__main__":
    main()
