"""Layer reads: which other software would misread a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from support.helpers import cli, edit_json

import ckptconv
from ckptconv.commands.verify.records import Layer
from ckptconv.models.readers import misreads

Made = Callable[[str], Path]


def _reads(folder: Path) -> Layer:
    layer = ckptconv.verify(folder).layer("reads")
    assert layer is not None
    return layer


def test_a_folder_that_transformers_4_misreads_in_silence_gets_no_check_mark(
    made: Made, tmp_path: Path
) -> None:
    ckptconv.merge(made("fsdp2_w4"), tmp_path / "out", keep_config=True)
    ran = cli("verify", tmp_path / "out", columns=250)
    assert ran.code == 0
    assert "reads  –  transformers 4.57.6 would misread this folder and say nothing" in ran.out
    assert "takes its class's defaults, since config.json lacks rope_theta" in ran.out
    last = ran.out.splitlines()[-1]
    assert last.startswith("! ")
    assert "but transformers 4.57.6 would misread it" in last
    assert "does not load the tokenizer: tokenizer_class is TokenizersBackend" in ran.out


def test_what_merge_writes_by_default_is_misread_by_none(made: Made, tmp_path: Path) -> None:
    ckptconv.merge(made("fsdp2_w4"), tmp_path / "out")
    layer = _reads(tmp_path / "out")
    assert (layer.ok, layer.found, layer.notes) == (True, "no known reader silently misreads it", ())
    assert cli("verify", tmp_path / "out", columns=250).out.splitlines()[-1].startswith("✓ ")


def test_the_readers_are_in_the_json_and_in_the_summary(made: Made, tmp_path: Path) -> None:
    ckptconv.merge(made("qwen3_moe_w4"), tmp_path / "out", keep_config=True)
    data = json.loads(cli("verify", tmp_path / "out", "--json").out)
    assert (data["ok"], data["misread_by"]) == (True, ["transformers 4.57.6"])
    (layer,) = [layer for layer in data["layers"] if layer["name"] == "reads"]
    assert "num_experts" in " ".join(layer["notes"])


def test_two_values_for_one_thing_are_read_differently(made: Made, tmp_path: Path) -> None:
    ckptconv.merge(made("fsdp2_w4"), tmp_path / "out")
    edit_json(tmp_path / "out" / "config.json", rope_theta=12345.0)
    layer = _reads(tmp_path / "out")
    assert layer.ok is None
    assert "reads another value than transformers 5: rope_theta 12345.0" in layer.notes[0]


def test_a_trainers_checkpoint_has_no_such_layer(made: Made) -> None:
    assert ckptconv.verify(made("fsdp2_w4")).layer("reads") is None


def test_each_rule_finds_what_it_is_for() -> None:
    """A folder for each rule, and the reader that it names; the same folder without the fault is silent."""
    siglip = {"model_type": "siglip_vision_model"}
    gemma3 = {
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "vision_config": siglip,
        "text_config": {"model_type": "gemma3_text"},
    }  # fmt: skip
    tower = "vision_tower.{}encoder.layers.0.mlp.fc1.weight"
    yarn = {"type": "yarn", "rope_type": "yarn", "factor": 40.0, "rope_theta": 10000.0}
    deepseek = {
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "scoring_func": "sigmoid",
        "rope_theta": 10000.0,
        "rope_scaling": yarn,
    }
    bias = {"model.layers.3.mlp.gate.e_score_correction_bias": (8,)}
    softmax = {
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "topk_method": "noaux_tc",
        "rope_theta": 10000.0,
        "rope_scaling": yarn,
    }
    vl = {
        "model_type": "qwen3_vl_moe", "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "text_config": {"model_type": "qwen3_vl_moe_text", "hidden_size": 32, "num_experts": 4, "num_local_experts": 4},
        "vision_config": {"model_type": "qwen3_vl_moe_vision"},
    }  # fmt: skip
    experts = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    next_ = {"model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"]}
    cases = [
        (
            gemma3,
            {tower.format(""): (4, 4)},
            {tower.format("vision_model."): (4, 4)},
            {"transformers 4.57.6", "vLLM"},
        ),
        (vl, {experts: (4, 24, 32)}, {experts: (4, 32, 24)}, {"transformers 4.57.6", "vLLM", "SGLang"}),
        (deepseek, bias, None, {"vLLM", "SGLang"}),
        (softmax, bias, None, {"vLLM", "llama.cpp"}),
        (
            next_,
            {"model.norm.weight": (4,)},
            {"model.norm.weight": (4,), "mtp.norm.weight": (4,)},
            {"llama.cpp"},
        ),
    ]
    for config, wrong, right, readers in cases:
        assert {each.reader for each in misreads(config, wrong)} == readers, config
        whole = config if right is not None else config | softmax | deepseek
        assert misreads(whole, right or wrong) == [], config
    new = {"model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"]}
    (found,) = misreads(new, {})
    assert (found.silent, found.what) == (False, "does not have the model type qwen3_5")


def test_gemma_2_has_no_soft_cap_in_transformers_4_as_it_is_loaded_there() -> None:
    config = {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 30.0}
    said = "computes attention without attn_logit_softcapping 30.0"
    (found,) = [each for each in misreads(config, {}) if each.what.startswith(said)]
    assert (found.reader, found.silent, found.by_merge) == ("transformers 4.57.6", True, False)
    assert not [
        each for each in misreads(config | {"attn_logit_softcapping": None}, {}) if said[:30] in each.what
    ]


def _llama(**rope: object) -> dict[str, object]:
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "float32"} | rope


def _said(config: dict[str, object], reader: str) -> list[str]:
    return [each.what for each in misreads(config, {}) if each.reader == reader]


def test_ctranslate2_scales_no_positions_as_llama_3_does() -> None:
    scaled = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    found = _said(_llama(rope_theta=5e5, rope_scaling=scaled), "ctranslate2")
    assert [each.split()[0] for each in found] == ["scales", "takes"]
    assert len(_said(_llama(rope_theta=1e4, rope_scaling=scaled), "ctranslate2")) == 1
    assert _said(_llama(rope_theta=5e5), "ctranslate2") == []


def test_a_reader_that_misreads_every_folder_of_a_model_is_named_and_costs_no_check_mark() -> None:
    scaled = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    found = misreads(_llama(rope_theta=1e4, rope_scaling=scaled), {})
    assert [(each.reader, each.silent, each.any_folder) for each in found] == [("ctranslate2", True, True)]


def test_llama_cpp_counts_on_the_layers_of_the_published_models() -> None:
    sliding, full = "sliding_attention", "full_attention"
    config = {"model_type": "cohere2", "architectures": ["Cohere2ForCausalLM"], "rotary_pct": 1.0}
    assert _said(config | {"layer_types": [sliding, sliding, sliding, full]}, "llama.cpp") == []
    (found,) = _said(config | {"layer_types": [sliding, full]}, "llama.cpp")
    assert found.startswith("takes every fourth layer for one with full attention")


def test_llama_cpp_rounds_the_range_that_gpt_oss_does_not() -> None:
    yarn = {"rope_type": "yarn", "factor": 32.0, "truncate": False}
    config = {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "rope_theta": 150000.0}
    (found,) = _said(config | {"rope_scaling": yarn}, "llama.cpp")
    assert found.endswith("though config.json says truncate false")
    assert _said(config | {"rope_scaling": yarn | {"truncate": True}}, "llama.cpp") == []


def test_ctranslate2_has_no_scaling_for_gemma_3s_full_attention() -> None:
    rope = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}
    text = {
        "model_type": "gemma3_text",
        "rope_parameters": rope,
        "rope_theta": 1e6,
        "rope_scaling": rope["full_attention"],
    }
    config = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": text,
    }
    (found,) = _said(config, "ctranslate2")
    assert found == "does not scale the positions of layers with full attention (rope_type linear)"


def test_llama_cpp_takes_10000_where_its_converter_writes_no_rotary_base() -> None:
    config = {"model_type": "stablelm", "architectures": ["StableLmForCausalLM"]}
    said = ["takes the rotary base 10000, since its converter writes none (config.json has 50000)"]
    assert _said(config | {"rope_theta": 50000.0}, "llama.cpp") == said
    assert (
        _said(config | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}}, "llama.cpp") == said
    )
    assert _said(config | {"rope_theta": 10000}, "llama.cpp") == []
    neox = {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "rotary_emb_base": 1000000}
    assert _said(neox, "llama.cpp")[0].endswith("(config.json has 1e+06)")


def test_llama_cpp_has_one_way_to_weigh_experts_per_class() -> None:
    for name, kind, switch in (("Qwen2Moe", "qwen2_moe", True), ("Qwen3Moe", "qwen3_moe", False)):
        config = {"model_type": kind, "architectures": [f"{name}ForCausalLM"], "num_experts": 4}
        (found,) = _said(config | {"norm_topk_prob": switch}, "llama.cpp")
        assert found.endswith(f"though config.json says norm_topk_prob {str(switch).lower()}")
        assert _said(config | {"norm_topk_prob": not switch}, "llama.cpp") == []


def test_engines_turn_the_positions_of_deepseek_in_one_way() -> None:
    yarn = {"type": "yarn", "rope_type": "yarn", "factor": 40.0}
    config = {
        "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "scoring_func": "sigmoid",
        "topk_method": "noaux_tc", "rope_theta": 10000.0, "rope_scaling": yarn,
    }  # fmt: skip
    assert [_said(config, reader) for reader in ("vLLM", "llama.cpp", "vLLM on a CPU")] == [[], [], []]
    half = config | {"rope_interleave": False}
    assert [len(_said(half, reader)) for reader in ("vLLM", "llama.cpp")] == [1, 1]
    (found,) = _said(config | {"rope_scaling": None}, "vLLM on a CPU")
    assert "where enforce_eager is set" in found


def test_a_bidirectional_window_that_transformers_4_halved_is_halved_again_by_both() -> None:
    config = {
        "model_type": "gemma3_text", "architectures": ["Gemma3TextModel"], "use_bidirectional_attention": True,
        "rope_theta": 1e6, "rope_local_base_freq": 1e4,
    }  # fmt: skip
    found = [each for each in misreads(config | {"sliding_window": 257}, {}) if "window" in each.what]
    assert [each.reader for each in found] == ["transformers 4.57.6", "transformers 5.24.0"]
    assert all(each.what.startswith("takes a window of 129 of sliding_window 257") for each in found)
    assert not [each for each in misreads(config | {"sliding_window": 512}, {}) if "window" in each.what]
    causal = config | {"use_bidirectional_attention": False, "sliding_window": 257}
    assert not [each for each in misreads(causal, {}) if "window" in each.what]


def test_ctranslate2_takes_the_padding_token_of_m2m_100_for_granted() -> None:
    config = {"model_type": "m2m_100", "architectures": ["M2M100ForConditionalGeneration"]}
    (found,) = _said(config | {"pad_token_id": 0}, "ctranslate2")
    assert found.endswith("(pad_token_id 0)")
    assert _said(config, "ctranslate2") == _said(config | {"pad_token_id": 1}, "ctranslate2") == []


def test_transformers_4_does_not_miss_the_head_dim_that_engines_want() -> None:
    for name, kind, reader in (("FalconH1", "falcon_h1", "llama.cpp"), ("Glm4Moe", "glm4_moe", "vLLM")):
        config = {
            "model_type": kind, "architectures": [f"{name}ForCausalLM"], "hidden_size": 64, "num_attention_heads": 4,
            "torch_dtype": "float32", "rope_theta": 1e5,
        }  # fmt: skip
        assert [(each.reader, each.silent) for each in misreads(config, {})] == [(reader, False)]
        assert misreads(config | {"head_dim": 16}, {}) == []
