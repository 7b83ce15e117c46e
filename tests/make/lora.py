"""LoRA adapters on the tiny Qwen2, and what peft itself makes of them."""

from copy import deepcopy
from pathlib import Path

import torch
from models import fill, qwen2
from peft import LoraConfig, PeftModel, get_peft_model
from save import write_json, write_tensors
from torch import nn

# alpha / r is no whole number and no power of two, so that a wrong scale shows.
RANK, ALPHA = 5, 7


def lora(dtype: torch.dtype = torch.float32) -> PeftModel:
    """Qwen2 with adapters on every linear layer; lora_B is random too, not zero as at step 0."""
    base = qwen2().to(dtype)
    base.config.dtype = dtype
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config, autocast_adapter_dtype=False)
    fill(model)
    return model


def lora_bf16() -> PeftModel:
    """The same with base and adapter in bf16."""
    return lora(torch.bfloat16)


def is_adapter(name: str) -> bool:
    """verl's test for the keys that save_lora_only keeps."""
    return "lora_" in name or ".adapter_" in name


def write_peft(model: nn.Module, folder: Path) -> None:
    """adapter/ and base/ as peft and transformers write them, and the model merged by peft in fp32."""
    assert isinstance(model, PeftModel)
    model.save_pretrained(folder / "adapter")
    deepcopy(model).unload().save_pretrained(folder / "base")
    merged = deepcopy(model).float().merge_and_unload()
    write_tensors(folder / "lora_merged.safetensors", merged.state_dict())
    merged.config.dtype = torch.float32
    merged.save_pretrained(folder / "hub")


def write_meta(folder: Path) -> None:
    """What verl writes beside the rank files of a LoRA run."""
    write_json(folder / "lora_train_meta.json", {"r": RANK, "lora_alpha": ALPHA, "task_type": "CAUSAL_LM"})
