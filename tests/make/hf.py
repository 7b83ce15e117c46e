"""Hugging Face folders of torch files, as transformers 4 wrote them, and runs of the HF Trainer and of accelerate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from make.configs import BASE, EXPERTS

MOE = BASE | EXPERTS | {"num_experts": 5}


def model_of(model_type: str = "qwen2", dtype: str = "float32", **values: Any) -> Any:
    """A tiny model with random weights in a dtype."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    config = AutoConfig.for_model(model_type, **(BASE | values))
    return AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))


def save_bin(model: Any, folder: Path, max_shard_size: str | None = None) -> Path:
    """What `save_pretrained(safe_serialization=False)` of transformers 4 wrote: the state dict by torch.save, or its
    shards by huggingface_hub's own split. Tied tensors share a storage in the file."""
    from huggingface_hub import split_torch_state_dict_into_shards

    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures, model.config.dtype = [type(model).__name__], model.dtype
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    state = model.state_dict()
    if max_shard_size is None:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="pytorch_model{suffix}.bin", max_shard_size=max_shard_size
    )
    for name, members in split.filename_to_tensors.items():
        torch.save({member: state[member] for member in members}, folder / name)
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def trained(folder: Path, steps: int, model: Any = None, **arguments: Any) -> Any:
    """A run of transformers' Trainer with a checkpoint a step; returns the trainer."""
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": torch.arange(7) + i, "labels": torch.arange(7) + i} for i in range(4)]
    values = {"save_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-2} | arguments
    stated = TrainingArguments(
        str(folder), max_steps=steps, use_cpu=True, report_to=[], disable_tqdm=True, **values
    )
    trainer = Trainer(model=model or model_of(), args=stated, train_dataset=rows)
    trainer.train()
    return trainer


def accelerated(folder: Path, *models: Any, safe: bool = True) -> Path:
    """What Accelerator.save_state leaves: weights without a config, an optimizer, random states."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    for model in models:
        accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.save_state(str(folder), safe_serialization=safe)
    return folder
