"""Writes a sharded model as verl's FSDP checkpoint manager does, beside torch's own whole tensors.

The layout is that of verl 0.9.1, verl/utils/checkpoint/fsdp_checkpoint_manager.py.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.distributed.fsdp import (
    FullStateDictConfig,
    FullyShardedDataParallel,
    ShardedStateDictConfig,
    StateDictType,
)
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedTokenizerFast

STEP = 7
Tensors = dict[str, torch.Tensor]


def write_json(path: Path, value: Any) -> None:
    """Write JSON, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4) + "\n")


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write tensors under all their names, tied ones too, which safetensors takes only as copies."""
    save_file({name: t.detach().contiguous().clone() for name, t in tensors.items()}, path)


def is_fsdp1(model: nn.Module) -> bool:
    """Whether the model is wrapped by FSDP1."""
    return isinstance(model, FullyShardedDataParallel)


def gather(model: nn.Module) -> Tensors:
    """The whole tensors of a sharded model, put together by torch on every rank."""
    if is_fsdp1(model):
        kind = StateDictType.FULL_STATE_DICT
        with FullyShardedDataParallel.state_dict_type(model, kind, FullStateDictConfig()):
            return {name: t.clone() for name, t in model.state_dict().items()}
    state = model.state_dict()
    return {name: t.full_tensor() if isinstance(t, DTensor) else t.clone() for name, t in state.items()}


def check_gathered(gathered: Tensors, whole: Tensors) -> None:
    """Fail where torch's gathering does not give back what was sharded."""
    assert list(gathered) == list(whole), set(gathered) ^ set(whole)
    for name, tensor in whole.items():
        same = gathered[name].dtype == tensor.dtype and torch.equal(gathered[name], tensor)
        assert same, f"{name}: torch gathers other values than were sharded"


def write_ranks(actor: Path, model: nn.Module, keep: Callable[[str], bool]) -> None:
    """Every rank writes its own file of the sharded state dict."""
    config = ShardedStateDictConfig(offload_to_cpu=False)
    kind = StateDictType.SHARDED_STATE_DICT
    context = (
        FullyShardedDataParallel.state_dict_type(model, kind, config) if is_fsdp1(model) else nullcontext()
    )
    with context:
        state = model.state_dict()
        if not all(map(keep, state)):  # a full save stays the OrderedDict it is, a partial one is verl's dict
            state = {name: value for name, value in state.items() if keep(name)}
        name = f"model_world_size_{dist.get_world_size()}_rank_{dist.get_rank()}.pt"
        torch.save(state, actor / name)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of a few words with a chat template."""
    words = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "the", "capital", "of", "France", "is"]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    fast.save_pretrained(folder)


def write_settings(actor: Path, model: nn.Module) -> None:
    """The files beside the rank files: fsdp_config.json, and the config, tokenizer and generation config."""
    version = 1 if is_fsdp1(model) else 2
    write_json(actor / "fsdp_config.json", {"FSDP_version": version, "world_size": dist.get_world_size()})
    config = model._fsdp_wrapped_module.config if is_fsdp1(model) else model.config
    hub = actor / "huggingface"
    if isinstance(config, dict):
        write_json(hub / "config.json", config)
        return
    config.save_pretrained(hub)
    GenerationConfig(do_sample=True, temperature=0.6, top_p=0.95, eos_token_id=[2, 4]).save_pretrained(hub)
    write_tokenizer(hub)
