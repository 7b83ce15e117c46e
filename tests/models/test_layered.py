"""Numbered layers of a pipeline get the names of the class that config.json names, or are refused."""

from __future__ import annotations

import pytest

from ckptconv import CkptconvError
from ckptconv.models.layered import names_of_class

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 38,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "num_hidden_layers": 2,
    "vocab_size": 31,
    "tie_word_embeddings": False,
}
BLOCK = {
    "self_attn.q_proj.weight": (24, 24),
    "self_attn.k_proj.weight": (8, 24),
    "self_attn.v_proj.weight": (8, 24),
    "self_attn.o_proj.weight": (24, 24),
    "mlp.gate_proj.weight": (38, 24),
    "mlp.up_proj.weight": (38, 24),
    "mlp.down_proj.weight": (24, 38),
    "input_layernorm.weight": (24,),
    "post_attention_layernorm.weight": (24,),
}


def layers(*each: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{number}.{name}": shape for number, layer in enumerate(each) for name, shape in layer.items()}


def test_embedding_blocks_norm_and_head() -> None:
    found = names_of_class(
        layers({"weight": (31, 24)}, BLOCK, BLOCK, {"weight": (24,)}, {"weight": (31, 24)}), CONFIG
    )
    assert found["0.weight"] == "model.embed_tokens.weight"
    assert found["2.self_attn.q_proj.weight"] == "model.layers.1.self_attn.q_proj.weight"
    assert found["3.weight"] == "model.norm.weight"
    assert found["4.weight"] == "lm_head.weight"


def test_attributes_of_wrappers_and_layers_of_two_modules() -> None:
    inner = {f"layer.{name}": shape for name, shape in BLOCK.items()}
    last = {"norm.weight": (24,), "lm_head.weight": (31, 24)}
    found = names_of_class(layers({"embed_tokens.weight": (31, 24)}, inner, inner, last), CONFIG)
    assert found["1.layer.mlp.up_proj.weight"] == "model.layers.0.mlp.up_proj.weight"
    assert found["3.norm.weight"] == "model.norm.weight"
    assert found["3.lm_head.weight"] == "lm_head.weight"


def test_a_head_after_the_blocks_is_not_the_embedding() -> None:
    """The embedding's layer is missing: the head stays the head, and the check of the whole model finds the hole."""
    found = names_of_class({f"{n + 1}.{name}": shape for n in range(2) for name, shape in BLOCK.items()}
                           | {"4.weight": (31, 24)}, CONFIG)  # fmt: skip
    assert found["4.weight"] == "lm_head.weight"


@pytest.mark.parametrize(
    "layer", [{"weight": (24, 25)}, {"alpha": (24,)}, {name + "_": shape for name, shape in BLOCK.items()}]
)
def test_a_layer_that_the_class_does_not_have_is_refused(layer: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(CkptconvError, match="a layer of the pipeline is not a module of LlamaForCausalLM"):
        names_of_class(layers({"weight": (31, 24)}, layer, BLOCK), CONFIG)


def test_two_modules_of_one_shape_are_not_guessed() -> None:
    with pytest.raises(CkptconvError, match="a layer of the pipeline is not a module"):
        names_of_class(layers({"weight": (31, 24)}, BLOCK, {"weight": (24,)}, {"weight": (24,)}), CONFIG)


def test_a_class_that_is_not_known_is_asked_for() -> None:
    with pytest.raises(CkptconvError, match=r"config\.json names no class that ckptconv knows"):
        names_of_class(layers(BLOCK), {"model_type": "own"})
