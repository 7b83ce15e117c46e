"""The model of ./hf in Megatron-Core's classes, put there by one of three bridges from PyPI."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from typing import Any

import safetensors
import tiny
import torch

HF = "hf"


@dataclass
class Loaded:
    """This rank's model chunks, and what says what they are."""

    native: Any  # the bridge's own object
    config: Any  # Megatron-Core's TransformerConfig
    hf_config: Any
    wrapped: list[Any]  # as the bridge returns them
    padded_vocab_size: int

    @property
    def models(self) -> list[Any]:
        from mbridge.core.util import unwrap_model

        return [unwrap_model(each) for each in self.wrapped]


def load(case: Any) -> Loaded:
    """Loads ./hf by the case's bridge."""
    tiny.register_unknown()
    return {"mbridge": by_mbridge, "megatron_bridge": by_megatron_bridge, "mcore_bridge": by_mcore_bridge}[
        case.bridge
    ](case)


def sizes(case: Any) -> dict[str, Any]:
    """The parallelism under Megatron-Core's names."""
    named = {
        "tensor_model_parallel_size": case.tp,
        "pipeline_model_parallel_size": case.pp,
        "virtual_pipeline_model_parallel_size": case.vpp or None,
        "expert_model_parallel_size": case.ep,
        "expert_tensor_parallel_size": case.etp,
        "sequence_parallel": case.tp > 1,
    }
    return named | ({"num_layers_in_first_pipeline_stage": case.first} if case.first else {})


ON_CPU = {"use_cpu_initialization": True, "gradient_accumulation_fusion": False}


def by_mbridge(case: Any) -> Loaded:
    """mbridge, taught to read bf16 on a CPU and to know this Megatron-Core."""
    kernel: Any = types.ModuleType("kernel")  # triton: only for fp8 weights
    kernel.weight_dequant = None
    sys.modules["mbridge.models.ext.deepseek_v3.kernel"] = kernel
    import mbridge
    import mbridge.models.deepseek_v3 as deepseek
    from mbridge.models.ext.deepseek_v3 import dequant_fp8_safetensor_io as dequant

    def open_on_cpu(file: str, framework: str, device: str) -> Any:
        return safetensors.safe_open(file, framework=framework, device="cpu")

    def mla(**kwargs: Any) -> Any:
        if "max_position_embeddings" not in deepseek.MLATransformerConfig.__dataclass_fields__:
            kwargs["original_max_position_embeddings"] = kwargs.pop("max_position_embeddings")
        return deepseek.MLATransformerConfig(**kwargs)

    dequant.safe_open = open_on_cpu
    deepseek.DeepseekV3Bridge.TransformerConfigClass = staticmethod(mla)
    pad = {"make_vocab_size_divisible_by": case.pad} if case.pad else {}
    bridge = mbridge.AutoBridge.from_pretrained(HF, **pad)
    extra: dict[str, Any] = dict(ON_CPU)
    if getattr(bridge.hf_config, "shared_expert_intermediate_size", None):
        extra["moe_shared_expert_gate"] = True  # mbridge leaves it out, and drops the gate without a word
    if case.first:
        extra["num_layers_in_first_pipeline_stage"] = case.first
    known = type(bridge.config).__dataclass_fields__
    bridge.set_extra_args(**{name: value for name, value in extra.items() if name in known})
    kwargs: dict[str, Any] = {"wrap_with_ddp": False}
    if case.optimizer:
        kwargs = {"wrap_with_ddp": True, "ddp_config": {"use_distributed_optimizer": True}}
    if case.critic:
        from mbridge.utils.post_creation_callbacks import make_value_model

        kwargs["post_model_creation_callbacks"] = [make_value_model]
    wrapped = bridge.get_model(weight_path=HF, **kwargs)
    padded = bridge.padded_vocab_size or bridge.hf_config.vocab_size
    return Loaded(bridge, bridge.config, bridge.hf_config, wrapped, padded)


def by_megatron_bridge(case: Any) -> Loaded:
    """NVIDIA's Megatron-Bridge."""
    import gpu_only  # noqa: F401
    from megatron.bridge import AutoBridge

    bridge = AutoBridge.from_hf_pretrained(HF)
    provider = bridge.to_megatron_provider()
    for name, value in (sizes(case) | ON_CPU).items():
        setattr(provider, name, value)
    provider.params_dtype = provider.pipeline_dtype = torch.bfloat16
    provider.bf16 = True
    if case.pad:
        provider.make_vocab_size_divisible_by, provider.should_pad_vocab = case.pad, True
    if hasattr(provider, "q_lora_rank"):  # Megatron-Bridge takes null for "the default"
        provider.q_lora_rank = bridge.hf_pretrained.config.q_lora_rank
    provider.finalize()
    wrapped = provider.provide_distributed_model(wrap_with_ddp=False)
    for module in (each for model in wrapped for each in model.modules()):
        if hasattr(module, "_maintain_float32_expert_bias"):
            module._maintain_float32_expert_bias()
    bridge.load_hf_weights(wrapped)  # once more: the cast to bf16 rounded what belongs in fp32
    return Loaded(bridge, provider, bridge.hf_pretrained.config, wrapped, provider.vocab_size)


def by_mcore_bridge(case: Any) -> Loaded:
    """ModelScope's mcore-bridge, as ms-swift calls it."""
    import gpu_only  # noqa: F401
    from mcore_bridge import ModelConfig, get_mcore_model, hf_to_mcore_config
    from transformers import AutoConfig

    hf_config = AutoConfig.from_pretrained(HF)
    values = hf_to_mcore_config(hf_config) | sizes(case) | ON_CPU
    values |= {"params_dtype": torch.bfloat16, "bf16": True}
    if case.pad:
        values["padded_vocab_size"] = -(-hf_config.vocab_size // case.pad) * case.pad
    kind = ModelConfig
    if values.get("multi_latent_attention"):
        from mcore_bridge import MLAModelConfig as kind
    config = kind(**values)
    wrapped = [model.bfloat16() for model in get_mcore_model(config)]
    config.bridge.load_weights(wrapped, HF)
    return Loaded(config.bridge, config, hf_config, wrapped, config.padded_vocab_size)
