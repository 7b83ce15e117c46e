"""config.json that describes a model which transformers cannot build or run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.meta_models import Shapes, built

from ckptconv.errors import CkptconvError
from ckptconv.models import facts, installed
from ckptconv.plan.fit import require_fit

Config = dict[str, Any]


def _notes(config: Config, shapes: Shapes) -> list[str]:
    notes: list[str] = []
    require_fit(config, shapes, Path("run"), notes)
    return notes


@pytest.fixture(scope="module")
def qwen3() -> tuple[Config, Shapes]:
    return built("Qwen3ForCausalLM", num_hidden_layers=2, hidden_size=64, intermediate_size=80, vocab_size=90)


@pytest.mark.parametrize(("key", "kind"), [("layer_types", "slidng_attention"), ("mlp_layer_types", "moe")])
def test_a_kind_of_layer_that_transformers_does_not_have_is_refused(
    qwen3: tuple[Config, Shapes], key: str, kind: str
) -> None:
    config, shapes = qwen3
    first = facts.layer_kinds(key)[0]
    assert _notes({**config, key: [first, first]}, shapes) == []
    with pytest.raises(CkptconvError, match="kind of layer that transformers does not have") as error:
        _notes({**config, key: [first, kind]}, shapes)
    assert error.value.found == f"{kind!r} in {key}"
    assert first in str(error.value.wanted)


def test_transformers_refuses_what_we_refuse(qwen3: tuple[Config, Shapes]) -> None:
    from huggingface_hub.errors import StrictDataclassClassValidationError
    from transformers import Qwen3Config

    kinds = ["full_attention", "slidng_attention"]
    with pytest.raises(StrictDataclassClassValidationError, match="slidng_attention"):
        Qwen3Config.from_dict({**qwen3[0], "layer_types": kinds})


def test_every_kind_and_every_former_name_is_accepted(qwen3: tuple[Config, Shapes]) -> None:
    config, shapes = qwen3
    former = list(facts._facts()["layer_kinds"]["former"])
    assert "mamba" in former
    for kind in [*facts.layer_kinds("layer_types"), *former]:
        if kind != "sliding_attention":
            assert _notes({**config, "layer_types": [kind, kind]}, shapes) == []


def test_a_type_with_kinds_of_its_own_is_left_to_its_class() -> None:
    for kind in ("deepseek_v4", "nemotron_h", "pp_doclayout_v3"):
        assert not facts.refuses_layer_kind(kind, "mlp_layer_types", "hash_moe")
    assert facts.refuses_layer_kind("qwen3_moe", "mlp_layer_types", "hash_moe")


def test_a_kind_that_only_the_installed_transformers_has_is_accepted(
    qwen3: tuple[Config, Shapes], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, shapes = qwen3
    monkeypatch.setattr(installed, "installed_version", lambda: "99.0.0")
    monkeypatch.setattr(
        "transformers.configuration_utils.ALLOWED_ATTN_LAYER_TYPES", ("full_attention", "later_attention")
    )
    assert _notes({**config, "layer_types": ["full_attention", "later_attention"]}, shapes) == []


def test_key_heads_that_do_not_divide_the_heads_are_refused() -> None:
    config, shapes = built(
        "LlamaForCausalLM", num_hidden_layers=1, num_attention_heads=8, head_dim=16, vocab_size=90
    )
    assert _notes(config, shapes) == []
    fewer = {n: (48, s[1]) if "k_proj" in n or "v_proj" in n else s for n, s in shapes.items()}
    with pytest.raises(CkptconvError, match="contradicts itself") as error:
        _notes({**config, "num_key_value_heads": 3}, fewer)
    assert error.value.found == "num_attention_heads 8 and num_key_value_heads 3"


@pytest.mark.parametrize(("key", "value"), [("sliding_window", None), ("use_sliding_window", False)])
def test_layers_of_sliding_attention_without_a_window_are_noted(
    qwen3: tuple[Config, Shapes], key: str, value: Any
) -> None:
    config, shapes = qwen3
    sliding = {**config, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
    assert _notes({**sliding, "use_sliding_window": True}, shapes) == []
    (note,) = _notes({**sliding, "use_sliding_window": True, key: value}, shapes)
    assert f"states {key}" in note


def _llava(
    outer: bool, inner: bool, architecture: str = "LlavaNextForConditionalGeneration"
) -> tuple[Config, Shapes]:
    config, shapes = built(architecture)
    config["text_config"]["tie_word_embeddings"] = inner
    return {**config, "tie_word_embeddings": outer}, shapes


def test_a_head_that_only_the_language_model_inside_ties_must_be_stored() -> None:
    config, shapes = _llava(False, True)
    (head,) = (name for name in shapes if "lm_head" in name)
    assert _notes(config, shapes) == []
    without = {name: shape for name, shape in shapes.items() if name != head}
    with pytest.raises(CkptconvError, match="contradicts itself") as error:
        _notes(config, without)
    assert "tie_word_embeddings false, true for the language model inside" in str(error.value.found)
    assert _notes(_llava(True, False)[0], without) == []


def test_a_class_that_ties_by_either_level_may_lack_its_head() -> None:
    config, shapes = _llava(False, True, "LlavaForConditionalGeneration")
    assert _notes(config, {name: shape for name, shape in shapes.items() if "lm_head" not in name}) == []


@pytest.mark.parametrize(("rows", "count"), [(0, 0), (-64, 0), (-512, 0), (-513, 1), (1, 1)])
def test_a_vocabulary_that_the_top_level_states_otherwise_is_noted(rows: int, count: int) -> None:
    """PaliGemma, LLaVA and Ovis 2 state at the top level how many tokens there are, before the embedding is padded."""
    config, shapes = built("LlavaForConditionalGeneration")
    notes = _notes({**config, "vocab_size": config["text_config"]["vocab_size"] + rows}, shapes)
    assert len(notes) == count
    assert all("text_config.vocab_size" in note for note in notes)
