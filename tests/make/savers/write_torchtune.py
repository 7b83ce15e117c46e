"""torchtune's FullModelHFCheckpointer (0.6.1 from PyPI): it reads a Hugging Face folder and writes `epoch_N`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torchtune import training
from torchtune.training import FullModelHFCheckpointer


def torchtune_hf(run: Path, model: Any) -> Any:
    """Two epochs of Llama, whose weights change between them; the truth is what was loaded, changed alike.

    Args:
        run: The output folder, with its epochs.
        model: A transformers model in two files or more.
    """
    base = run.parent / "base"
    model.save_pretrained(base, max_shard_size="20kB")
    files = sorted(path.name for path in base.glob("*.safetensors"))
    keeper = FullModelHFCheckpointer(
        checkpoint_dir=str(base), checkpoint_files=files, output_dir=str(run), model_type="LLAMA3"
    )
    state = keeper.load_checkpoint()
    for epoch in (0, 1):
        state[training.MODEL_KEY] = {
            name: value + (epoch + 1) / 1024 for name, value in state[training.MODEL_KEY].items()
        }
        keeper.save_checkpoint(dict(state), epoch=epoch, intermediate_checkpoint=epoch == 0)
    shutil.rmtree(base)
    with torch.no_grad():
        for param in model.parameters():
            param += 1 / 1024
            param += 2 / 1024
    return model
