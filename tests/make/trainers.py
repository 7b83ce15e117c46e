r"""Checkpoints that the HF Trainer and Lightning write while they train on a GPU, by two ranks that share it.

    python tests/make/trainers.py CASE OUT          # starts the ranks; DEVICE=cpu tries the script without a GPU

    trainer_fsdp2_w2     transformers.Trainer, FSDP2, SHARDED_STATE_DICT: checkpoint-2/pytorch_model_fsdp_0
    lightning_fsdp2_w2   lightning.Trainer, ModelParallelStrategy (fully_shard): a .ckpt folder
    lightning_fsdp1_w2   lightning.Trainer, FSDPStrategy(state_dict_type="sharded")

The ranks talk over gloo, since NCCL takes one rank a device. Each writes OUT/CASE/run, the trainer's own folder, and
OUT/CASE/truth.safetensors, what torch gathers from the model right after the save, under the names of the HF model.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

DEVICE = os.environ.get("DEVICE", "cuda")
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
CASES = {
    "trainer_fsdp2_w2": "transformers.Trainer, FSDP2, SHARDED_STATE_DICT",
    "lightning_fsdp2_w2": "lightning.Trainer, ModelParallelStrategy, fully_shard on each layer",
    "lightning_fsdp1_w2": "lightning.Trainer, FSDPStrategy(state_dict_type='sharded')",
}
RANKS = 2
VOCAB, LENGTH, STEPS = 131, 9, 2


def tiny() -> Any:
    """Qwen3 with dims that differ and do not divide by the ranks, tied."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=23,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config)


def rows() -> list[dict[str, Any]]:
    """Four samples of tokens that count up."""
    import torch

    return [{"input_ids": (ids := torch.arange(LENGTH) + 5 * i), "labels": ids} for i in range(4)]


def whole(state: dict[str, Any]) -> dict[str, Any]:
    """The gathered state dict; every rank calls this. The shards move to the CPU first: there gloo can gather them."""
    shards = {name: tensor.detach().cpu() for name, tensor in state.items()}
    full = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in shards.items()}
    return {name: tensor.contiguous().clone() for name, tensor in full.items()}


def write_truth(out: Path, tensors: dict[str, Any], prefix: str = "") -> None:
    """Rank 0 writes what was gathered, under the names of the HF model."""
    from safetensors.torch import save_file

    if os.environ["RANK"] == "0":
        save_file(
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, out / "truth.safetensors"
        )


def trainer_fsdp2(out: Path) -> None:
    """transformers.Trainer saves checkpoint-2 by itself at the last step."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Gather(TrainerCallback):
        """Gathers the model that the trainer has just saved."""

        def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            write_truth(out, whole(model.state_dict()))

    args = TrainingArguments(
        output_dir=str(out / "run"),
        max_steps=STEPS,
        save_steps=STEPS,
        per_device_train_batch_size=1,
        logging_steps=1,
        report_to=[],
        use_cpu=DEVICE == "cpu",
        ddp_backend="gloo",
        fsdp="full_shard auto_wrap",
        fsdp_config={
            "fsdp_version": 2,
            "transformer_layer_cls_to_wrap": ["Qwen3DecoderLayer"],
            "state_dict_type": "SHARDED_STATE_DICT",
        },
    )
    Trainer(tiny(), args, train_dataset=rows(), callbacks=[Gather()]).train()


def not_bound_to_a_device() -> None:
    """Lightning binds the group to the rank's device; torch 2.11 cannot split a gloo group that is bound."""
    import torch.distributed as dist

    begin = dist.init_process_group
    dist.init_process_group = lambda *args, device_id=None, **rest: begin(*args, **rest)


def lightning(out: Path, fsdp: int) -> None:
    """lightning.Trainer saves through ModelCheckpoint into lightning_logs/version_0/checkpoints."""
    import lightning as pl
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
    from torch.distributed.fsdp import (
        FullStateDictConfig,
        FullyShardedDataParallel,
        StateDictType,
        fully_shard,
    )

    not_bound_to_a_device()

    class Module(pl.LightningModule):
        """An HF model as the attribute `model`."""

        def __init__(self) -> None:
            super().__init__()
            self.model = tiny()

        def configure_model(self) -> None:
            if fsdp == 2:
                mesh = self.device_mesh["data_parallel"]
                for layer in self.model.model.layers:
                    fully_shard(layer, mesh=mesh)
                fully_shard(self.model, mesh=mesh)

        def training_step(self, batch: Any, index: int) -> Any:
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    class Gather(pl.Callback):
        """Gathers the model once the checkpoint of the last step is written."""

        def on_train_end(self, trainer: Any, module: Any) -> None:
            if fsdp == 2:
                write_truth(out, whole(module.state_dict()), "model.")
                return
            model, kind = trainer.strategy.model, StateDictType.FULL_STATE_DICT
            with FullyShardedDataParallel.state_dict_type(model, kind, FullStateDictConfig(rank0_only=False)):
                state = model.state_dict()
            named = {
                name.removeprefix("_forward_module.").removeprefix("model."): t for name, t in state.items()
            }
            write_truth(out, whole(named))

    if fsdp == 2:
        strategy: Any = ModelParallelStrategy(
            data_parallel_size=RANKS, tensor_parallel_size=1, process_group_backend="gloo"
        )
    else:
        layer = type(tiny().model.layers[0])
        strategy = FSDPStrategy(
            auto_wrap_policy={layer}, state_dict_type="sharded", process_group_backend="gloo"
        )
    trainer = pl.Trainer(
        accelerator="gpu" if DEVICE == "cuda" else "cpu",
        devices=1,
        num_nodes=RANKS,  # of one device each: they share it
        strategy=strategy,
        max_steps=STEPS,
        logger=pl.pytorch.loggers.CSVLogger(out / "run"),
        enable_progress_bar=False,
        callbacks=[ModelCheckpoint(every_n_train_steps=STEPS), Gather()],
        default_root_dir=out / "run",
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(rows(), batch_size=1))
    if os.environ["RANK"] == "0":
        tiny().config.save_pretrained(out / "run")


def about(case: str) -> dict[str, Any]:
    """What wrote the case."""
    from importlib.metadata import version

    import torch

    names = ("torch", "transformers", "accelerate", "lightning", "safetensors")
    return {
        "command": f"python tests/make/trainers.py {case}",
        "shows": CASES[case],
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in names},
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "world": RANKS,
    }


def rank(case: str, out: Path) -> None:
    """One rank of a case."""
    if case.startswith("trainer"):
        trainer_fsdp2(out)
    else:
        lightning(out, 2 if "fsdp2" in case else 1)


def launch(case: str, out: Path) -> None:
    """Starts the ranks as nodes of one device each, which is what lets them share it."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(RANKS)}
    running = []
    for number in range(RANKS):
        own = {"RANK": str(number), "NODE_RANK": str(number), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        call = [sys.executable, str(Path(__file__).resolve()), case, str(out.parent)]
        running.append(subprocess.Popen(call, env=os.environ | common | own))
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"{case}: a rank failed")
    (out / "about.json").write_text(json.dumps(about(case), indent=1) + "\n")


def main() -> None:
    case, out = sys.argv[1], Path(sys.argv[2]).resolve() / sys.argv[1]
    if "RANK" in os.environ:
        rank(case, out)
    else:
        launch(case, out)


if __name__ == "__main__":
    main()
