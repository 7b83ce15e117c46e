"""config.json: refused where it is another model's, corrected where training changed the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckptconv.errors import CkptconvError
from ckptconv.models.config import check_fit, corrected
from ckptconv.models.lora.kinds import check_name

CONFIG: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 40,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
SHAPES: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (40, 12), "model.norm.weight": (12,)}
for layer in range(2):
    SHAPES |= {
        f"model.layers.{layer}.self_attn.q_proj.weight": (12, 12),
        f"model.layers.{layer}.self_attn.k_proj.weight": (4, 12),
        f"model.layers.{layer}.self_attn.v_proj.weight": (4, 12),
        f"model.layers.{layer}.self_attn.o_proj.weight": (12, 12),
        f"model.layers.{layer}.self_attn.q_proj.bias": (12,),
        f"model.layers.{layer}.self_attn.k_proj.bias": (4,),
        f"model.layers.{layer}.self_attn.v_proj.bias": (4,),
        f"model.layers.{layer}.mlp.gate_proj.weight": (20, 12),
        f"model.layers.{layer}.mlp.up_proj.weight": (20, 12),
        f"model.layers.{layer}.mlp.down_proj.weight": (12, 20),
        f"model.layers.{layer}.input_layernorm.weight": (12,),
        f"model.layers.{layer}.post_attention_layernorm.weight": (12,),
    }


def test_the_models_own_config_fits() -> None:
    check_fit(CONFIG, SHAPES, Path("here"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"vocab_size": 41},
        {"hidden_size": 16},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"intermediate_size": 24},
        {"num_key_value_heads": 3},
    ],
    ids=str,
)
def test_another_models_config_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(CkptconvError, match=r"config\.json does not match these tensors") as error:
        check_fit({**CONFIG, **wrong}, SHAPES, Path("here"))
    assert error.value.where


def test_the_dtype_is_corrected_under_the_key_that_is_there() -> None:
    notes: list[str] = []
    assert corrected(CONFIG, SHAPES, "bfloat16", notes)["torch_dtype"] == "bfloat16"
    assert CONFIG["torch_dtype"] == "float32"
    assert notes == []


def test_a_value_head_makes_a_token_classifier_with_one_label() -> None:
    notes: list[str] = []
    new = corrected(CONFIG, {**SHAPES, "score.weight": (1, 12)}, "bfloat16", notes)
    assert new["architectures"] == ["Qwen2ForTokenClassification"]
    assert new["id2label"] == {"0": "LABEL_0"}
    assert len(notes) == 1


def test_a_stack_of_convolutions_besides_the_layers_is_no_contradiction() -> None:
    """Parakeet's encoder has subsampling.layers; Kyutai's table has the rows of all codebooks; Zamba 2's heads are wider."""
    more = {"subsampling.layers.6.weight": (4, 4), "embed_tokens.embed_tokens.weight": (99, 12)}
    check_fit(CONFIG, {**more, **SHAPES}, Path("config.json"))
    wide = CONFIG | {"head_dim": 2, "attention_head_dim": 4}
    check_fit(wide, SHAPES, Path("config.json"))
    with pytest.raises(CkptconvError, match="does not match"):
        check_fit(CONFIG | {"num_hidden_layers": 5}, {**more, **SHAPES}, Path("config.json"))


@pytest.mark.parametrize(
    ("name", "is_adapter"),
    [
        ("roberta.encoder.layer.0.output.adapter_modules.en_XX.dense1.weight", False),
        ("roberta.encoder.layer.0.output.adapter_layer_norm.weight", False),
        ("pixel_level_module.decoder.adapter_1.0.weight", False),
        ("model.layers.0.mlp.adapter_down.weight", True),
    ],
)
def test_modules_of_a_model_that_are_called_adapters_are_no_adapters_of_peft(
    name: str, is_adapter: bool
) -> None:
    if not is_adapter:
        check_name(name)
        return
    with pytest.raises(CkptconvError, match="not plain LoRA"):
        check_name(name)
