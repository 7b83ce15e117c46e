"""Recognises whole models: a Hugging Face folder, a PEFT adapter, or one file of weights; `read` reads them."""

from __future__ import annotations

from pathlib import Path

from ckptconv.backends.base import imported_later
from ckptconv.backends.huggingface.weight_files import choose
from ckptconv.backends.registry import is_one_file
from ckptconv.errors import CkptconvError
from ckptconv.tensors.look import is_file

NAME = "huggingface"
SIGN = "*.safetensors or pytorch_model*.bin"
IS_SHARDED = False
read, saved_by = imported_later("huggingface.read")


def is_mine(folder: Path) -> bool:
    """True for a folder that holds a model's weights under the names that transformers, PEFT or accelerate give."""
    if is_file(folder):  # a step of Lightning's or Composer's without sharding
        return is_one_file(folder.name)
    try:
        return choose(folder) is not None
    except CkptconvError:
        return True  # it is a model, and `read` reports what is wrong with it
