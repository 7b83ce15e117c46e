"""Megatron families by composition, in slime's names, by source, and their adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - numpy learns bfloat16
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.helpers import cli, tensors, unpacked

from ckptconv import CkptconvError, inspect, merge
from ckptconv.backends import open_checkpoint
from ckptconv.commands.planning import plan_for
from ckptconv.models import lora, megatron
from ckptconv.models.hub_names import Renamed
from ckptconv.models.lora.place import place
from ckptconv.models.megatron.tables import FAMILIES
from ckptconv.models.translate import to_trained
from ckptconv.plan import Options
from ckptconv.read.reader import read_numpy
from ckptconv.tensors.view import View, stored

Arrays = dict[str, np.ndarray[Any, Any]]


def home(case: str) -> Path:
    return unpacked(f"megatron/{case}")


def config(case: str) -> dict[str, Any]:
    return json.loads((home(case) / "hf" / "config.json").read_text())


def hub(case: str) -> Arrays:
    return load_file(home(case) / "hf" / "model.safetensors")


def converted(stored: Arrays, values: dict[str, Any]) -> Arrays:
    made = megatron.to_hub(stored, values).tensors
    return {name: one.value.reshape(one.shape) for name, one in made.items()}


def same(found: Arrays, wanted: Arrays) -> None:
    assert sorted(found) == sorted(wanted)
    assert [n for n in found if found[n].tobytes() != np.ascontiguousarray(wanted[n]).tobytes()] == []


# --- slime's names, by slime's own conversion (slime/backends/megatron_utils/megatron_to_hf)


def test_slimes_glm4_has_its_norms_in_the_layer() -> None:
    views = {name: one.view for name, one in open_checkpoint(home("glm4_mcb") / "run").tensors.items()}
    moved = {
        name.replace("self_attention.post_self", "post_self").replace("mlp.post_mlp", "post_mlp"): view
        for name, view in views.items()
    }
    assert moved.keys() != views.keys()
    assert megatron.to_hub(moved, config("glm4_mcb")).tensors.keys() == hub("glm4_mcb").keys()


def slimes_qwen3_next(model: Arrays, values: dict[str, Any]) -> Arrays:
    """As slime holds them: the Hub's delta net inside, gates after the queries, the halves of eh_proj exchanged."""
    groups, dim = values["num_key_value_heads"], values["head_dim"]
    queries = values["num_attention_heads"] // groups
    family = FAMILIES["qwen3_next"].family(values)
    native = next(one for mark, one in family.variants if mark.text.endswith("in_proj.weight"))
    common = {n: t for n, t in model.items() if ".linear_attn." not in n and "input_layernorm" not in n}
    made = to_trained(native, common, values)
    for name in [name for name in made if name.endswith("linear_qkv.weight")]:
        rows = made[name].reshape(groups, 2 * queries + 2, dim, -1)
        pairs = rows[:, : 2 * queries].reshape(groups, queries, 2, dim, -1)
        last = [pairs[:, :, 0], pairs[:, :, 1], rows[:, 2 * queries :]]
        made[name] = np.concatenate(last, 1).reshape(made[name].shape)
    made["mtp.layers.0.eh_proj.weight"] = np.concatenate(
        np.split(made["mtp.layers.0.eh_proj.weight"], 2, 1)[::-1], 1
    )
    for name, tensor in model.items():
        layer = name.replace("model.layers.", "decoder.layers.").replace(
            "linear_attn.", "self_attention.linear_attn."
        )
        if ".linear_attn." in name:
            made[layer] = tensor
        elif name.startswith("model.layers.") and name.endswith("input_layernorm.weight"):
            linear = any(
                n.startswith(name.removesuffix("input_layernorm.weight") + "linear_attn.") for n in model
            )
            made[layer.replace("input", "self_attention.input" if linear else "input")] = tensor
        elif name.startswith("mtp.layers.") and name.endswith("input_layernorm.weight"):
            made["mtp.layers.0.transformer_layer.input_layernorm.weight"] = tensor
    return made


def test_slimes_qwen3_next_is_read() -> None:
    model, values = hub("qwen3_next_mtp_mcb"), config("qwen3_next_mtp_mcb")
    stored = slimes_qwen3_next(model, values)
    made = megatron.to_hub(stored, values)
    same({name: one.value.reshape(one.shape) for name, one in made.tensors.items()}, model)
    assert any("slime exchanges them" in note for note in made.notes)


def test_slimes_indexer_has_its_halves_turned() -> None:
    """Each head's halves of wq_b, wk and k_norm; in names of slime's own attention."""
    model, values = hub("deepseek_v32_mcb"), config("deepseek_v32_mcb")
    half, size = values["index_head_dim"] // 2, values["index_head_dim"]
    stored = {
        n: t for n, t in to_trained(megatron.family_of(values), model, values).items() if "indexer" not in n
    }
    for name, tensor in model.items():
        if ".indexer." not in name:
            continue
        trained = name.replace("model.layers.", "decoder.layers.").replace(
            "self_attn.indexer.", "self_attention."
        )
        if "weights_proj" not in name:
            heads = tensor.reshape(-1, size, *tensor.shape[1:])
            tensor = np.concatenate([heads[:, half:], heads[:, :half]], 1).reshape(tensor.shape)
        stored[trained] = tensor
    same(converted(stored, values), model)


# --- composition


@pytest.mark.parametrize(
    ("inside", "key"), [("qwen2", "llm_config"), ("qwen3_moe", "llm_config"), ("internlm2", "llm_config")]
)
def test_the_nested_config_chooses_the_language_models_table(inside: str, key: str) -> None:
    table = megatron.family_of({"model_type": "internvl_chat", key: {"model_type": inside}})
    own = megatron.family_of({"model_type": inside})
    assert {rule.hub.text for rule in own.rules if rule.hub.text.startswith("model.")} <= {
        rule.hub.text.removeprefix("language_model.") for rule in table.rules
    }


def test_an_unknown_language_model_inside_is_named() -> None:
    with pytest.raises(
        CkptconvError, match="no table for the language model 'nobody' inside InternVL"
    ) as error:
        megatron.family_of({"model_type": "internvl_chat", "llm_config": {"model_type": "nobody"}})
    assert "qwen3_moe" in str(error.value.wanted)


def test_an_adapters_tensor_inside_a_tower_is_refused() -> None:
    views = {name: one.view for name, one in open_checkpoint(home("internvl_mcb") / "run").tensors.items()}
    name = next(
        name for name in views if name.startswith("visual.vision_tower.") and name.endswith(".weight")
    )
    views[name.replace(".weight", ".lora_A.default.weight")] = views[name]
    with pytest.raises(CkptconvError, match=r"has no entry for the stored tensor .*lora_A"):
        megatron.to_hub(views, config("internvl_mcb"))


LOADED = (
    "glm4v_mcb",
    "glm4v_moe_mcb",
    "llama4_mcb",
    "minicpmv4_6_mcb",
    "internvl_mcb",
    "hy_v3_mcb",
    "deepseek_v32_mcb",
)


@pytest.mark.parametrize("case", LOADED)
def test_transformers_finds_every_tensor(case: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    result = merge(home(case) / "run", tmp_path / "out", config=home(case) / "hf")
    kind = getattr(transformers, result.plan.config["architectures"][0])
    _, loading = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values()), loading


_AT_THE_TOP = "tie_word_embeddings is set to false at the top of config.json"
TIES = (
    ("qwen3_5_mcb", None, False, _AT_THE_TOP),
    (
        "glm4v_mcb",
        False,
        True,
        "although the config ties them: both are written, tie_word_embeddings is set to false",
    ),
    ("glm4v_mcb", None, False, _AT_THE_TOP),
    ("internvl_mcb", None, False, _AT_THE_TOP),
)


@pytest.mark.parametrize(("case", "top", "inside", "noted"), TIES)
def test_a_head_of_its_own_survives_whatever_part_of_the_config_speaks_of_ties(
    case: str, top: bool | None, inside: bool, noted: str, tmp_path: Path
) -> None:
    """Classes of transformers read the top of config.json, the nested config, or either."""
    transformers = pytest.importorskip("transformers")
    hf = Path(shutil.copytree(home(case) / "hf", tmp_path / "hf"))
    values = config(case)
    del values["tie_word_embeddings"]
    values |= {} if top is None else {"tie_word_embeddings": top}
    values["text_config"]["tie_word_embeddings"] = inside
    (hf / "config.json").write_text(json.dumps(values))
    result = merge(home(case) / "run", tmp_path / "out", config=hf)
    kind = getattr(transformers, result.plan.config["architectures"][0])
    loaded = kind.from_pretrained(tmp_path / "out").get_output_embeddings().weight.detach().float().numpy()
    head = next(tensor for name, tensor in hub(case).items() if name.endswith("lm_head.weight"))
    assert np.array_equal(loaded, head.astype(np.float32))
    assert any(noted in note for note in result.plan.notes), result.plan.notes


@pytest.mark.parametrize("top", [None, True])
def test_a_tie_that_only_the_nested_config_states_is_written_at_the_top(
    top: bool | None, tmp_path: Path
) -> None:
    """Qwen3.5's class takes an untied head where the top states nothing, and would make up a new one."""
    transformers = pytest.importorskip("transformers")
    case, hf = "qwen3_5_mcb", Path(shutil.copytree(home("qwen3_5_mcb") / "hf", tmp_path / "hf"))
    values = config(case)
    del values["tie_word_embeddings"]
    values |= {} if top is None else {"tie_word_embeddings": top}
    values["text_config"]["tie_word_embeddings"] = True
    (hf / "config.json").write_text(json.dumps(values))
    checkpoint = open_checkpoint(home(case) / "run")
    kept = {name: one for name, one in checkpoint.tensors.items() if "output_layer" not in name}
    plan = plan_for(replace(checkpoint, tensors=kept, trainer=()), Options(), hf)  # those of an untied model
    assert plan.config is not None
    assert plan.config["tie_word_embeddings"] is True
    assert any("at the top of config.json" in note for note in plan.notes) == (top is None)
    made = transformers.AutoConfig.for_model(
        "qwen3_5", **{k: v for k, v in plan.config.items() if k != "model_type"}
    )
    assert made.tie_word_embeddings


@pytest.mark.parametrize("case", ["bailing_moe_mcb", "hy_v3_mcb", "glm_moe_dsa_mcb", "kimi_k25_mcb"])
def test_a_routers_bias_stays_float32_whatever_the_hub_calls_it(case: str, tmp_path: Path) -> None:
    """Rounded to bfloat16, it would choose other experts."""
    merge(home(case) / "run", tmp_path / "out", config=home(case) / "hf")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        n: t.dtype for n, t in hub(case).items()
    }
    assert sum(tensor.dtype == np.float32 for tensor in found.values()) == 1


# --- the mark


def test_a_table_by_source_is_reported_by_merge_and_inspect(tmp_path: Path) -> None:
    """Ministral 3's text model has Llama's table and no fixture: Mistral's checkpoint under its model type."""
    run, hf = (Path(shutil.copytree(home("mistral_mb") / part, tmp_path / part)) for part in ("run", "hf"))
    proven = merge(run, tmp_path / "proven", config=hf)
    assert not any("follows the source of" in note for note in proven.plan.notes)
    values = config("mistral_mb") | {"model_type": "ministral3", "architectures": ["Ministral3ForCausalLM"]}
    (hf / "config.json").write_text(json.dumps(values))
    by_source = merge(run, tmp_path / "by_source", config=hf)
    assert any("follows the source of Megatron-Bridge, ministral3" in note for note in by_source.plan.notes)
    assert tensors(tmp_path / "by_source") == tensors(tmp_path / "proven")
    shutil.copy(hf / "config.json", next(run.rglob("metadata.json")).parent / "config.json")
    assert any("follows the source of" in note for note in inspect(run).notes)
    assert "no real checkpoint has confirmed it" in cli("inspect", run).flat


# --- gates in rank files


def test_rank_files_without_a_gate_are_refused_for_a_table_with_one(tmp_path: Path) -> None:
    case = "nemotron_mlm_legacy"
    found = open_checkpoint(home(case) / "run")
    name = "decoder.layers.0.mlp.linear_fc1.weight"
    assert found.tensors[name].placement == "ungated Shard(0)"
    values = config(case) | {"model_type": "llama"}
    with pytest.raises(CkptconvError, match="whether the MLP has a gate"):
        megatron.agree(found, values)
    gated = found.tensors[name]._replace(placement="gated Shard(0)")
    with pytest.raises(CkptconvError, match="whether the MLP has a gate"):
        megatron.agree(replace(found, tensors={**found.tensors, name: gated}), config(case))


# --- adapters on the new operations

ADAPTED = {
    "bailing_moe_mcb": ("self_attention.linear_qkv", 1),
    "nemotron_mb": ("mlp.linear_fc1", 1),
    "glm4v_mcb": ("mlp.linear_fc1", 1),
    "qwen3_5_mcb": ("self_attention.in_proj", 4),
}
STYLES = {
    "Megatron-Bridge": ("adapter.linear_in.weight", "adapter.linear_out.weight"),
    "mcore-bridge": ("lora_A.default.weight", "lora_B.default.weight"),
}


@pytest.mark.parametrize("style", sorted(STYLES))
@pytest.mark.parametrize("case", sorted(ADAPTED))
def test_an_adapter_goes_through_the_same_rows_as_its_weight(case: str, style: str, tmp_path: Path) -> None:
    """The product of the placed factors is the update of the stored weight, in the Hub's rows."""
    (module, outputs), values = ADAPTED[case], config(case)
    held = {name: one.view for name, one in open_checkpoint(home(case) / "run").tensors.items()}
    weight = next(name for name in held if name.endswith(f"layers.0.{module}.weight"))
    rows, columns = held[weight].shape
    rng = np.random.default_rng(3)
    down, up = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, columns), (rows, 2)))
    (tmp_path / "factors").write_bytes(down.tobytes() + up.tobytes())
    stem, (a, b) = weight.removesuffix("weight"), STYLES[style]
    file = str(tmp_path / "factors")
    factors = {
        f"{stem}{a}": stored(file, 0, down.shape, "float32"),
        f"{stem}{b}": stored(file, down.nbytes, up.shape, "float32"),
    }

    def rename(found: Mapping[str, View]) -> Renamed[View]:
        made = megatron.to_hub({**held, **found}, values).tensors
        return Renamed({name: one for name, one in made.items() if set(one.sources) & found.keys()}, [])

    placed = place(lora.separate(factors).factors, rename).placed
    names = {
        name: one for name, one in megatron.to_hub(held, values).tensors.items() if one.sources == (weight,)
    }
    arrays = {name: np.zeros(view.shape, np.float32) for name, view in held.items()}
    wanted = converted(arrays | {weight: up @ down}, values)
    assert {one.weight for one in placed} == names.keys()
    assert len(placed) == outputs
    for one in placed:
        left, right = read_numpy(one.left), read_numpy(one.right)
        product = left.reshape(-1, 2) @ right.reshape(2, -1)
        np.testing.assert_allclose(product, wanted[one.weight].reshape(product.shape), rtol=1e-6, atol=1e-6)
