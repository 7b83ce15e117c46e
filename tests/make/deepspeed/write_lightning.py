"""Lightning's Trainer with its DeepSpeed strategy: two steps, one checkpoint after each.

python -m torch.distributed.run --standalone --nproc-per-node 2 write_lightning.py STAGE OUT

Lightning 2.6.6 wants a GPU for this strategy, so a subclass skips its check. OUT/run is the run's folder; the model is the
attribute `model` of the LightningModule. Masters are rounded to a grid before the last save, so that they pack well.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")

import deepspeed
import lightning
import torch
import torch._dynamo  # zero.Init wants it imported
from deepspeed.utils import safe_get_full_fp32_param
from lightning.pytorch.strategies import DeepSpeedStrategy
from models import qwen2
from safetensors.torch import save_file

STAGE, OUT = int(sys.argv[1]), Path(sys.argv[2])


class OnCpu(DeepSpeedStrategy):
    """The strategy without its check for GPUs."""

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()

    root_device = property(lambda self: torch.device("cpu", 0))  # type: ignore[assignment]

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        self._init_deepspeed_distributed()


class Module(lightning.LightningModule):
    """A model as users wrap it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.model = qwen2()

    def training_step(self, batch: Any, _: int) -> Any:
        return self.model(input_ids=batch[0], labels=batch[0]).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Save(lightning.Callback):
    """A checkpoint after each step, and the truth of the last one."""

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        optimizer = trainer.strategy.model.optimizer
        kept = "fp32_partitioned_groups_flat" if STAGE == 3 else "single_partition_of_fp32_groups"
        for flat in getattr(optimizer, kept):
            flat.data.copy_(
                (flat.data * 1024).round() / 1024 + 0.0
            )  # no -0.0: the sum over ranks in the truth loses its sign
        for state in optimizer.state.values():
            for key in ("exp_avg", "exp_avg_sq"):
                state[key].fill_(0.25)
        truth = {name: safe_get_full_fp32_param(param) for name, param in module.named_parameters()}
        if STAGE < 3:
            for name, param in module.named_parameters():
                param.data.copy_(truth[name])
        trainer.save_checkpoint(str(OUT / "run" / f"epoch=0-step={trainer.global_step}.ckpt"))
        if trainer.is_global_zero:
            found = {name.removeprefix("model."): value.clone().contiguous() for name, value in truth.items()}
            save_file(found, OUT / "truth.safetensors")


def main() -> None:
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]  # no C++ to compile
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32",
        "zero_optimization": {"stage": STAGE, "stage3_param_persistence_threshold": 0},
    }
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=OnCpu(config=settings),
        max_steps=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        precision="bf16-mixed",
        callbacks=[Save()],
        default_root_dir=str(OUT),
    )
    data = torch.utils.data.TensorDataset(torch.arange(8 * 16).reshape(8, 16) % 53)
    module = Module()
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=1))
    if trainer.is_global_zero:
        for script in OUT.rglob("zero_to_*.py"):
            script.write_text("raise SystemExit('this is never run')\n")
        module.model.config.save_pretrained(OUT / "run")
        versions = {each.__name__: each.__version__ for each in (deepspeed, lightning, torch)}
        about = {"shows": "Lightning's DeepSpeed strategy, two steps", "versions": versions, "world": 2}
        (OUT / "about.json").write_text(json.dumps(about, indent=1) + "\n")
        if STAGE == 2:  # the fixture of stage 3 has both steps
            shutil.rmtree(OUT / "run" / "epoch=0-step=1.ckpt")
    torch.distributed.barrier()


if __name__ == "__main__":
    main()
