"""A NeMo 2 checkpoint on CPU ranks: the tensors of a Megatron fixture, saved as NeMo's MegatronCheckpointIO saves them.

torchrun --nproc-per-node 2 make.py FIXTURE TO      # FIXTURE: an unpacked tests/fixtures/megatron/qwen2_tp2

Real: megatron.core.dist_checkpointing.save, which NeMo calls (nemo/lightning/io/pl.py), with every tensor cut as its TP rank
had it, under the names of the Lightning module's attribute `module`. By hand, in NeMo's format: common.pt's state of the
Lightning trainer, context/model.yaml and context/io.json (nemo/lightning/io/mixin.py, io_dump), and the tokenizer's files.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

NAME = "model--val_loss=1.00-step=19-consumed_samples=160.0-last"
CONFIG = {
    "_target_": "nemo.collections.llm.gpt.model.qwen2.Qwen2Config",
    "_call_": True,
    "num_layers": 3,
    "hidden_size": 20,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "layernorm_epsilon": 1e-06,
    "rotary_base": 10000.0,
}


def main() -> None:
    fixture, to = Path(sys.argv[1]), Path(sys.argv[2])

    sys.path.insert(0, str(Path(__file__).parents[1] / "megatron" / "stand_ins"))
    import cpu  # noqa: F401 - CUDA's functions, which the writer calls
    from megatron.core import dist_checkpointing

    step = to / "run" / "checkpoints" / NAME
    dist.init_process_group("gloo")
    source = next(path.parent for path in fixture.rglob(".metadata"))
    hf = json.loads((fixture / "hf" / "config.json").read_text())
    if dist.get_rank() == 0:
        shutil.rmtree(to, ignore_errors=True)
        beside(step, hf)
        (step / "weights").mkdir()
        shutil.copytree(fixture / "hf", to / "hf")
    dist.barrier()
    state = sharded(source)
    state |= {"epoch": 0, "global_step": 20, "pytorch-lightning_version": "2.5.0", "loops": {}}
    dist_checkpointing.save(state, str(step / "weights"))
    if dist.get_rank() == 0:
        about = {"command": "make.py qwen2_tp2", "megatron-core": "0.16.1", "torch": torch.__version__}
        (to / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    dist.barrier()
    dist.destroy_process_group()


def sharded(source: Path) -> dict[str, Any]:
    """Every tensor's part of this TP rank, as Megatron-Core's own sharded state dict had it."""
    from megatron.core.dist_checkpointing import ShardedTensor

    metadata = dcp.FileSystemReader(str(source)).read_metadata().state_dict_metadata
    table = {
        name: entry
        for name, entry in metadata.items()
        if isinstance(entry, TensorStorageMetadata) and not name.startswith(("optimizer", "rng"))
    }
    whole = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in table.items()}
    dcp.load(whole, checkpoint_id=str(source), no_dist=True)
    rank, world = dist.get_rank(), dist.get_world_size()
    made = {}
    for name, tensor in whole.items():
        layers = name.startswith("decoder.layers.")
        sizes = {tuple(chunk.sizes) for chunk in table[name].chunks}
        cut = [
            dim for dim in range(int(layers), tensor.dim()) if {s[dim] for s in sizes} != {tensor.shape[dim]}
        ]
        part = tensor.chunk(world, cut[0])[rank] if cut else tensor
        made["module." + name] = ShardedTensor.from_rank_offsets(
            "module." + name,
            part.contiguous(),
            *([(cut[0], rank, world)] if cut else []),
            replica_id=0 if cut else rank,
        )
    return made


def beside(folder: Path, hf: dict[str, Any]) -> None:
    """NeMo's context: the settings as it dumps them, and the tokenizer that was imported from Hugging Face."""
    tokenizer = folder / "context" / "nemo_tokenizer"
    tokenizer.mkdir(parents=True)
    config = CONFIG | {
        "num_layers": hf["num_hidden_layers"],
        "hidden_size": hf["hidden_size"],
        "num_attention_heads": hf["num_attention_heads"],
        "num_query_groups": hf["num_key_value_heads"],
        "layernorm_epsilon": hf["rms_norm_eps"],
        "rotary_base": (hf.get("rope_parameters") or hf)["rope_theta"],
    }
    lines = [
        f"  {key}: {json.dumps(value) if isinstance(value, bool) else value}" for key, value in config.items()
    ]
    text = "_target_: nemo.collections.llm.gpt.model.qwen2.Qwen2Model\nconfig:\n" + "\n".join(lines) + "\n"
    (folder / "context" / "model.yaml").write_text(text)
    (folder / "context" / "io.json").write_text('{"root": {"key": "trainer_context_1"}, "objects": {}}')
    (tokenizer / "tokenizer.json").write_text(
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}}}\n'
    )
    (tokenizer / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}\n')


if __name__ == "__main__":
    main()
