"""A quantised folder against the class that config.json names: its codes stand for weights, and none may be missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckptconv.errors import CkptconvError
from ckptconv.plan.fit import require_fit

Tensors = dict[str, tuple[tuple[int, ...], str]]


def built(architecture: str, fp8: bool = False, **changes: Any) -> tuple[dict[str, Any], Tensors]:
    """A config, and the names, shapes and dtypes of a model of transformers, with its own float8 layers if fp8."""
    import torch
    import transformers
    from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear
    from transformers.utils.quantization_config import FineGrainedFP8Config

    from ckptconv.models.hub_names import to_hub

    cls = getattr(transformers, architecture)
    config = cls.config_class(**changes)
    with torch.device("meta"):
        model = cls._from_config(config, dtype=torch.bfloat16)
        if fp8:
            model = replace_with_fp8_linear(model, ["lm_head"], FineGrainedFP8Config())
    plain = {**config.to_dict(), "architectures": [architecture]}
    ties = set(model.all_tied_weights_keys or {})
    renamed = to_hub(model.state_dict(), plain)
    dtype = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in model.state_dict().items()}
    return plain, {
        name: (tuple(t.shape), dtype[t.sources[0]])
        for name, t in renamed.tensors.items()
        if not ties & set(t.sources)
    }


def check(config: dict[str, Any], tensors: Tensors) -> list[str]:
    notes: list[str] = []
    shapes = {name: shape for name, (shape, _) in tensors.items()}
    require_fit(config, shapes, Path("run"), notes, {name: dtype for name, (_, dtype) in tensors.items()})
    return notes


def refusal(config: dict[str, Any], tensors: Tensors) -> str:
    with pytest.raises(CkptconvError, match=r"names are not|does not match|are missing") as error:
        check(config, tensors)
    return f"{error.value.what} {error.value.found} {error.value.wanted}"


def gptq(module: str, out: int, into: int) -> Tensors:
    return {
        f"{module}.qweight": ((into // 8, out), "int32"),
        f"{module}.qzeros": ((into // 128, out // 8), "int32"),
        f"{module}.scales": ((into // 128, out), "float16"),
        f"{module}.g_idx": ((into,), "int32"),
        f"{module}.bias": ((out,), "float16"),
    }


def awq(module: str, out: int, into: int) -> Tensors:
    return {
        f"{module}.qweight": ((into, out // 8), "int32"),
        f"{module}.qzeros": ((into // 128, out // 8), "int32"),
        f"{module}.scales": ((into // 128, out), "float16"),
    }


def packed(module: str, out: int, into: int) -> Tensors:
    return {
        f"{module}.weight_packed": ((out, into // 8), "int32"),
        f"{module}.weight_scale": ((out, into // 128), "bfloat16"),
        f"{module}.weight_shape": ((2,), "int64"),
    }


def per_channel(module: str, out: int, into: int) -> Tensors:
    return {
        f"{module}.weight": ((out, into), "float8_e4m3fn"),
        f"{module}.weight_scale": ((out, 1), "bfloat16"),
        f"{module}.k_scale": ((1,), "bfloat16"),
    }


def int8(module: str, out: int, into: int) -> Tensors:
    return {
        f"{module}.weight": ((out, into), "int8"),
        f"{module}.SCB": ((out,), "float32"),
        f"{module}.weight_format": ((), "uint8"),
    }


def nf4(module: str, out: int, into: int) -> Tensors:
    return {
        f"{module}.weight": ((out * into // 2, 1), "uint8"),
        f"{module}.weight.absmax": ((out * into // 64,), "uint8"),
        f"{module}.weight.quant_map": ((16,), "float32"),
        f"{module}.weight.quant_state.bitsandbytes__nf4": ((90,), "uint8"),
    }


FORMS = {
    "gptq": (gptq, "qweight", "scales"),
    "awq": (awq, "qweight", "scales"),
    "compressed-tensors": (packed, "weight_packed", "weight_scale"),
    "fp8": (per_channel, "weight", "weight_scale"),
    "bitsandbytes": (int8, "weight", "SCB"),
    "bitsandbytes_nf4": (nf4, "weight", "weight.absmax"),
}


def quantised(tensors: Tensors, form: Callable[[str, int, int], Tensors]) -> Tensors:
    """Every projection as a quantiser stores it."""
    made: Tensors = {}
    for name, (shape, dtype) in tensors.items():
        if "_proj.weight" in name:
            made |= form(name.removesuffix(".weight"), *shape)
        else:
            made[name] = shape, dtype
    return made


def without(tensors: Tensors, part: str) -> Tensors:
    kept = {name: each for name, each in tensors.items() if part not in name}
    assert len(kept) < len(tensors)
    return kept


@pytest.mark.parametrize("method", FORMS)
@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3MoeForCausalLM"])
def test_a_quantised_model_passes_in_silence_and_its_damage_does_not(method: str, architecture: str) -> None:
    form, codes, scales = FORMS[method]
    experts = {"num_experts": 4, "num_experts_per_tok": 2} if "Moe" in architecture else {}
    config, tensors = built(architecture, num_hidden_layers=3, **experts)
    config["quantization_config"] = {"quant_method": method.partition("_")[0]}
    stored = quantised(tensors, form)
    assert check(config, stored) == []
    assert "layers.1" in refusal(config, without(stored, "layers.1."))
    assert "num_hidden_layers" in refusal(config, without(stored, "layers.2."))
    lacks = f"layers.1.self_attn.q_proj.{scales}"
    assert lacks in refusal(config, without(stored, lacks))
    assert "layers.1.self_attn.k_proj.weight" in refusal(
        config, without(stored, f"layers.1.self_attn.k_proj.{codes}")
    )
    assert "model.norm.weight" in refusal(config, without(stored, "model.norm.weight"))
    assert "teacher" in refusal(config, {f"teacher.{name}": each for name, each in stored.items()})
    other = {**config, "vocab_size": config["vocab_size"] + 64}
    assert "vocab_size" in refusal(other, stored)
    if experts:
        assert "experts.2" in refusal(config, without(stored, "layers.1.mlp.experts.2."))
        assert "experts" in refusal({**config, "num_local_experts": 8, "num_experts": 8}, stored)


def test_float8_blocks_of_transformers_itself_are_whole_or_refused() -> None:
    config, stored = built("Qwen2ForCausalLM", fp8=True, num_hidden_layers=3)
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    assert sum(dtype.startswith("float8") for _, dtype in stored.values()) == 21
    assert check(config, stored) == []
    assert "layers.1" in refusal(config, without(stored, "layers.1."))
    assert "up_proj.weight_scale_inv" in refusal(
        config, without(stored, "layers.0.mlp.up_proj.weight_scale_inv")
    )
    assert "intermediate_size" in refusal({**config, "intermediate_size": 22018}, stored)


def test_experts_that_a_quantiser_takes_apart_must_be_alike_in_all_layers() -> None:
    config, tensors = built("GptOssForCausalLM", num_hidden_layers=2, num_local_experts=4)
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    stored = {}
    for name, each in tensors.items():
        module, experts, _ = name.partition("experts.")
        if not experts:
            stored[name] = each
        elif name.endswith("down_proj"):
            for expert in range(4):
                for part in ("gate_proj", "up_proj", "down_proj"):
                    stored |= packed(f"{module}experts.{expert}.{part}", 2880, 2880)
    assert check(config, stored) == []
    assert "layers.1.mlp.experts.3.up_proj.weight" in refusal(
        config, without(stored, "1.mlp.experts.3.up_proj.weight_packed")
    )


def test_blocks_of_mxfp4_need_their_scales() -> None:
    config, tensors = built("GptOssForCausalLM", num_hidden_layers=2, num_local_experts=4)
    config["quantization_config"] = {"quant_method": "mxfp4"}
    stored: Tensors = {}
    for name, each in tensors.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            stored |= {f"{name}_blocks": ((4, 5, 6, 16), "uint8"), f"{name}_scales": ((4, 5, 6), "uint8")}
        else:
            stored[name] = each
    assert check(config, stored) == []
    assert "layers.1.mlp.experts.down_proj_scales" in refusal(
        config, without(stored, "1.mlp.experts.down_proj_scales")
    )
    assert "layers.0.mlp.experts.gate_up_proj" in refusal(
        config, without(stored, "0.mlp.experts.gate_up_proj_blocks")
    )


def test_scales_of_blocks_of_another_size_are_refused() -> None:
    config, stored = built("Qwen2ForCausalLM", fp8=True, num_hidden_layers=2)
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [64, 128]}
    assert "weight_block_size" in refusal(config, stored)
