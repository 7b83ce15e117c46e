"""Whose names a checkpoint has, from one pass over them."""

from __future__ import annotations

import pytest

from ckptconv.models.signs import Sign, signs_of

PLAIN = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight"]


@pytest.mark.parametrize(
    ("name", "sign"),
    [
        ("2.attention.query_key_value.weight", Sign.NUMBERED),
        ("sequential.12.attention.query_key_value.weight", Sign.NUMBERED),
        ("3.self_attention.query_key_value.weight", Sign.NUMBERED),
        ("layers.0.attention_norm.weight", Sign.TORCHTITAN),
        ("layers.11.sa_norm.scale", Sign.TORCHTUNE),
        ("blocks.1.attention.w_out.weight", Sign.OLMO_CORE),
        ("model.layers.0.mlp.experts.w1", Sign.AUTOEP),
        ("model.layers.0.mlp.moe.deepspeed_moe.gate.wg.weight", Sign.DEEPSPEED_MOE),
        ("embed_tokens.weight", Sign.XTUNER),
    ],
)
def test_one_name_among_others_is_enough(name: str, sign: Sign) -> None:
    assert signs_of([*PLAIN, name]) == {sign}
    assert signs_of(PLAIN) == frozenset()


@pytest.mark.parametrize(
    "name",
    [
        "gpt_neox.layers.0.attention.query_key_value.weight",  # transformers' own
        "decoder.layers.0.attention.query_key_value.weight",
        "model.layers.0.attention_norm.weight",
        "layers.x.attention_norm.weight",
        "model.blocks.0.attention.w_out.weight",
        "layers.0.experts.w1",  # no module is between the layer's number and its experts
    ],
)
def test_names_that_only_end_alike_are_nobodys_sign(name: str) -> None:
    assert signs_of([name]) == frozenset()
