"""The models that are trained: every dim differs, no size is a multiple of a number of ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

QWEN2 = {
    "vocab_size": 53,
    "hidden_size": 18,
    "intermediate_size": 29,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


class Odd(nn.Module):
    """What flat partitions find awkward: a tied head, a frozen layer, buffers, three dims, sizes below the ranks'."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(23, 10)
        self.frozen = nn.Linear(10, 7)
        self.conv = nn.Conv1d(7, 5, 3)
        self.one = nn.Linear(5, 1)
        self.back = nn.Linear(1, 10, bias=False)
        self.head = nn.Linear(10, 23, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor([0.5, 1.5, -2.5]))
        self.register_buffer("count", torch.tensor(41))
        self.register_buffer("passing", torch.zeros(4), persistent=False)
        self.frozen.requires_grad_(False)

    def forward(self, ids: Any) -> Any:
        x = self.conv(self.frozen(self.embed(ids)).transpose(1, 2)).transpose(1, 2)
        return self.head(self.back(self.one(x))).float().pow(2).mean()


class Experts(nn.Module):
    """A mixture of DeepSpeed's own experts."""

    def __init__(self, ranks: int) -> None:
        from deepspeed.moe.layer import MoE

        super().__init__()
        self.embed = nn.Embedding(23, 10)
        self.moe = MoE(10, nn.Linear(10, 10), num_experts=4, ep_size=ranks, k=1)
        self.head = nn.Linear(10, 5)

    def forward(self, ids: Any) -> Any:
        x, loss, _ = self.moe(self.embed(ids))
        return self.head(x).float().pow(2).mean() + loss


def pipeline() -> Any:
    """Two stages of DeepSpeed's pipeline."""
    from deepspeed.pipe import PipelineModule

    layers = [nn.Linear(10, 7), nn.Linear(7, 5), nn.Linear(5, 3), nn.Linear(3, 2)]
    return PipelineModule(layers, num_stages=2, loss_fn=lambda x, _: x.float().pow(2).mean())


def qwen2(lora: bool = False, tied: bool = False) -> Any:
    """Transformers' Qwen2; lora: wrapped by PEFT, its base frozen, one module trained whole."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = Qwen2ForCausalLM(Qwen2Config(**(QWEN2 | {"tie_word_embeddings": tied})))
    if not lora:
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model, LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    )


class Attribute(nn.Module):
    """A model as the attribute of another module: `module` as an engine names it, `_forward_module` as Lightning does."""

    def __init__(self, name: str, model: Any) -> None:
        super().__init__()
        self.name, self.config = name, model.config
        self.add_module(name, model)

    def forward(self, **inputs: Any) -> Any:
        return getattr(self, self.name)(**inputs)


def wrapped(how: str) -> Any:
    """Qwen2 inside a wrapper: torch.compile's, or an attribute; "frozen": with a frozen embedding and first layer."""
    model = qwen2()
    if how == "compiled":
        return torch.compile(model, backend="eager")
    if how == "frozen":
        for name, param in model.named_parameters():
            param.requires_grad_(not name.startswith(("model.embed_tokens.", "model.layers.0.")))
        return model
    return Attribute(how, model)


def loss_of(model: Any, engine: Any, ids: Any) -> Any:
    """One forward pass."""
    if isinstance(model, Odd | Experts):
        return engine(ids)
    return engine(input_ids=ids, labels=ids).loss


def decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two parameter groups, as trainers have them: matrices decay, vectors do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
