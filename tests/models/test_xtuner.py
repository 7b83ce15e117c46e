"""XTuner's names, as its own `to_hf_key_list` gives them."""

from __future__ import annotations

import pytest

from ckptconv import CkptconvError
from ckptconv.models.naming import to_hub
from ckptconv.models.xtuner import as_modules
from ckptconv.tensors.view import View, stored

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 3,
    "hidden_size": 7,
    "moe_intermediate_size": 5,
    "num_hidden_layers": 1,
}


def view(*shape: int) -> View:
    return stored("f", 0, shape, "float32")


def test_experts_become_those_of_the_hub() -> None:
    names = {
        "layers.0.experts.fused_w1w3.weight": view(3 * 2 * 5, 7),
        "layers.0.experts.fused_w2.weight": view(3 * 7, 5),
        "layers.0.gate.weight": view(3, 7),
        "embed_tokens.weight": view(11, 7),
        "norm.weight": view(7),
        "lm_head.weight": view(11, 7),
    }
    found = to_hub("transformers", names, CONFIG).tensors
    assert {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.0.mlp.gate.weight",
    } < set(found)
    up = found["model.layers.0.mlp.experts.1.up_proj.weight"]
    assert up.shape == (5, 7)
    assert up.sources == ("layers.0.experts.fused_w1w3.weight",)
    assert up.value.chunks[0].start == (1 * 2 * 5 + 5) * 7 * 4  # the second expert's rows after its gate
    assert found["model.layers.0.mlp.experts.2.down_proj.weight"].value.chunks[0].start == 2 * 7 * 5 * 4


def test_the_config_must_count_the_experts() -> None:
    with pytest.raises(CkptconvError, match="does not say into how many experts"):
        as_modules({"layers.0.experts.fused_w2.weight": view(21, 5)}, {"num_experts": 4})
