"""One rank of the job that writes a size's checkpoints; started by `make_checkpoint` with torchrun.

The model is sharded before it has storage and then filled shard by shard: a rank only holds its share.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from benchmarks.sizes import SIZES, WORLD, Checkpoint, Size

_WORDS = ["<unk>", "<pad>", "<end>", "the", "a", "model", "was", "trained", "and", "saved", "in", "pieces"]


def _config(size: Size) -> Qwen2Config:
    return Qwen2Config(
        **size.settings,
        bos_token_id=2,
        eos_token_id=2,
        pad_token_id=1,
        dtype="float32",  # as verl leaves it: it loads its masters so
    )


def _sharded(config: Qwen2Config) -> PreTrainedModel:
    """The model over all ranks, wrapped where verl's apply_fsdp2 does: each layer, embedding and the root."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("fsdp",))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for module in (*model.model.layers, model.model.embed_tokens):
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    random = torch.Generator().manual_seed(1000 + dist.get_rank())
    with torch.no_grad():
        for parameter in model.parameters():
            assert isinstance(parameter, DTensor)
            parameter.to_local().normal_(0.0, 0.02, generator=random)
    return model


def _write_small_files(actor: Path, config: Qwen2Config) -> None:
    """What verl puts beside the rank files: fsdp_config.json and huggingface/."""
    settings = {"FSDP_version": 2, "world_size": dist.get_world_size()}
    (actor / "fsdp_config.json").write_text(json.dumps(settings, indent=4))
    folder = actor / "huggingface"
    config.save_pretrained(folder)
    GenerationConfig(bos_token_id=2, eos_token_id=2, pad_token_id=1).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="<end>"
    ).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument(
        "--alone", type=int, help="write this rank's file without the others, and no DCP folder"
    )
    args = parser.parse_args()
    checkpoint = Checkpoint(args.root)

    if args.alone is None:
        dist.init_process_group("gloo")
    else:  # the same DTensors, by torch's process group that only says that it talks
        dist.init_process_group("fake", rank=args.alone, world_size=WORLD, store=FakeStore())
    torch.set_num_threads(1)
    rank, world = dist.get_rank(), dist.get_world_size()
    config = _config(SIZES[args.size])
    checkpoint.actor.mkdir(parents=True, exist_ok=True)
    state = _sharded(config).state_dict()
    torch.save(state, checkpoint.actor / f"model_world_size_{world}_rank_{rank}.pt")
    dist.barrier()
    if args.alone is None:
        dcp.save(
            {"model": state},  # as accelerate's save_fsdp_model nests it
            storage_writer=dcp.FileSystemWriter(checkpoint.dcp),
            planner=dcp.DefaultSavePlanner(),
        )
    if rank == 0:
        _write_small_files(checkpoint.actor, config)
        (checkpoint.actor.parents[1] / "latest_checkpointed_iteration.txt").write_text("1")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
