"""Classes whose layers differ by more than a list of kinds: steps of sparse layers, shared keys, heads of two widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.meta_models import built

from ckptconv.errors import CkptconvError
from ckptconv.models import skeleton
from ckptconv.plan.fit import require_fit

Config = dict[str, Any]
_T5 = {"vocab_size": 90, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_heads": 2}
_SWITCH = {**_T5, "num_experts": 5}
_NLLB = {"vocab_size": 90, "d_model": 32, "encoder_ffn_dim": 40, "decoder_ffn_dim": 48, "num_experts": 11}
_LLAMA = {
    "vocab_size": 90, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40,
    "num_hidden_layers": 3,
}  # fmt: skip
_MOE = {
    **_LLAMA,
    "n_routed_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 2,
}


def _kinds(letters: str) -> list[str]:
    return [{"s": "sliding_attention", "f": "full_attention"}[letter] for letter in letters]


_GEMMA4 = {
    "vocab_size": 90, "vocab_size_per_layer_input": 70, "hidden_size": 48, "intermediate_size": 56,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 20, "global_head_dim": 28,
}  # fmt: skip
_SHARED = {
    **_GEMMA4, "num_hidden_layers": 7, "layer_types": _kinds("sfssfsf"), "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True, "hidden_size_per_layer_input": 12,
}  # fmt: skip
_EXPERTS = {
    **_GEMMA4, "num_hidden_layers": 12, "layer_types": _kinds("ssfssfssfssf"), "enable_moe_block": True,
    "num_experts": 5, "top_k_experts": 2, "moe_intermediate_size": 36, "attention_k_eq_v": True,
    "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0,
}  # fmt: skip
_M3 = {
    "num_hidden_layers": 3, "mlp_layer_types": ["dense", "dense", "sparse"], "num_local_experts": 6, "hidden_size": 96,
    "layer_types": ["full_attention", "minimax_m3_sparse", "full_attention"],
}  # fmt: skip
_DINO = {"model_type": "rf_detr_dinov2", "num_hidden_layers": 5, "hidden_size": 96, "num_attention_heads": 4}

# The class, the model type that borrows it, two configs, a tensor of the first model, and one with a dim of it.
FORMS: list[tuple[str, str, Config, Config, str, str, int]] = [
    ("LongT5ForConditionalGeneration", "", {**_T5, "num_layers": 3, "num_decoder_layers": 5},
     {**_T5, "encoder_attention_type": "transient-global", "feed_forward_proj": "gated-gelu"},
     "decoder.block.4.layer.1.EncDecAttention.q.weight", "encoder.block.1.layer.1.DenseReluDense.wi.weight", 0),
    ("UMT5ForConditionalGeneration", "", {**_T5, "num_layers": 3, "num_decoder_layers": 5},
     {**_T5, "num_layers": 2, "feed_forward_proj": "relu"},
     "decoder.block.4.layer.0.SelfAttention.relative_attention_bias.weight",
     "encoder.block.2.layer.0.SelfAttention.relative_attention_bias.weight", 1),
    ("UMT5ForQuestionAnswering", "", {**_T5, "num_layers": 3, "num_decoder_layers": 5}, {**_T5, "num_layers": 2},
     "decoder.block.4.layer.2.DenseReluDense.wo.weight", "decoder.block.4.layer.2.DenseReluDense.wo.weight", 0),
    ("SwitchTransformersForConditionalGeneration", "",
     {**_SWITCH, "num_layers": 7, "num_decoder_layers": 9, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 4},
     {**_SWITCH, "num_layers": 4, "num_sparse_encoder_layers": 0, "num_sparse_decoder_layers": 4},
     "encoder.block.4.layer.1.mlp.router.classifier.weight", "decoder.block.3.layer.2.mlp.experts.expert_4.wi.weight", 0),
    ("NllbMoeForConditionalGeneration", "",
     {**_NLLB, "encoder_layers": 6, "decoder_layers": 4, "encoder_sparse_step": 3, "decoder_sparse_step": 2},
     {**_NLLB, "encoder_layers": 3, "decoder_layers": 4, "encoder_sparse_step": 1, "decoder_sparse_step": 0,
      "router_bias": True},
     "model.encoder.layers.5.ffn.experts.expert_10.fc1.bias", "model.decoder.layers.3.ffn.router.classifier.weight", 0),
    ("Sapiens2Model", "",
     {"num_hidden_layers": 7, "num_first_full_attention_layers": 2, "num_last_full_attention_layers": 1},
     {"num_hidden_layers": 3, "num_key_value_heads_per_layer": [16, 2, 8], "key_bias": False},
     "blocks.6.attn.wk.bias", "blocks.3.attn.wv.weight", 0),
    ("RfDetrForObjectDetection", "", {"backbone_config": {**_DINO, "out_indices": [2, 5]}, "decoder_layers": 2},
     {"backbone_config": {**_DINO, "out_indices": [1, 3, 4]}, "d_model": 64, "group_detr": 2},
     "backbone.0.projector.stages.0.0.cv2.conv.weight", "backbone.0.projector.stages.0.0.cv1.conv.weight", 1),
    ("MiniMaxM3VLForCausalLM", "", _M3, {**_M3, "mlp_layer_types": ["sparse"] * 3, "index_n_heads": 2},
     "model.layers.1.mlp.gate_up_proj.weight", "model.layers.0.mlp.down_proj.weight", 1),
    ("MiniMaxM3SparseForConditionalGeneration", "", {"text_config": _M3},
     {"text_config": {**_M3, "mlp_layer_types": ["sparse", "dense", "dense"]}},
     "language_model.model.layers.1.mlp.down_proj.weight", "language_model.model.layers.0.mlp.down_proj.weight", 1),
    ("LlamaForCausalLM", "exaone", _LLAMA, {**_LLAMA, "attention_bias": True, "mlp_bias": True, "head_dim": 12},
     "transformer.h.1.mlp.c_fc_0.weight", "transformer.h.2.attn.attention.k_proj.weight", 0),
    ("LlamaForCausalLM", "internlm3", _LLAMA, {**_LLAMA, "qkv_bias": True, "bias": True},
     "model.layers.1.mlp.up_proj.weight", "model.layers.2.self_attn.k_proj.weight", 0),
    ("LlamaForCausalLM", "iquestcoder", _LLAMA, {**_LLAMA, "num_hidden_layers": 2},
     "model.layers.1.mlp.up_proj.weight", "model.layers.2.self_attn.k_proj.weight", 0),
    ("Glm4MoeForCausalLM", "sarvam_moe", _MOE, {**_MOE, "use_qk_norm": False, "attention_bias": True},
     "model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.experts.4.up_proj.weight", 0),
    ("DeepseekV3ForCausalLM", "sarvam_mla", _MOE, {**_MOE, "first_k_dense_replace": 0},
     "model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.experts.4.up_proj.weight", 0),
    *(
        (name, "", {"text_config": first} if inner else first, {"text_config": second} if inner else second,
         f"{root}layers.2.self_attn.v_proj.weight", f"{root}layers.5.mlp.down_proj.weight", 1)
        for name, root, inner in (
            ("Gemma4ForCausalLM", "model.", False), ("Gemma4TextModel", "", False),
            ("Gemma4UnifiedForCausalLM", "model.", False), ("Gemma4ForConditionalGeneration", "model.language_model.", True),
            ("Gemma4UnifiedForConditionalGeneration", "model.language_model.", True),
        )
        for first, second in ((_SHARED, {**_EXPERTS, "enable_moe_block": "Unified" not in name}),)
    ),
]  # fmt: skip


def _refusal(config: Config, shapes: dict[str, tuple[int, ...]]) -> str:
    with pytest.raises(CkptconvError, match=r"names are not|does not match|are missing") as error:
        require_fit(config, shapes, Path("run"), [])
    return f"{error.value.found}"


@pytest.mark.parametrize("form", FORMS, ids=lambda form: ":".join(filter(None, (form[1], form[0]))))
def test_a_model_of_any_form_passes_and_its_damage_does_not(
    form: tuple[str, str, Config, Config, str, str, int],
) -> None:
    architecture, model_type, first, second, lost, cut, dim = form
    notes: list[str] = []
    require_fit(*built(architecture, model_type, **second), Path("run"), notes)
    config, shapes = built(architecture, model_type, **first)
    require_fit(config, shapes, Path("run"), notes)
    assert notes == []
    assert lost in _refusal(config, {name: shape for name, shape in shapes.items() if name != lost})
    shape = list(shapes[cut])
    shape[dim] += 1
    assert cut in _refusal(config, {**shapes, cut: tuple(shape)})


def test_layers_of_gemma_4_that_share_keys_may_have_their_own_in_a_file() -> None:
    config, shapes = built("Gemma4ForCausalLM", **_SHARED)
    names = [f"model.layers.5.self_attn.{part}.weight" for part in ("k_proj", "k_norm", "v_proj")]
    assert not shapes.keys() & set(names)
    of_the_same_kind = {name: shapes[name.replace(".5.", ".0.")] for name in names}
    require_fit(config, shapes | of_the_same_kind, Path("run"), [])
    assert names[0] in _refusal(config, shapes | {**of_the_same_kind, names[0]: (56, 48)})


def test_values_that_equal_the_keys_are_not_stored() -> None:
    config, shapes = built("Gemma4ForCausalLM", **_EXPERTS)
    name = "model.layers.2.self_attn.v_proj.weight"
    assert name in _refusal(config, {**shapes, name: (28, 48)})


def test_the_published_gemma_4_states_the_width_of_full_attention_by_a_key_of_its_own() -> None:
    config, shapes = built("Gemma4ForCausalLM", **_EXPERTS)
    published = {key: value for key, value in config.items() if key != "per_layer_config"}
    published |= {"global_head_dim": 28, "num_global_key_value_heads": 1}
    require_fit(published, shapes, Path("run"), [])
    assert "layers.2.self_attn" in _refusal({**published, "global_head_dim": 20}, shapes)


def test_a_layers_number_may_have_a_zero_before_it() -> None:
    config, shapes = built("Gemma4ForCausalLM", **_EXPERTS)
    assert list(config["per_layer_config"]) == ["02", "05", "08", "11"]
    require_fit(config, shapes, Path("run"), [])


def test_a_former_name_of_a_kind_of_layer_counts_as_its_name_of_today() -> None:
    config, shapes = built("Qwen3NextForCausalLM", num_hidden_layers=4, num_experts=4, num_experts_per_tok=2)
    former = ["mamba" if kind == "linear_attention" else "attention" for kind in config["layer_types"]]
    require_fit({**config, "layer_types": former}, shapes, Path("run"), [])
    lost = "model.layers.0.linear_attn.A_log"
    fewer = {name: shape for name, shape in shapes.items() if name != lost}
    assert lost in _refusal({**config, "layer_types": former}, fewer)


def test_no_model_type_is_left_out() -> None:
    for kind in (
        "exaone",
        "longt5",
        "minimax_m3_vl",
        "nllb-moe",
        "rf_detr",
        "sapiens2",
        "sarvam_moe",
        "umt5",
    ):
        assert skeleton.skeleton_of({"model_type": kind, "architectures": [_CLASS[kind]]}) is not None


_CLASS = {
    "exaone": "LlamaForCausalLM", "longt5": "LongT5Model", "minimax_m3_vl": "MiniMaxM3VLForCausalLM",
    "nllb-moe": "NllbMoeModel", "rf_detr": "RfDetrModel", "sapiens2": "Sapiens2Model", "sarvam_moe": "Glm4MoeForCausalLM",
    "umt5": "UMT5Model",
}  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "part", "other"),
    [
        ("UperNetForSemanticSegmentation", "backbone_config",
         {"model_type": "swin", "out_features": ["stage1", "stage2", "stage3", "stage4"]}),
        ("LlavaForConditionalGeneration", "vision_config", {"model_type": "siglip_vision_model"}),
    ],
)  # fmt: skip
def test_a_part_that_may_be_any_models_is_not_measured_by_the_default_ones_list(
    architecture: str, part: str, other: Config
) -> None:
    notes: list[str] = []
    require_fit(*built(architecture), Path("run"), notes)
    assert notes == []
    require_fit(*built(architecture, **{part: other}), Path("run"), notes)
    (note,) = notes
    assert f"takes any model as {part}" in note
    assert other["model_type"] in note


@pytest.mark.parametrize("widths", [[80, 50], [96, 32]])
def test_experts_of_text_and_vision_have_the_widths_that_a_list_states(widths: list[int]) -> None:
    text = {"num_hidden_layers": 2, "moe_intermediate_size": widths}
    config, shapes = built("Ernie4_5_VLMoeForConditionalGeneration", text_config=text)
    require_fit(config, shapes, Path("run"), [])
    lost = next(name for name in shapes if "layers.1." in name and "shared_experts" in name)
    assert lost in _refusal(config, {name: shape for name, shape in shapes.items() if name != lost})
