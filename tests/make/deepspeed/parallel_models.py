"""Models for tensor parallel ranks, pipelines and experts: awkward sizes, one per case."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from cases import Case
from torch import nn

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 38,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 31,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
CODEGEN = {"n_embd": 32, "n_layer": 1, "n_head": 8, "rotary_dim": 4, "vocab_size": 31, "n_positions": 32}


def build(case: Case, dtype: torch.dtype) -> Any:
    """A model of transformers, whose values do not matter yet."""
    made: dict[str, Any] = {
        "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=10),
        "qwen2": lambda: transformers.Qwen2Config(**(SIZES | {"num_key_value_heads": 3})),
        "llama": lambda: transformers.LlamaConfig(**SIZES),
        "llama_tied": lambda: transformers.LlamaConfig(**(SIZES | {"tie_word_embeddings": True})),
        "mixtral": lambda: transformers.MixtralConfig(**SIZES, num_local_experts=case.experts),
        "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
            **SIZES, head_dim=10, num_experts=case.experts, num_experts_per_tok=2, moe_intermediate_size=14
        ),
        "neox": lambda: transformers.GPTNeoXConfig(
            **{
                key: SIZES[key]
                for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
            },
            num_attention_heads=6,
            tie_word_embeddings=False,
        ),
        "codegen": lambda: transformers.CodeGenConfig(**CODEGEN),
    }
    config = made[case.model]()
    config.use_cache = False
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    config.architectures = [type(model).__name__]
    return model


def count_up(model: nn.Module, index: int) -> None:
    """Values that every dtype holds exactly, and that differ nearby; experts of another `index` begin elsewhere."""
    at = 0
    with torch.no_grad():
        for name, param in model.named_parameters():
            begin = at + 101 * index * ("deepspeed_experts" in name)
            steps = torch.arange(begin, begin + param.numel()) * 37 % 251
            param.copy_((steps.float() / 1024 - 0.12).to(torch.bfloat16).reshape(param.shape))
            at += param.numel()


def data_of(index: int) -> torch.Tensor:
    return (torch.arange(16).reshape(1, 16) + 7 * (1 + index)) % 31


class _Expert(nn.Module):
    """Mixtral's expert, by its names on the Hub."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden, inner, bias=False)
        self.w2 = nn.Linear(inner, hidden, bias=False)
        self.w3 = nn.Linear(hidden, inner, bias=False)

    def forward(self, x: Any) -> Any:
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class _Output(nn.Module):
    """DeepSpeed's MoE layer as a block's MLP: its output without the loss and the counts."""

    def __init__(self, moe: nn.Module) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, x: Any) -> Any:
        return self.moe(x)[0]


def with_experts(case: Case, model: Any, dtype: torch.dtype) -> None:
    """DeepSpeed's own MoE layer in place of each block's MLP."""
    from deepspeed.moe.layer import MoE

    config = model.config
    for layer in model.model.layers:
        expert = _Expert(config.hidden_size, config.intermediate_size)
        moe = MoE(config.hidden_size, expert, case.experts, ep_size=case.ep, k=2, min_capacity=16)
        layer.mlp = _Output(moe).to(dtype)


class _Embedding(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self, ids: Any) -> Any:
        return nn.functional.embedding(ids, self.weight)


class _Block(nn.Module):
    """A block under its own names; what makes the rotary angles has no parameters, and is kept out of the names."""

    def __init__(self, model: Any, number: int) -> None:
        super().__init__()
        block = model.model.layers[number]
        self.self_attn, self.mlp = block.self_attn, block.mlp
        self.input_layernorm, self.post_attention_layernorm = (
            block.input_layernorm,
            block.post_attention_layernorm,
        )
        self.angles = [model.model.rotary_emb]

    def forward(self, x: Any) -> Any:
        places = self.angles[0](x, torch.arange(x.shape[1])[None])
        x = x + self.self_attn(self.input_layernorm(x), position_embeddings=places, attention_mask=None)[0]
        return x + self.mlp(self.post_attention_layernorm(x))


class _Named(nn.Module):
    """A module under the name that GPT-NeoX gives it in its layer."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.add_module(name, module)
        self.name = name

    def forward(self, x: Any) -> Any:
        return getattr(self, self.name)(x)


class _NeoxBlock(nn.Module):
    """A block of transformers' GPT-NeoX, whose names are GPT-NeoX's own, and the angles as the buffer that it saved."""

    def __init__(self, model: Any, number: int) -> None:
        super().__init__()
        block = model.gpt_neox.layers[number]
        self.attention, self.mlp = block.attention, block.mlp
        self.input_layernorm, self.post_attention_layernorm = (
            block.input_layernorm,
            block.post_attention_layernorm,
        )
        self.attention.rotary_emb = nn.Module()
        self.attention.rotary_emb.register_buffer("inv_freq", torch.arange(3.0))
        self.angles = [model.gpt_neox.rotary_emb]

    def forward(self, x: Any) -> Any:
        places = self.angles[0](x, torch.arange(x.shape[1])[None])
        attended = self.attention(self.input_layernorm(x), attention_mask=None, position_embeddings=places)[0]
        return x + attended + self.mlp(self.post_attention_layernorm(x))


def neox_layers(model: Any) -> list[Any]:
    """GPT-NeoX's layers: functions, which have no file, are among them (megatron/model/gpt2_model.py, init_specs)."""
    inner = model.gpt_neox
    return [
        _Named("word_embeddings", inner.embed_in),
        lambda x: x,
        *(_NeoxBlock(model, number) for number in range(len(inner.layers))),
        lambda x: x,
        _Named("norm", inner.final_layer_norm),
        _Named("final_linear", model.embed_out if hasattr(model, "embed_out") else model.lm_head),
    ]


class _Head(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self, x: Any) -> Any:
        return x @ self.weight.T


def layers_of(model: Any, stages: int) -> Any:
    """The model as DeepSpeed's pipeline: embedding, blocks, norm, head; a tied head is the embedding once more."""
    from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec

    loss = lambda x, y: nn.functional.cross_entropy(x.flatten(0, 1).float(), y.flatten())  # noqa: E731
    if model.config.model_type == "gpt_neox":
        return PipelineModule(neox_layers(model), num_stages=stages, loss_fn=loss)
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    first: Any = LayerSpec(_Embedding, embedding)
    last: Any = LayerSpec(_Head, head)
    if model.config.tie_word_embeddings:
        first = TiedLayerSpec("embed", _Embedding, embedding)
        last = TiedLayerSpec("embed", _Embedding, embedding, forward_fn=lambda module, x: x @ module.weight.T)
    blocks = [LayerSpec(_Block, model, number) for number in range(len(model.model.layers))]
    return PipelineModule(
        [first, *blocks, model.model.norm, last],
        num_stages=stages,
        loss_fn=loss,
    )
