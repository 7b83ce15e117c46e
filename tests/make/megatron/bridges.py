"""The model of ./hf in Megatron-Core's classes, put there by one of three bridges from PyPI."""

from __future__ import annotations

import functools
import sys
import tempfile
import types
from dataclasses import dataclass
from typing import Any

import safetensors
import tiny
import torch
import transformers

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
        return [unwrapped(each) for each in self.wrapped]


def unwrapped(model: Any) -> Any:
    """The model inside wrappers for 16 bits and for data parallelism."""
    return unwrapped(model.module) if hasattr(model, "module") else model


def load(case: Any) -> Loaded:
    """Loads ./hf by the case's bridge."""
    tiny.register_unknown()
    if case.bridge == "nemo":
        from nemo2 import by_nemo

        return by_nemo(case)
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
    import mbridge.models.mimo as mimo
    import mbridge.models.qwen2_5_vl as qwen_vl
    from mbridge.models.ext.deepseek_v3 import dequant_fp8_safetensor_io as dequant

    def open_on_cpu(file: str, framework: str, device: str) -> Any:
        return safetensors.safe_open(file, framework=framework, device="cpu")

    def mla(**kwargs: Any) -> Any:
        if "max_position_embeddings" not in deepseek.MLATransformerConfig.__dataclass_fields__:
            kwargs["original_max_position_embeddings"] = kwargs.pop("max_position_embeddings")
        return deepseek.MLATransformerConfig(**kwargs)

    def mimo_args(self: Any) -> dict[str, Any]:  # mbridge gives the config where the layers' spec belongs
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_mtp_block_spec

        spec = get_gpt_mtp_block_spec(
            self.config, self._get_transformer_layer_spec(), use_transformer_engine=True
        )
        return super(mimo.MimoBridge, self)._get_gptmodel_args() | {"mtp_block_spec": spec}

    def mimo_swap(
        self: Any, name: str, weights: list[torch.Tensor]
    ) -> torch.Tensor:  # as mbridge after 0.15.1
        weight = super(mimo.MimoBridge, self)._weight_to_mcore_format(name, weights)
        if not name.endswith("eh_proj.weight"):
            return weight
        return torch.cat(weight.chunk(2, dim=1)[::-1], dim=1)

    def vision_config(config: Any) -> Any:  # mbridge knows no tower but that of the published sizes
        vision = bridge.hf_config.vision_config
        config = published(config)
        config.num_layers, config.hidden_size = vision.depth, vision.hidden_size
        config.num_attention_heads = config.num_query_groups = vision.num_heads
        config.kv_channels, config.ffn_hidden_size = (
            vision.hidden_size // vision.num_heads,
            vision.intermediate_size,
        )
        config.patch_size, config.fullatt_block_indexes = vision.patch_size, vision.fullatt_block_indexes
        return config

    def config_of(
        self: Any, name: str
    ) -> Any:  # as mbridge after 0.15.1: the merger's first layer is not gated
        if ".projection." not in name:
            return self.config
        return types.SimpleNamespace(gated_linear_unit=False)

    published = qwen_vl.get_vision_model_config
    qwen_vl.get_vision_model_config = vision_config
    dequant.safe_open = open_on_cpu
    qwen_vl.Qwen2_5VLBridge._get_mcore_config_by_name = config_of
    mimo.MimoBridge._get_gptmodel_args = mimo_args
    mimo.MimoBridge._weight_to_mcore_format = mimo_swap
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
    if case.family == "mistral3":  # Megatron-Bridge knows the published sizes of heads only
        text = bridge.hf_pretrained.config.text_config
        provider.num_attention_heads, provider.num_query_groups = (
            text.num_attention_heads,
            text.num_key_value_heads,
        )
        provider.kv_channels = text.head_dim
    if hasattr(provider, "q_lora_rank"):  # Megatron-Bridge takes null for "the default"
        provider.q_lora_rank = bridge.hf_pretrained.config.q_lora_rank
    if mtp := getattr(bridge.hf_pretrained.config, "num_nextn_predict_layers", 0):
        provider.mtp_num_layers = mtp
    if case.family in ("minimax_m3_vl", "deepseek_v4"):  # their default asks for a package of kernels
        provider.moe_token_dispatcher_type = "alltoall"
    provider.finalize()
    if case.lora:
        provider.register_pre_wrap_hook(with_lora(case.lora))
    wrapped = provider.provide_distributed_model(wrap_with_ddp=False)
    if not case.lora:
        keep_biases_fp32(wrapped)
        bridge.load_hf_weights(wrapped)  # once more: the cast to bf16 rounded what belongs in fp32
    return Loaded(bridge, provider, bridge.hf_pretrained.config, wrapped, provider.vocab_size)


def with_lora(targets: tuple[str, ...]) -> Any:
    """A hook that gives the target layers adapters of rank 4 and alpha 6 with random values."""
    import te
    from megatron.bridge.peft import utils
    from megatron.bridge.peft.lora import LoRA
    from megatron.core import mpu

    utils.version = lambda package: te.VERSION  # it asks pip for Transformer Engine's

    def wrap(models: Any) -> Any:
        wrapped = LoRA(target_modules=list(targets), dim=4, alpha=6)(models, training=True)
        for model in wrapped if isinstance(wrapped, list) else [wrapped]:
            for name, parameter in model.named_parameters():
                if ".adapter." in name:
                    whole = not getattr(parameter, "tensor_model_parallel", False)
                    piece = "" if whole else str(mpu.get_tensor_model_parallel_rank())
                    parameter.data.copy_(tiny.values_of(name + piece, parameter.shape))
        return wrapped

    return wrap


def keep_biases_fp32(models: list[Any]) -> None:
    """A router's bias stays fp32 in a bf16 model, as Megatron-Core does before the first step."""
    for module in (each for model in models for each in model.modules()):
        if hasattr(module, "_maintain_float32_expert_bias"):
            module._maintain_float32_expert_bias()


def by_mcore_bridge(case: Any) -> Loaded:
    """ModelScope's mcore-bridge, as ms-swift calls it."""
    import gpu_only  # noqa: F401
    from mcore_bridge import ModelConfig, get_mcore_model, hf_to_mcore_config
    from mcore_bridge.model import register
    from mcore_bridge.utils import torch_utils
    from transformers import AutoConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    register.MODEL_MAPPING["gpt"].model_types.append("seed_oss")  # Llama's layers, which it does not list
    register.MODEL_MAPPING["glm4v"].model_types.append("glm46v")  # GLM-4V under another name
    torch_utils.get_cache_dir = tempfile.gettempdir  # modelscope is a stand-in
    if case.family == "internvl_chat":
        transformers.AutoTokenizer.from_pretrained = lambda *args, **kwargs: None  # loaded, and not used here
    if case.family == "ovis2_5":  # its tower is of the published code, too
        tower = get_class_from_dynamic_module("modeling_tower.MoonVitPretrainedModel", HF)
        tower.device = torch.device("cpu")
        transformers.AutoModel.from_config = lambda config: tower(config).bfloat16()
    hf_config = AutoConfig.from_pretrained(HF)
    vocab = text_of(hf_config).vocab_size
    values = hf_to_mcore_config(hf_config) | sizes(case) | ON_CPU
    values |= {"params_dtype": torch.bfloat16, "bf16": True, "vit_attn_impl": "eager"}
    if case.pad:
        values["padded_vocab_size"] = -(-vocab // case.pad) * case.pad
    kind = ModelConfig
    if values.get("multi_latent_attention"):
        from mcore_bridge import MLAModelConfig as kind
    text = text_of(hf_config)
    for key in ("num_nextn_predict_layers", "mtp_num_hidden_layers"):
        if mtp := getattr(text, key, 0):
            values["mtp_num_layers"] = mtp
    if case.family == "ernie4_5_moe_bias":  # mcore-bridge leaves the bias out
        values |= {"moe_router_enable_expert_bias": True, "moe_router_score_function": "sigmoid"}
    config = kind(**values)
    wrapped = [model.bfloat16() for model in get_mcore_model(config)]
    keep_biases_fp32(wrapped)
    if case.family == "ernie4_5_moe_bias":
        config.bridge._set_router = functools.partial(
            config.bridge._set_router, moe_router_enable_expert_bias=False
        )
    config.bridge.load_weights(wrapped, HF)
    if case.family == "ernie4_5_moe_bias":
        set_ernies_biases(wrapped)
    return Loaded(config.bridge, config, hf_config, wrapped, config.padded_vocab_size)


def text_of(config: Any) -> Any:
    """The language model's config inside another."""
    for name in ("text_config", "llm_config", "thinker_config"):
        if hasattr(config, name):
            return text_of(getattr(config, name))
    return config


def set_ernies_biases(models: list[Any]) -> None:
    """ERNIE's moe_statics, a row of biases, into the routers: Megatron-Bridge's ernie_45_bridge.py squeezes it too."""
    with safetensors.safe_open(f"{HF}/model.safetensors", framework="pt") as file:
        for name, module in ((n, m) for model in models for n, m in model.named_modules()):
            if getattr(module, "expert_bias", None) is not None:
                number = name.split("layers.")[1].split(".")[0]
                key = f"model.layers.{number}.mlp.moe_statics.e_score_correction_bias"
                module.expert_bias.copy_(file.get_tensor(key)[0])
