"""Tiny models whose dimensions all differ, with values that are told by the tensor's name.

Every rank builds the whole model and gets the same values, so nothing has to be scattered or broadcast.
"""

import zlib
from typing import Any

import torch
from configs import BASE, QWEN2, QWEN2_EVEN, TEXT, VISION_TEXT
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForTokenClassification,
    PreTrainedModel,
)


def fill(model: nn.Module) -> nn.Module:
    """Give every parameter and persistent buffer random values seeded by its own name."""
    stored = set(model.state_dict())
    named = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in stored)]
    for name, tensor in named:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if tensor.dtype == torch.bool:
            values = torch.rand(tensor.shape, generator=generator) < 0.5
        elif tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator)
        else:
            values = torch.randint(1, 10_000, tensor.shape, generator=generator)
        with torch.no_grad():
            tensor.copy_(values)
    return model


def from_config(auto: Any, model_type: str, **kwargs: Any) -> PreTrainedModel:
    """Build a transformers model from config values alone, as fp32 training masters."""
    config = AutoConfig.for_model(model_type, **kwargs)
    model = auto.from_config(config, dtype=torch.float32)
    model.config.architectures = [type(model).__name__]
    fill(model)
    return model


def arch(model_type: str) -> PreTrainedModel:
    """The tiny model of one model type of the tables in configs.py."""
    if model_type in VISION_TEXT:
        return from_config(AutoModelForImageTextToText, model_type, **VISION_TEXT[model_type])
    return from_config(AutoModelForCausalLM, model_type, **(BASE | TEXT[model_type]))


def qwen2(**overrides: Any) -> PreTrainedModel:
    """Qwen2 with QKV biases."""
    return from_config(AutoModelForCausalLM, "qwen2", **(QWEN2 | overrides))


def qwen2_even() -> PreTrainedModel:
    """Qwen2 whose dimensions are all multiples of 4."""
    return from_config(AutoModelForCausalLM, "qwen2", **QWEN2_EVEN)


def qwen2_bf16() -> PreTrainedModel:
    """Qwen2 in bf16 whose norms stay in fp32."""
    model = qwen2().to(torch.bfloat16)
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.to(torch.float32)
    model.config.dtype = torch.bfloat16
    return fill(model)


def critic() -> PreTrainedModel:
    """What verl trains as a critic: a token classifier with one label."""
    return from_config(
        AutoModelForTokenClassification, "qwen2", **QWEN2, num_labels=1, classifier_dropout=0.0
    )


class ValueHead(nn.Module):
    """The parameters of TRL's ValueHead (trl 0.19, trl/models/modeling_value_head.py)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.summary = nn.Linear(hidden_size, 1)


class ModelWithValueHead(nn.Module):
    """TRL's AutoModelForCausalLMWithValueHead as verl stores it: a language model beside a value head.

    verl replaces TRL's own state_dict by nn.Module's (verl 0.9.1, verl/models/transformers/monkey_patch.py),
    so that the language model's names keep the prefix `pretrained_model.`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_model = qwen2()
        self.v_head = ValueHead(self.pretrained_model.config.hidden_size)
        self.config = self.pretrained_model.config
        fill(self)


class ModelWithBareValueHead(ModelWithValueHead):
    """The same with TRL's own state_dict, which leaves the prefix out."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state = self.pretrained_model.state_dict(*args, **kwargs)
        head = self.v_head.state_dict(*args, **kwargs)
        return state | {f"v_head.{name}": value for name, value in head.items()}


class Plain(nn.Module):
    """Base of the models that transformers does not know; they still store a config."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"model_type": "odd", "architectures": [type(self).__name__]}


class Buffers(Plain):
    """Whole, unsharded tensors beside sharded ones; the first stored key is one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.empty(5))
        self.register_buffer("temperature", torch.empty(()))
        self.register_buffer("steps", torch.empty(3, dtype=torch.int32))
        self.register_buffer("mask", torch.empty(2, 7, dtype=torch.bool))
        self.register_buffer("table", torch.empty(9, 4, dtype=torch.bfloat16))
        self.proj = nn.Linear(11, 13)
        self.norm = nn.BatchNorm1d(13)
        fill(self)


class SmallDims(Plain):
    """Tensors with fewer rows than a world of 4 has ranks, and one large enough for every rank."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.empty(1))
        self.two = nn.Parameter(torch.empty(2, 9))
        self.three = nn.Parameter(torch.empty(3, 5, 7))
        self.five = nn.Parameter(torch.empty(5))
        self.lead = nn.Parameter(torch.empty(1, 6, 2))
        self.wide = nn.Linear(23, 17)
        fill(self)
