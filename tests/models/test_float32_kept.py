"""Which tensors stay in float32 in a model of bfloat16, compared with a real load and save of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckptconv.models import facts

_SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_KINDS: dict[str, dict[str, Any]] = {
    "HunYuanMoEV1": {"head_dim": 8, "num_experts": 4, "moe_topk": [2, 2]},
    "Lfm2Moe": {
        "layer_types": ["conv", "full_attention"], "num_experts": 4, "num_experts_per_tok": 2, "num_dense_layers": 1,
    },
    "OlmoHybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "Qwen2": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", _KINDS)
def test_what_stays_in_float32_is_what_transformers_saves_in_float32(kind: str, tmp_path: Path) -> None:
    import torch
    import transformers
    from safetensors import safe_open

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**_SMALL, **_KINDS[kind])
    cls = getattr(transformers, f"{kind}ForCausalLM")
    cls(config).save_pretrained(tmp_path)
    cls.from_pretrained(tmp_path, dtype=torch.bfloat16).save_pretrained(tmp_path / "bf16")
    with safe_open(tmp_path / "bf16" / "model.safetensors", "pt") as reader:
        dtypes = {name: reader.get_slice(name).get_dtype() for name in reader.keys()}  # noqa: SIM118
    keep = facts.keeps_fp32({"model_type": config.model_type, "architectures": [cls.__name__]}, "bfloat16")
    assert {n for n in dtypes if facts.is_kept(n, keep)} == {
        n for n, dtype in dtypes.items() if dtype == "F32"
    }
    assert "BF16" in dtypes.values()


def test_a_part_ends_where_a_word_ends_as_transformers_searches() -> None:
    assert facts.is_kept("model.layers.0.mlp.gate.weight", ["gate.weight"])
    assert facts.is_kept("model.layers.0.mlp.shared_expert_gate.weight", ["gate.weight"])
    assert not facts.is_kept("model.layers.0.mlp.gate.weight_scale", ["gate.weight"])
    assert not facts.is_kept("model.layers.0.mlp.gate_proj.weight", ["gate"])
    assert facts.is_kept("model.layers.11.feed_forward.expert_bias", ["^feed_forward.expert_bias"])
    assert not facts.is_kept("model.layers.11.other.feed_forward.expert_bias", ["^feed_forward.expert_bias"])


def test_routers_are_float32_in_the_classes_of_transformers_5_24() -> None:
    keep = facts.keeps_fp32(
        {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]}, "bfloat16"
    )
    assert facts.is_kept("model.layers.3.mlp.gate.weight", keep)
    assert not facts.is_kept("model.layers.3.mlp.experts.0.gate_proj.weight", keep)
