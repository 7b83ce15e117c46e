"""The models whose checkpoints are planned: names, shapes and config as transformers has them, as deep as is asked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

Shape = tuple[int, ...]
_LAYER = re.compile(r"^model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Model:
    """config.json, and the module's tensors in its own order."""

    config: dict[str, Any]
    shapes: dict[str, Shape]


def llama(tensors: int) -> Model:
    """A Llama of at least as many tensors. No dim divides well, most are smaller than a thousand ranks."""
    layers = max(1, -(-(tensors - 3) // 9))
    sizes = {
        "hidden_size": 252,
        "intermediate_size": 5003,
        "num_hidden_layers": layers,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 42,
        "vocab_size": 8009,
        "tie_word_embeddings": False,
        "architectures": ["LlamaForCausalLM"],
    }
    return _of("llama", sizes, 1)


def deepseek_v3() -> Model:
    """DeepSeek-V3's own sizes: 671B parameters; transformers keeps a layer's experts in two stacks."""
    return _of("deepseek_v3", {"architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": 61}, 4)


def chunk(size: int, parts: int, index: int) -> tuple[int, int]:
    """(begin, length) of a part along dim 0, as torch.chunk cuts: FSDP2's Shard(0)."""
    step = -(-size // parts)
    begin = min(index * step, size)
    return begin, min(step, size - begin)


def _of(model_type: str, sizes: dict[str, Any], built: int) -> Model:
    """From the module itself, built on the meta device with a few layers; the last of them is repeated."""
    config = AutoConfig.for_model(model_type, **sizes)
    layers = config.num_hidden_layers
    config.num_hidden_layers = built
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    shapes: dict[str, Shape] = {}
    last = [name for name in module.state_dict() if name.startswith(f"model.layers.{built - 1}.")]
    for name, tensor in module.state_dict().items():
        if name not in last:
            shapes[name] = tuple(tensor.shape)
        elif name == last[-1]:
            for layer in range(built - 1, layers):
                for each in last:
                    numbered = _LAYER.sub(f"model.layers.{layer}.", each)
                    shapes[numbered] = tuple(module.state_dict()[each].shape)
    config.num_hidden_layers = layers
    return Model(config.to_dict() | {"dtype": "bfloat16"}, shapes)
