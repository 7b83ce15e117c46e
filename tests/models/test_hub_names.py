"""to_hub against transformers itself: what save_pretrained writes is the truth, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.meta_models import REFUSED
from support.more_models import ALL, built

from ckptconv.errors import CkptconvError
from ckptconv.models import installed
from ckptconv.models.hub_names import strip_wrappers, to_hub
from ckptconv.models.table import load
from ckptconv.tensors.view import View, stored


@pytest.mark.parametrize("model_type", ALL)
def test_equal_to_save_pretrained(model_type: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    model, state, config = built(model_type, tmp_path)
    wanted = load_file(tmp_path / "model.safetensors")
    found = to_hub(state, config).tensors
    assert set(wanted) <= set(found)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    ignored = set(model._keys_to_ignore_on_save or ())
    for name in set(found) - set(wanted):
        assert set(found[name].sources) <= tied | ignored, name
    for name, value in wanted.items():
        assert found[name].shape == value.shape, name
        assert np.array_equal(found[name].value.reshape(value.shape), value), name


@pytest.mark.parametrize(
    "model_type", ["qwen3_moe", "gpt_oss", "qwen2_5_vl", "llava", "gemma3", "llava_next"]
)
def test_a_checkpoint_in_hub_form_stays_as_it_is(model_type: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    _, _, config = built(model_type, tmp_path)
    hub = load_file(tmp_path / "model.safetensors")
    found = to_hub(hub, config)
    assert not found.rules
    assert {name: named.shape for name, named in found.tensors.items()} == {
        n: v.shape for n, v in hub.items()
    }


def _entries_with_converters() -> list[str]:
    rules = load()["rules"]
    full = {name: rules[found] if isinstance(found, str) else found for name, found in rules.items()}
    return [name for name, found in full.items() if any("ops" in rule for rule in found)]


# Operations of one family each that are not copies: they pad, dequantise or join loops.
_REFUSED = {"Inkling2UnpadVocab", "Inkling2LoopDequantizeExperts", "Inkling2LoopMergeMessageQueries"}


def _operations(entry: str) -> set[str]:
    rules = load()["rules"]
    found = rules[entry]
    found = rules[found] if isinstance(found, str) else found
    return {name for rule in found for name, _ in rule.get("ops", ())}


@pytest.mark.parametrize(
    "entry", [name for name in _entries_with_converters() if _operations(name) & _REFUSED]
)
def test_an_operation_that_is_no_copy_is_refused_by_its_name(entry: str) -> None:
    names = (
        "lm_head.weight",
        "layers.3.mlp.experts.gate_up_proj",
        "layers.3.mlp.experts.down_proj",
        "loop_queries",
    )
    tensors = {name: np.zeros((4, 6, 2), np.float32) for name in names}
    with pytest.raises(CkptconvError, match="unknown operation: Inkling2"):
        to_hub(tensors, {"model_type": entry, "architectures": ["-"]})


def _sample(pattern: str) -> str:
    """A name that a pattern of the table matches, where the pattern is plain text."""
    plain = pattern.replace("\\.", ".").removeprefix("^")
    return plain + "weight" if plain.endswith(".") else plain


@pytest.mark.parametrize(
    "entry", [name for name in _entries_with_converters() if not _operations(name) & _REFUSED]
)
def test_every_converter_does_what_transformers_does(entry: str) -> None:
    """Each entry's converters on made-up tensors, through transformers' own code and through ours."""
    torch = pytest.importorskip("torch")
    from transformers import conversion_mapping
    from transformers.core_model_loading import PrefixChange, WeightConverter, revert_weight_conversion

    _same_version()
    transforms = conversion_mapping.get_checkpoint_conversion_mapping(entry)
    transforms = [one for one in transforms if not isinstance(one, PrefixChange)]
    state: dict[str, Any] = {}
    for converter in (one for one in transforms if isinstance(one, WeightConverter)):
        for pattern in converter.reverse_transform().source_patterns:
            name = _sample(pattern)
            flat = "bias" in name and "e_score" not in name
            shape = (
                (24,)
                if flat
                else (12, 24, 10)
                if "expert" in pattern or "shared_w13" in pattern
                else (24, 10)
            )
            shape = shape if name.count("conv1d") == 0 else (24, 1, 4)
            state["layers.3." * (not name.startswith("layers")) + name.removeprefix(".")] = torch.randn(shape)
    config = {"model_type": entry, "architectures": ["-"], "num_attention_heads": 3, "split_ngram_parts": 4}
    config["vision_config"] = {"num_attention_heads": 2}
    stub = SimpleNamespace(**config | {"vision_config": SimpleNamespace(**config["vision_config"])})
    stub.get_text_config = lambda: stub
    params = SimpleNamespace(get_parameter=lambda name: state[name])
    model = SimpleNamespace(_weight_conversions=transforms, config=stub, get_parameter=params.get_parameter)
    wanted = {name: value.numpy() for name, value in revert_weight_conversion(model, dict(state)).items()}
    found = to_hub({name: value.numpy() for name, value in state.items()}, config).tensors
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.array_equal(found[name].value.reshape(found[name].shape), value), name


def _same_version() -> None:
    transformers = pytest.importorskip("transformers")
    if transformers.__version__ != load()["transformers"]:
        pytest.skip(f"the table is of transformers {load()['transformers']}")


def test_the_shipped_rules_are_those_of_the_installed_transformers() -> None:
    _same_version()
    from tools import make_table

    assert json.loads(json.dumps(installed.make_rules())) == load()["rules"]
    assert make_table.make_heads() == load()["heads"]


@pytest.mark.skipif(not os.environ.get("CKPTCONV_SLOW"), reason="builds 1,900 model classes: CKPTCONV_SLOW=1")
def test_names_and_shapes_of_every_model_class() -> None:
    """Every class that can be built, with its default config on the meta device: names and shapes as transformers'."""
    _same_version()
    from transformers.core_model_loading import revert_weight_conversion

    from tools import make_table

    checked = 0
    for cls in make_table._model_classes():
        try:
            model = make_table._on_meta(cls)
        except Exception:
            continue
        model.config.architectures = [cls.__name__]
        wanted = revert_weight_conversion(model, dict(model.state_dict()))
        views = {name: stored("f", 0, tuple(t.shape), "float32") for name, t in model.state_dict().items()}
        config = json.loads(model.config.to_json_string())
        if cls.__name__ in REFUSED:
            with pytest.raises(CkptconvError, match=f"unknown (operation|kind): {REFUSED[cls.__name__]}"):
                to_hub(views, config)
            continue
        found = to_hub(views, config).tensors
        assert {n: named.shape for n, named in found.items()} == {
            n: tuple(t.shape) for n, t in wanted.items()
        }, cls
        checked += 1
    assert checked > 1700


DEEPSEEK = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]}


def _fused(layers: int = 2, experts: int = 3) -> dict[str, View]:
    names = [f"model.layers.{i}.mlp.experts." for i in range(layers)]
    up = {f"{name}gate_up_proj": stored("f", 0, (experts, 10, 7), "bfloat16") for name in names}
    return up | {f"{name}down_proj": stored("f", 0, (experts, 7, 5), "bfloat16") for name in names}


def test_rules_are_told_in_short() -> None:
    found = to_hub(_fused(), DEEPSEEK)
    assert sorted(found.rules) == [
        "mlp.experts.down_proj -> 2 x mlp.experts.{expert}.down_proj.weight",
        "mlp.experts.gate_up_proj -> 2 x mlp.experts.{expert}.{gate,up}_proj.weight",
    ]
    one = found.tensors["model.layers.1.mlp.experts.2.up_proj.weight"]
    assert (one.shape, one.sources) == ((5, 7), ("model.layers.1.mlp.experts.gate_up_proj",))
    assert one.value.chunks[0].start == (2 * 70 + 35) * 2


def test_a_model_type_without_entries_keeps_its_names() -> None:
    found = to_hub({"model.layers.0.mlp.up_proj.weight": np.ones((2, 3))}, {"model_type": "llama"})
    assert list(found.tensors) == ["model.layers.0.mlp.up_proj.weight"]
    assert found.rules == []


def test_a_repositorys_own_code_keeps_its_names() -> None:
    own = DEEPSEEK | {
        "architectures": ["Other"],
        "auto_map": {"AutoModelForCausalLM": "modeling_other.Other"},
    }
    assert list(to_hub(_fused(), own).tensors) == list(_fused())
    assert len(to_hub(_fused(), own | {"auto_map": {}}).tensors) == 2 * 3 * 3


@pytest.mark.parametrize(
    "odd",
    [
        {"architectures": [3]},
        {"architectures": "LlavaModel"},
        {"architectures": []},
        {"auto_map": ["a"]},
        {"architectures": ["LlavaForConditionalGeneration"], "text_config": {"model_type": ["a"]}},
        {"architectures": ["LlavaForConditionalGeneration"], "text_config": 3},
        {"architectures": ["DetrModel"], "backbone_config": {"model_type": {}}},
        {"model_type": ["a"]},
    ],
)
def test_a_config_of_odd_values_changes_nothing(odd: dict[str, Any]) -> None:
    assert list(to_hub({"a.weight": np.ones(2)}, {"model_type": "-"} | odd).tensors) == ["a.weight"]


def test_half_of_a_fused_rule_is_an_error_that_names_it() -> None:
    config = {"model_type": "radio", "architectures": ["RadioModel"]}
    names = [f"encoder.layer.0.attention.{part}_proj.weight" for part in "qv"]
    with pytest.raises(CkptconvError, match="some pieces needed") as caught:
        to_hub({name: np.ones((4, 4)) for name in names}, config)
    assert "attention.k_proj" in str(caught.value.wanted)
    assert names[0] in str(caught.value.where)


def test_an_unknown_operation_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptconv.models import table

    rule = {"from": ["a"], "patterns": ["a"], "to": ["b"], "ops": [["Fold", {}]]}
    data = {**table.load(), "rules": {"strange": [rule]}}
    monkeypatch.setattr(table, "load", lambda: data)
    with pytest.raises(CkptconvError, match=r"strange.*Fold"):
        to_hub({"a": np.ones(2)}, {"model_type": "strange"})


def test_two_tensors_of_one_hub_name_are_an_error() -> None:
    tensors = _fused(1) | {
        "model.layers.0.mlp.experts.0.down_proj.weight": stored("f", 0, (7, 5), "bfloat16")
    }
    with pytest.raises(CkptconvError, match="same name on the Hub"):
        to_hub(tensors, DEEPSEEK)


@pytest.mark.parametrize(
    ("wrapped", "plain"),
    [
        ("_orig_mod.model.norm.weight", "model.norm.weight"),
        ("_fsdp_wrapped_module.model._fsdp_wrapped_module.layers.0.w", "model.layers.0.w"),
        ("model.layers.0._checkpoint_wrapped_module.mlp.w", "model.layers.0.mlp.w"),
        ("module.module.model.norm.weight", "model.norm.weight"),
        ("module._orig_mod.model.norm.weight", "model.norm.weight"),
        ("model.module.w", "model.module.w"),
    ],
)
def test_wrapper_prefixes_come_off(wrapped: str, plain: str) -> None:
    assert list(strip_wrappers({wrapped: 1})) == [plain]


def test_a_module_prefix_on_some_names_only_is_part_of_the_name() -> None:
    assert list(strip_wrappers({"module.a": 1, "b": 2})) == ["module.a", "b"]


def test_names_that_meet_without_wrappers_are_an_error() -> None:
    with pytest.raises(CkptconvError, match="same name"):
        strip_wrappers({"_orig_mod.a": 1, "a": 2})


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = (
        "import sys; from ckptconv.models.hub_names import to_hub; to_hub({}, {'model_type': 'qwen3_moe'});"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
