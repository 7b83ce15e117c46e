"""Tied heads: dropped where equal, kept where they differ, taken apart where an adapter updates one of the two."""

from __future__ import annotations

from typing import Any

import pytest
from support.plans import view

from ckptconv.errors import CkptconvError
from ckptconv.plan.records import Fill
from ckptconv.plan.tied import take_apart, tie, unread, untied
from ckptconv.tensors.view import View

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "tie_word_embeddings": True,
}


def named(**views: View) -> dict[str, Fill]:
    names = {"embed": EMBED, "head": HEAD}
    return {names[key]: Fill(value, value.shape, (names[key],)) for key, value in views.items()}


def test_a_head_on_the_embeddings_bytes_is_dropped_without_reading() -> None:
    one = view((9, 8))
    found = tie(named(embed=one, head=one), TIED, unread)
    assert list(found.tensors) == [EMBED]
    assert found.left == ((HEAD, one, f"tied: equal to {EMBED}"),)
    assert found.config == TIED


def test_a_head_of_another_shape_or_dtype_differs_without_reading() -> None:
    for head in (view((10, 8)), view((9, 8), "bfloat16")):
        found = tie(named(embed=view((9, 8)), head=head), TIED, unread)
        assert set(found.tensors) == {EMBED, HEAD}
        assert found.config == {**TIED, "tie_word_embeddings": False}
        assert len(found.notes) == 1


@pytest.mark.parametrize("equal", [True, False])
def test_two_stored_tensors_are_compared(equal: bool) -> None:
    found = tie(named(embed=view((9, 8)), head=view((9, 8))), TIED, lambda one, two: equal)
    assert (HEAD in found.tensors) == (not equal)
    assert bool(found.notes) == (not equal)


def test_nothing_is_compared_where_the_config_ties_nothing() -> None:
    config = {**TIED, "tie_word_embeddings": False}
    found = tie(named(embed=view((9, 8)), head=view((9, 8))), config, unread)
    assert set(found.tensors) == {EMBED, HEAD}
    assert not found.left


def test_planning_without_a_comparison_refuses() -> None:
    with pytest.raises(CkptconvError, match="must be read"):
        tie(named(embed=view((9, 8)), head=view((9, 8))), TIED, unread)


@pytest.mark.parametrize("updated", [[EMBED], [HEAD], [EMBED, HEAD]])
def test_an_adapted_half_gives_the_head_a_weight_of_its_own(updated: list[str]) -> None:
    weights = {EMBED: view((9, 8))}
    apart = take_apart(weights, updated, TIED)
    assert apart.weights[HEAD] is weights[EMBED]
    assert apart.heads == (HEAD,)
    assert apart.config == {**TIED, "tie_word_embeddings": False}
    assert list(weights) == [EMBED]
    assert all(name in apart.notes[0] for name in updated)


def test_an_adapter_elsewhere_leaves_the_tie() -> None:
    weights = {EMBED: view((9, 8))}
    apart = take_apart(weights, ["model.layers.0.mlp.up_proj.weight"], TIED)
    assert (apart.weights, apart.config, apart.heads) == (weights, TIED, ())


def test_untied_reaches_the_text_config_too() -> None:
    config = {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True}, "vision_config": {}}
    assert untied(config) == {
        "tie_word_embeddings": False,
        "text_config": {"tie_word_embeddings": False},
        "vision_config": {},
    }
    assert config["text_config"] == {"tie_word_embeddings": True}
