"""config.json for both generations of transformers: the added keys, and what transformers 5 makes of them."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from ckptconv.models import facts
from ckptconv.models.config_keys import for_both


def _written(config: Any) -> dict[str, Any]:
    """config.json as transformers 5 saves it."""
    return dict(json.loads(config.to_json_string()))


def _qwen3_moe() -> dict[str, Any]:
    from transformers import Qwen3MoeConfig

    return _written(
        Qwen3MoeConfig(
            num_experts=12, rope_parameters={"rope_type": "default", "rope_theta": 5e6}, dtype="bfloat16"
        )
    )


def _gemma3() -> dict[str, Any]:
    from transformers import Gemma3Config

    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 11000.0},
    }
    return _written(
        Gemma3Config(text_config={"num_hidden_layers": 6, "rope_parameters": rope}, dtype="bfloat16")
    )


def test_the_rotary_base_and_the_experts_stand_under_the_old_keys_too() -> None:
    written = _qwen3_moe()
    assert "rope_theta" not in written
    both = for_both(written)
    assert both.config["rope_theta"] == 5e6
    assert both.config["num_experts"] == both.config["num_local_experts"] == 12
    assert both.config["torch_dtype"] == "bfloat16"
    assert set(both.added) == {"rope_theta", "num_experts", "torch_dtype"}
    assert {key: value for key, value in both.config.items() if key in written} == written


def test_a_nested_config_gets_its_own_keys() -> None:
    both = for_both(_gemma3())
    text = both.config["text_config"]
    assert (text["rope_theta"], text["rope_local_base_freq"]) == (1e6, 11000.0)
    assert text["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert "text_config.rope_theta" in both.added
    assert "rope_theta" not in both.config


@pytest.mark.parametrize("make", [_qwen3_moe, _gemma3])
def test_transformers_5_reads_the_same_values_with_and_without_the_keys(make: Any) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    written = make()
    cls = CONFIG_MAPPING[written["model_type"]]
    plain, both = cls.from_dict(copy.deepcopy(written)), cls.from_dict(for_both(written).config)
    assert plain.to_dict() == both.to_dict()


def test_partial_rotary_factor_and_the_kind_of_scaling_come_along() -> None:
    from transformers import Glm4MoeConfig

    rope = {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "partial_rotary_factor": 0.25,
        "original_max_position_embeddings": 4096,
    }  # fmt: skip
    both = for_both(_written(Glm4MoeConfig(rope_parameters=rope)))
    assert both.config["partial_rotary_factor"] == 0.25
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    assert both.config["rope_scaling"] == scaling


def test_a_config_of_transformers_4_stays_as_it_is() -> None:
    config = {"model_type": "qwen2", "rope_theta": 1e6, "rope_scaling": None, "torch_dtype": "bfloat16"}
    assert for_both(config).config == config
    assert for_both(config).summary == ""


def test_two_keys_that_contradict_each_other_are_reported() -> None:
    config = {
        "model_type": "qwen2",
        "rope_theta": 1e4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    both = for_both(config)
    assert both.config["rope_theta"] == 1e4
    assert "rope_theta 10000.0 and rope_parameters.rope_theta 1000000.0" in both.disputes[0]


def test_a_model_type_that_transformers_4_does_not_have_gets_no_rope_keys() -> None:
    config = {"model_type": "qwen3_5_text", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    assert for_both(config).config == config


def test_deepseeks_router_bias_is_named_as_vllm_looks_for_it() -> None:
    config = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]}
    assert (
        for_both(config, ("model.layers.3.mlp.gate.e_score_correction_bias",)).config["topk_method"]
        == "noaux_tc"
    )
    assert "topk_method" not in for_both(config, ("model.layers.3.mlp.gate.weight",)).config


def test_minimaxs_router_bias_has_a_place_in_vllm() -> None:
    config = {"model_type": "minimax_m2", "architectures": ["MiniMaxM2ForCausalLM"]}
    bias = ("model.layers.0.block_sparse_moe.e_score_correction_bias",)
    assert for_both(config, bias).config["use_routing_bias"] is True
    assert "use_routing_bias" not in for_both(config).config


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        ("DeepseekV3ForCausalLM", "scoring_func", "sigmoid"),
        ("MiniMaxM2ForCausalLM", "scoring_func", "sigmoid"),
        ("Cohere2ForCausalLM", "rotary_pct", 1.0),
    ],
)
def test_what_transformers_has_in_its_code_and_engines_in_the_config_is_added(
    cls: str, key: str, value: object
) -> None:
    """llama.cpp and vLLM take softmax for DeepSeek's router if the config has no scoring_func."""
    import transformers

    written = _written(getattr(transformers, cls).config_class()) | {"architectures": [cls]}
    assert key not in written
    both = for_both(written)
    assert both.config[key] == value
    assert "for readers of transformers 4 and of engines" in both.summary
    assert for_both(written | {key: "stated"}).config[key] == "stated"


@pytest.mark.parametrize(
    "scaling", [None, {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}]
)
def test_an_olmo_3_of_transformers_4_keeps_its_rotary_base_in_transformers_5(
    scaling: dict[str, Any] | None,
) -> None:
    """transformers 5 alone gives the sliding layers its default, 500000."""
    from transformers import Olmo3Config

    flat = {"model_type": "olmo3", "num_hidden_layers": 4, "rope_theta": 50000.0, "rope_scaling": scaling}
    both = for_both(flat)
    assert both.summary == "rope_parameters added for readers of transformers 5"
    assert {key: both.config[key] for key in flat} == flat
    read = Olmo3Config.from_dict(copy.deepcopy(both.config)).rope_parameters
    assert read["sliding_attention"] == {"rope_type": "default", "rope_theta": 50000.0}
    assert read["full_attention"] == {"rope_theta": 50000.0, **(scaling or {"rope_type": "default"})}
    assert for_both(both.config).config == both.config


def test_csm_is_untied_by_the_key_that_transformers_4_refuses_and_5_does_not_read() -> None:
    config = {"model_type": "csm", "tie_word_embeddings": True, "tie_codebooks_embeddings": True}
    assert for_both(config).config["tie_word_embeddings"] is False


def test_minimax_m2_has_the_rotary_dim_that_llama_cpp_wants() -> None:
    rope = {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5}
    config = {"model_type": "minimax_m2", "head_dim": 128, "rope_parameters": rope}
    assert for_both(config).config["rotary_dim"] == 64


@pytest.mark.parametrize("kind", ["falcon_h1", "glm4_moe"])
def test_engines_get_the_head_dim_that_transformers_divides_for(kind: str) -> None:
    config = {"model_type": kind, "hidden_size": 2048, "num_attention_heads": 32}
    assert for_both(config).config["head_dim"] == 64
    assert "head_dim" not in for_both(config | {"head_dim": 128}).added


def test_the_text_model_says_the_same_of_the_head_as_the_model() -> None:
    """transformers 4 asks the text model's config, transformers 5 the model's own."""
    from transformers import Qwen3VLMoeConfig

    written = _written(Qwen3VLMoeConfig())
    assert (written["tie_word_embeddings"], written["text_config"]["tie_word_embeddings"]) == (False, True)
    both = for_both(written)
    assert both.config["text_config"]["tie_word_embeddings"] is False
    assert both.respelled == ("text_config.tie_word_embeddings",)


@pytest.mark.parametrize(
    ("kind", "outer", "inside", "wanted"),
    [
        ("mistral3", True, False, True),  # transformers 5 reads the top, 4 the text model
        ("mistral3", False, True, False),
        ("llava", True, False, True),  # transformers 5 ties if either says so
        ("llava", False, True, True),
        ("llama4", True, False, False),  # both read the text model
        ("llama4", False, True, True),
        ("blip-2", True, False, False),
        ("florence2", False, True, True),  # the text model's ties other weights
        ("voxtral", True, True, False),  # transformers 5 never ties its head
    ],
)
def test_the_text_model_states_a_tie_for_transformers_4_as_transformers_5_reads_it(
    kind: str, outer: bool, inside: bool, wanted: bool
) -> None:
    text = {"model_type": "llama", "tie_word_embeddings": inside}
    config = {"model_type": kind, "tie_word_embeddings": outer, "text_config": text}
    both = for_both(config)
    assert both.config["text_config"]["tie_word_embeddings"] is wanted
    assert both.config["tie_word_embeddings"] is outer
    assert both.respelled == (("text_config.tie_word_embeddings",) if wanted is not inside else ())


@pytest.mark.parametrize(
    ("kind", "outer", "inside", "tied"),
    [("llama4", True, False, False), ("llama4", False, True, True), ("llava", False, True, True)],
)
def test_a_head_is_tied_by_the_level_that_its_class_reads(
    kind: str, outer: bool, inside: bool, tied: bool
) -> None:
    text = {"model_type": "llama4_text", "tie_word_embeddings": inside}
    config = {"model_type": kind, "tie_word_embeddings": outer, "text_config": text}
    assert facts.says_tied(config) is tied


def test_values_that_transformers_5_renamed_are_spelled_in_the_old_way_and_read_alike() -> None:
    from transformers import GraniteMoeHybridConfig

    written = _written(GraniteMoeHybridConfig(num_hidden_layers=2, layer_types=["mamba", "attention"]))
    assert written["layer_types"] != ["mamba", "attention"]
    both = for_both(written)
    assert both.config["layer_types"] == ["mamba", "attention"]
    assert both.config["time_step_limit"] == [0.0, float("inf")]
    again = GraniteMoeHybridConfig.from_dict(json.loads(json.dumps(both.config)))
    assert _written(again) == written


def test_a_class_that_scales_by_default_is_told_where_the_positions_are_not_scaled() -> None:
    config = {"model_type": "gpt_oss", "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}}
    assert for_both(config).config["rope_scaling"] is None
    assert "rope_scaling" not in for_both(config | {"model_type": "llama"}).config


def test_qwen3_vl_gets_an_object_where_transformers_4_asks_one_for_its_keys() -> None:
    rope = {"rope_type": "default", "rope_theta": 5e6}
    assert for_both({"model_type": "qwen3_vl_text", "rope_parameters": rope}).config["rope_scaling"] == {
        "rope_type": "default"
    }


def test_inner_configs_in_which_transformers_4_stops_at_any_other_key_state_no_defaults() -> None:
    """DBRX's attn_config and ffn_config; the rotary base of transformers 4 is in the first."""
    from transformers import DbrxConfig

    rope = {"rope_type": "default", "rope_theta": 5e5}
    written = _written(DbrxConfig(d_model=96, rope_parameters=rope, attn_config={"kv_n_heads": 2}))
    both = for_both(written)
    assert both.added == ("attn_config.rope_theta",)
    assert both.respelled == ("attn_config", "ffn_config")
    known = {
        "attn_pdrop",
        "clip_qkv",
        "kv_n_heads",
        "rope_theta",
    }  # and nothing that DbrxAttentionConfig refuses
    assert set(both.config["attn_config"]) == known
    assert both.config["attn_config"]["rope_theta"] == 5e5
    again = DbrxConfig.from_dict(copy.deepcopy(both.config))
    assert (again.rope_parameters, again.ffn_config.hidden_size) == (rope, 96)


def test_a_value_that_is_no_default_stays_in_such_an_inner_config() -> None:
    inner = {"kv_n_heads": 2, "dtype": None, "output_attentions": True}
    both = for_both({"model_type": "dbrx", "attn_config": inner, "ffn_config": None})
    assert both.config["attn_config"] == {"kv_n_heads": 2, "output_attentions": True}


def test_a_dbrx_of_transformers_4_keeps_its_rotary_base_in_transformers_5() -> None:
    """transformers 5 alone takes its default, 10000."""
    from transformers import DbrxConfig

    old = {"model_type": "dbrx", "attn_config": {"kv_n_heads": 8, "rope_theta": 5e5}}
    both = for_both(old)
    assert both.summary == "rope_parameters added for readers of transformers 5"
    assert DbrxConfig.from_dict(copy.deepcopy(both.config)).rope_parameters["rope_theta"] == 5e5
    assert for_both(both.config).config == both.config


def test_a_key_that_transformers_4_passes_on_twice_is_not_written() -> None:
    inner = {"model_type": "superpoint", "attn_implementation": "eager"}
    both = for_both({"model_type": "lightglue", "keypoint_detector_config": inner})
    assert both.config["keypoint_detector_config"] == {"model_type": "superpoint"}


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def test_a_rope_scaling_that_is_added_by_hand_replaces_the_rope_parameters_and_is_reported() -> None:
    """As many model cards advise: transformers 5 takes it in place of rope_parameters, and the base from the top level."""
    from transformers import Qwen2Config

    stated = {"rope_type": "default", "rope_theta": 1e6}
    config = {"model_type": "qwen2", "rope_parameters": stated, "rope_scaling": dict(YARN)}
    assert Qwen2Config.from_dict(copy.deepcopy(config)).rope_parameters == YARN | {"rope_theta": 1e4}
    both = for_both(config)
    assert both.disputed == ()
    assert both.overridden == (("rope_scaling", YARN, "rope_parameters", stated),)
    (said,) = both.disputes
    assert "transformers reads the first in place of the second" in said
    assert Qwen2Config.from_dict(copy.deepcopy(both.config)).rope_parameters["rope_theta"] == 1e6


@pytest.mark.parametrize(
    ("scaling", "stated"),
    [
        (None, {"rope_type": "yarn", "factor": 4.0}),
        ({}, {"rope_type": "yarn", "factor": 4.0}),
        ({"type": "yarn", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}),
        ({"type": "mrope", "mrope_section": [2, 3, 3]}, {"rope_type": "default", "mrope_section": [2, 3, 3]}),
        ({"rope_type": "linear", "factor": 8.0}, {"full_attention": {"rope_type": "linear", "factor": 8.0}}),
    ],
)
def test_a_rope_scaling_that_says_the_same_is_no_contradiction(scaling: Any, stated: Any) -> None:
    config = {"model_type": "qwen2", "rope_parameters": stated, "rope_scaling": scaling}
    assert for_both(config).overridden == ()


def test_models_whose_config_class_has_no_rope_scaling_look_for_it_in_transformers_4() -> None:
    """Mistral of transformers 4.57 takes it from the config's other keys (MistralRotaryEmbedding)."""
    config = {"model_type": "mistral", "rope_parameters": YARN | {"rope_theta": 1e6}}
    assert for_both(config).config["rope_scaling"] == YARN
