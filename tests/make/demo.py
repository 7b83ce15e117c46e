"""Two gloo ranks train a tiny Qwen2 with FSDP2 on demo.txt and save it in verl's layout; `make demo` runs it.

torchrun --nproc-per-node 2 tests/make/demo.py OUT
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

TEXT = Path(__file__).with_name("demo.txt").read_text(encoding="utf-8")
STEPS = 60


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few hundred tokens, trained on the text."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=389,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(TEXT.splitlines(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<eos>")


def train(model: torch.nn.Module, ids: torch.Tensor, rank: int) -> float:
    """A few steps of AdamW; each rank sees its own windows of the text."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(rank)
    loss = torch.zeros(())
    for step in range(1, STEPS + 1):
        starts = torch.randint(0, len(ids) - 48, (8,), generator=generator)
        batch = torch.stack([ids[start : start + 48] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0 and step % 20 == 0:
            print(f"  step {step}  loss {loss.item():.3f}", flush=True)
    return float(loss.item())


def main() -> None:
    out = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    words = tokenizer()
    torch.manual_seed(7)
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=120,
        intermediate_size=248,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
        pad_token_id=words.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("fsdp",))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    train(model, torch.tensor(words.encode(TEXT)), rank)
    actor = out / f"global_step_{STEPS}" / "actor"
    if rank == 0:
        shutil.rmtree(out, ignore_errors=True)
        (actor / "huggingface").mkdir(parents=True)
        config.architectures = ["Qwen2ForCausalLM"]
        config.dtype = torch.float32
        config.save_pretrained(actor / "huggingface")
        words.save_pretrained(actor / "huggingface")
        (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": world}))
        (out / "latest_checkpointed_iteration.txt").write_text(str(STEPS))
    dist.barrier()
    torch.save(model.state_dict(), actor / f"model_world_size_{world}_rank_{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
