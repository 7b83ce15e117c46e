"""Small models with PEFT adapters of random values, and what PEFT itself makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

ATTENTION = {"num_attention_heads": 3, "num_key_value_heads": 1}


class Trained(NamedTuple):
    """base/ and adapter/ as transformers and PEFT save them; merged: merge_and_unload's state, named as the module's."""

    folder: Path
    state: dict[str, torch.Tensor]
    merged: dict[str, torch.Tensor]
    logits: torch.Tensor

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def base(self) -> Path:
        return self.folder / "base"


def qwen2(tied: bool = False) -> PreTrainedModel:
    sizes = {"vocab_size": 41, "hidden_size": 18, "intermediate_size": 23, "num_hidden_layers": 2}
    return Qwen2ForCausalLM(Qwen2Config(**sizes, **ATTENTION, tie_word_embeddings=tied))


def gpt2() -> PreTrainedModel:
    sizes = {"n_layer": 1, "n_head": 3, "vocab_size": 41, "n_positions": 16, "n_embd": 18}
    return GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1))


def qwen3_moe(width: int = 12) -> PreTrainedModel:
    sizes = {
        "vocab_size": 41,
        "hidden_size": 20,
        "intermediate_size": 23,
        "num_hidden_layers": 2,
        "head_dim": 8,
    }
    experts = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": width}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **experts, **ATTENTION))


def neox() -> PreTrainedModel:
    sizes = {"vocab_size": 41, "hidden_size": 24, "intermediate_size": 23, "num_hidden_layers": 2}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, num_attention_heads=3))


def llava() -> PreTrainedModel:
    text = LlamaConfig(
        vocab_size=41,
        hidden_size=18,
        intermediate_size=23,
        num_hidden_layers=2,
        tie_word_embeddings=False,
        **ATTENTION,
    )
    sizes = {"hidden_size": 12, "intermediate_size": 14, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=8, patch_size=4)
    return LlavaForConditionalGeneration(
        LlavaConfig(text_config=text, vision_config=vision, image_token_index=40, tie_word_embeddings=False)
    )


def gpt_oss() -> PreTrainedModel:
    sizes = {
        "vocab_size": 41,
        "hidden_size": 20,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "head_dim": 8,
    }
    experts = {"num_local_experts": 3, "num_experts_per_tok": 2, "pad_token_id": 0, "eos_token_id": 1}
    return GptOssForCausalLM(GptOssConfig(**sizes, **experts, **ATTENTION))


def train(
    model: PreTrainedModel, folder: Path, kind: Any = None, resized: int = 0, **settings: Any
) -> Trained:
    """The model and an adapter with these LoraConfig settings in a folder; r 4, alpha 6 when not given.

    kind: the class that is trained, where it is another than the base's. resized: tokens that are added before.
    """
    torch.manual_seed(0)
    fill(model.parameters())
    model.save_pretrained(folder / "base")
    if kind is not None:
        model = kind.from_pretrained(folder / "base", num_labels=3)
    if resized:
        model.resize_token_embeddings(model.config.vocab_size + resized)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **settings})
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    wrapped.peft_config["default"].base_model_name_or_path = str(folder / "base")
    fill(p for name, p in wrapped.named_parameters() if "base_layer" not in name or name.endswith("bias"))
    wrapped.save_pretrained(folder / "adapter")
    with torch.no_grad():
        found = wrapped(torch.arange(10)[None])
    logits = found.logits if "logits" in found else found.last_hidden_state
    state = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    if kind is None and not resized:
        return Trained(folder, state, loaded(type(model), folder / "base", folder / "adapter"), logits)
    merged = wrapped.merge_and_unload().state_dict()
    return Trained(folder, state, {name: tensor.clone() for name, tensor in merged.items()}, logits)


def fill(parameters: Any) -> None:
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape)


def loaded(kind: Any, base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What PEFT makes of an adapter folder and its base."""
    model = PeftModel.from_pretrained(kind.from_pretrained(base), adapter).merge_and_unload()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
