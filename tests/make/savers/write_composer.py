"""Composer's own trainer and saver on CPUs (`mosaicml` 0.32.1): sharded folders `epE-baN` and whole `epE-baN-rank0.pt`.

torchvision and the clients of clouds, which only other parts import, are empty modules (`make.MISSING`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


class Count(torch.optim.AdamW):
    """AdamW that adds 1/1024 to every element, and whose moments are 0.25: each step differs, and packs well."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for param in group["params"]:
                    param += 1 / 1024
                    for key in ("exp_avg", "exp_avg_sq"):
                        self.state[param][key].fill_(0.25)
        return loss


class Rows(Dataset[Any]):
    """Rows of ids, the same on each run."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, at: int) -> Any:
        return {"input_ids": torch.arange(9) + at, "labels": torch.arange(9) + at}


def composer(run: Path, model: Any, how: str) -> Any:
    """Train two batches, with a save after each.

    Args:
        run: Composer's save_folder.
        model: the transformers model.
        how: "sharded" or "full", FSDP2's `state_dict_type`; "plain" for DistributedDataParallel.

    Returns:
        The model that Composer trained, whose state dict is the truth.
    """
    from composer import Trainer
    from composer.models import HuggingFaceModel
    from composer.utils import collect_env
    from composer.utils.dist import get_sampler
    from composer.utils.parallelism import FSDP2Config

    collect_env.get_cpu_model = lambda: "CPU"  # the state holds the name of this machine's
    rows, wrapped = Rows(), HuggingFaceModel(model, use_logits=True)
    trainer = Trainer(
        model=wrapped,
        train_dataloader=DataLoader(rows, batch_size=2, sampler=get_sampler(rows)),
        optimizers=Count(wrapped.parameters(), lr=0.0, weight_decay=0.0),
        max_duration="2ba",
        device="cpu",
        parallelism_config=None if how == "plain" else {"fsdp": FSDP2Config(state_dict_type=how)},
        save_folder=str(run),
        save_interval="1ba",
        progress_bar=False,
        log_to_console=False,
    )
    trainer.fit()
    trained = trainer.state.model
    return (trained.module if how == "plain" else trained).model
