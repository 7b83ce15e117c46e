"""The planned tensors against the class that config.json names."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.meta_models import Shapes, built

from ckptconv.errors import CkptconvError
from ckptconv.models import facts, skeleton
from ckptconv.plan.fit import require_fit

SAMPLE = [
    "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3MoeForCausalLM", "DeepseekV3ForCausalLM", "MixtralForCausalLM",
    "Qwen3NextForCausalLM", "GptOssForCausalLM", "MllamaForConditionalGeneration", "LongcatFlashForCausalLM",
    "MiMoV2FlashForCausalLM", "Qwen2_5_VLForConditionalGeneration",
]  # fmt: skip


def refusal(config: dict[str, Any], shapes: Shapes) -> str:
    with pytest.raises(CkptconvError, match=r"names are not|does not match|are missing") as error:
        require_fit(config, shapes, Path("run"), [])
    return f"{error.value.what} {error.value.found} {error.value.wanted}"


def small(architecture: str) -> tuple[dict[str, Any], Shapes]:
    changes: dict[str, Any] = {"num_hidden_layers": 4}
    if architecture in ("MllamaForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"):
        changes = {}
    if architecture == "LongcatFlashForCausalLM":
        changes = {"num_layers": 2, "n_routed_experts": 4}
    return built(architecture, **changes)


@pytest.mark.parametrize("architecture", SAMPLE)
def test_a_model_of_transformers_passes_in_silence_and_its_damage_does_not(architecture: str) -> None:
    config, shapes = small(architecture)
    notes: list[str] = []
    require_fit(config, shapes, Path("run"), notes)
    assert notes == []
    chosen = random.Random(architecture)
    surely = [n for n in shapes if "experts" not in n and not n.endswith("correction_bias")]
    for name in chosen.sample(surely, 5):
        assert refusal(config, {n: s for n, s in shapes.items() if n != name})
    assert refusal(config, {f"teacher.{name}": shape for name, shape in shapes.items()})
    layers = [n for n in shapes if ".layers.0." in n]
    assert refusal(config, {n: s for n, s in shapes.items() if n not in layers})


def test_a_bias_that_the_config_switches_on_is_wanted() -> None:
    config, shapes = built("LlamaForCausalLM", num_hidden_layers=2, attention_bias=True)
    assert "self_attn.q_proj.bias" in refusal(config, {n: s for n, s in shapes.items() if "bias" not in n})
    config, shapes = built("LlamaForCausalLM", num_hidden_layers=2)
    extra = {"model.layers.0.self_attn.q_proj.bias": (4096,)}
    assert "attention_bias is false" in refusal(config, shapes | extra)


def test_layers_follow_the_layer_types() -> None:
    config, shapes = built("Qwen3NextForCausalLM", num_hidden_layers=4)
    without = {n: s for n, s in shapes.items() if not n.startswith("model.layers.0.linear_attn.")}
    assert "layers.0.linear_attn" in refusal(config, without)


def test_a_missing_expert_is_named() -> None:
    config, shapes = built("Qwen3MoeForCausalLM", num_hidden_layers=2, num_experts=4, num_experts_per_tok=2)
    without = {n: s for n, s in shapes.items() if ".experts.2." not in n}
    assert "model.layers.0.mlp.experts.2" in refusal(config, without)


def test_the_head_may_be_absent_only_where_it_is_tied() -> None:
    config, shapes = built("Qwen2ForCausalLM", num_hidden_layers=2, tie_word_embeddings=False)
    without = {n: s for n, s in shapes.items() if n != "lm_head.weight"}
    assert "lm_head.weight" in refusal(config, without)
    require_fit({**config, "tie_word_embeddings": True}, without, Path("run"), [])


def test_head_dim_is_taken_from_the_config_where_it_is_stated() -> None:
    config, shapes = built("LlamaForCausalLM", num_hidden_layers=1, head_dim=24, num_key_value_heads=8)
    require_fit(config, shapes, Path("run"), [])
    assert "num_key_value_heads" in refusal({**config, "num_key_value_heads": 16}, shapes)


def test_an_unknown_class_is_reported_and_not_refused() -> None:
    notes: list[str] = []
    require_fit(
        {"model_type": "odd", "architectures": ["OddForCausalLM"]}, {"a.weight": (2, 3)}, Path("run"), notes
    )
    assert len(notes) == 1
    assert "OddForCausalLM" in notes[0]


def test_the_data_is_small_and_one_class_is_read_quickly() -> None:
    assert skeleton._DATA.stat().st_size < 1_500_000
    times = []
    for _ in range(5):
        skeleton.load.cache_clear()
        begun = time.process_time()
        assert skeleton.load("DeepseekV3ForCausalLM") is not None
        times.append(time.process_time() - begun)
    assert min(times) < 0.03


def test_the_default_classes_of_the_common_model_types_are_known() -> None:
    known = set(skeleton.known())
    for kind in (
        "llama",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "deepseek_v3",
        "mixtral",
        "gemma3",
        "gpt_oss",
        "glm4_moe",
    ):
        assert facts.default_architecture({"model_type": kind}) in known, kind


def every_class() -> Iterator[str]:
    return iter(skeleton.known())


@pytest.mark.skipif(
    not os.environ.get("CKPTCONV_SLOW"), reason="CKPTCONV_SLOW=1: every class, about twenty minutes"
)
def test_every_class_that_can_be_built_fits_its_own_config() -> None:
    wrong, count = [], 0
    for architecture in every_class():
        model_type, _, name = architecture.rpartition(":")
        try:
            config, shapes = built(name, model_type)
        except Exception:  # a default config that is not a model
            continue
        count += 1
        try:
            require_fit(config, shapes, Path("run"), [])
        except CkptconvError as error:
            wrong.append((architecture, error.what, error.found))
    assert wrong == []
    assert count > 300


def test_one_number_under_two_names_with_two_values_is_refused() -> None:
    config, shapes = built("Qwen3MoeForCausalLM", num_hidden_layers=2, num_experts=4, num_experts_per_tok=2)
    config = {**config, "num_experts": 4, "num_local_experts": 4}
    require_fit(config, shapes, Path("run"), [])
    with pytest.raises(CkptconvError, match="contradicts itself") as error:
        require_fit({**config, "num_experts": 8}, shapes, Path("run"), [])
    assert "num_experts 8" in str(error.value.found)
    config, shapes = built("GPT2LMHeadModel", n_layer=2)
    with pytest.raises(CkptconvError, match="contradicts itself"):
        require_fit({**config, "num_hidden_layers": 3}, shapes, Path("run"), [])


def test_a_list_of_layers_of_another_length_is_refused() -> None:
    config, shapes = built("Qwen3NextForCausalLM", num_hidden_layers=4)
    longer = {**config, "layer_types": [*config["layer_types"], "full_attention"]}
    with pytest.raises(CkptconvError, match="contradicts itself") as error:
        require_fit(longer, shapes, Path("run"), [])
    assert error.value.found == "layer_types for 5 layers and num_hidden_layers 4"


def test_a_size_that_the_top_level_states_otherwise_is_reported() -> None:
    config, shapes = built("Qwen2_5_VLForConditionalGeneration")
    notes: list[str] = []
    require_fit({**config, "hidden_size": config["text_config"]["hidden_size"]}, shapes, Path("run"), notes)
    assert notes == []
    require_fit({**config, "hidden_size": 24}, shapes, Path("run"), notes)
    assert len(notes) == 1
    assert "hidden_size 24 and text_config.hidden_size" in notes[0]


def test_layers_before_the_first_with_experts_are_those_that_the_config_counts() -> None:
    config, shapes = built(
        "DeepseekV3ForCausalLM", num_hidden_layers=4, n_routed_experts=8, first_k_dense_replace=2
    )
    require_fit(config, shapes, Path("run"), [])
    for other in (1, 3):
        assert "layers." in refusal({**config, "first_k_dense_replace": other}, shapes)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"model_type": "llama"}, "model_type llama and architectures Qwen3MoeForCausalLM"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok 5 and num_local_experts 4"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types for 3 layers and num_hidden_layers 2"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(changes: dict[str, Any], found: str) -> None:
    config, shapes = built("Qwen3MoeForCausalLM", num_hidden_layers=2, num_experts=4, num_experts_per_tok=2)
    require_fit(config, shapes, Path("run"), [])
    with pytest.raises(CkptconvError, match="contradicts itself") as error:
        require_fit({**config, **changes}, shapes, Path("run"), [])
    assert error.value.found == found


def test_a_class_of_the_model_types_own_is_accepted_where_another_types_is_the_usual_one() -> None:
    config, shapes = built("ShieldGemma2ForImageClassification")
    assert (
        facts.default_architecture({"model_type": config["model_type"]}) == "Gemma3ForConditionalGeneration"
    )
    require_fit(config, shapes, Path("run"), [])


def test_no_class_that_transformers_loads_for_a_type_is_another_types() -> None:
    for kind, tasks in facts._facts()["tasks"].items():
        usual = skeleton.package_of(facts.default_architecture({"model_type": kind}))
        packages = {skeleton.package_of(name) for name in tasks.values()} - {None}
        assert not usual or packages <= {usual}, (kind, tasks)
