"""Real Megatron checkpoints (tests/make/megatron) become the model that was put into Megatron, bit for bit."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - numpy learns bfloat16
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.helpers import FIXTURES, unpacked

from ckptconv import CkptconvError, inspect, merge
from ckptconv.backends import open_checkpoint
from ckptconv.models.family import Family
from ckptconv.models.megatron import family_of
from ckptconv.models.megatron.tables import FAMILIES
from ckptconv.models.translate import to_hub, to_trained
from ckptconv.read.reader import read_numpy

CASES = sorted(path.name.removesuffix(".tar.xz") for path in (FIXTURES / "megatron").glob("*.tar.xz"))
Arrays = dict[str, np.ndarray[Any, Any]]


def home(case: str) -> Path:
    return unpacked(f"megatron/{case}")


def truth(case: str) -> Arrays:
    found: Arrays = {}
    for path in (home(case) / "hf").glob("*.safetensors"):
        found.update(load_file(path))
    return found


def config(case: str) -> dict[str, Any]:
    return json.loads((home(case) / "hf" / "config.json").read_text())


def table(case: str) -> Family:
    """The case's table, in the variant that its stored names speak."""
    return family_of(config(case)).variant_for(open_checkpoint(home(case) / "run").tensors)


def same(a: Arrays, b: Arrays) -> None:
    assert sorted(a) == sorted(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


LORA = [case for case in CASES if case.startswith("lora_")]  # in test_megatron_lora.py
SUPPORTED = [case for case in CASES if case not in LORA]
# Written out, so that a family or a fixture that goes missing is a red test.
PROVEN = {
    "baichuan", "bailing_hybrid", "bailing_moe", "bailing_moe_v2", "chatglm", "deepseek", "deepseek_v2",
    "deepseek_v3", "deepseek_v32", "deepseek_v4", "dots1", "ernie4_5", "ernie4_5_moe", "ernie4_5_vl_moe", "exaone4",
    "exaone4_5", "exaone_moe", "falcon_h1", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma4", "gemma4_text",
    "glm4", "glm46v", "glm4_moe", "glm4_moe_lite", "glm4v", "glm4v_moe", "glm_moe_dsa", "gpt_oss", "hy_v3",
    "internlm3", "internvl", "internvl_chat", "kimi_k2", "kimi_k25", "kimi_vl", "llama", "llama4",
    "llava_onevision1_5", "mimo", "mimo_v2_flash", "minicpmv4_6", "minimax_m2", "minimax_m3_vl", "mistral",
    "mistral3", "mixtral", "nemotron", "nemotron-nas", "nemotron_h", "olmoe", "ovis2_5", "phi3", "qwen2",
    "qwen2_5_omni", "qwen2_5_vl", "qwen2_audio", "qwen2_moe", "qwen2_vl", "qwen3", "qwen3_5", "qwen3_5_moe",
    "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_vl", "qwen3_vl_moe",
    "sarvam_mla", "sarvam_moe", "seed_oss", "starcoder2", "step3p5",
}  # fmt: skip


ONE_OF_EACH = {config(case)["model_type"]: case for case in SUPPORTED}.values()
# Megatron stores a norm as its difference to one, whose sum rounds, or rows that the Hub does not have.
LOSSY = {
    "qwen3_5_moe_text_mb",
    "qwen3_5_text_mb",
    "gemma4_mb",
    "gemma4_text_mb",
    "gemma4_text_moe_mb",
    "gemma4_text_moe_mlm_legacy",
} & {*ONE_OF_EACH}


def test_every_proven_family_has_a_table_and_a_fixture() -> None:
    assert {config(case)["model_type"] for case in SUPPORTED} == PROVEN
    assert {name for name, listed in FAMILIES.items() if listed.writers} == PROVEN
    assert len(CASES) >= 130


@pytest.mark.parametrize("case", SUPPORTED)
def test_the_model_comes_back_bit_for_bit(case: str, tmp_path: Path) -> None:
    result = merge(home(case) / "run", tmp_path / "out", config=home(case) / "hf", dtype="keep")
    found: Arrays = {}
    for file in result.plan.files:
        found.update(load_file(tmp_path / "out" / file.name))
    same(found, truth(case))


@pytest.mark.parametrize("case", CASES)
def test_every_fixture_can_be_inspected_whatever_its_family(case: str) -> None:
    found = inspect(home(case) / "run")
    assert found.tensors
    assert found.nbytes


@pytest.mark.parametrize("case", sorted(set(ONE_OF_EACH) - LOSSY))
def test_a_family_is_reversible(case: str) -> None:
    """Hub -> Megatron -> Hub is the identity, on torch tensors as on numpy arrays."""
    torch = pytest.importorskip("torch")
    hub, family = truth(case), table(case)
    back = to_hub(family, to_trained(family, hub, config(case)), config(case), "Megatron")
    made = {name: t.value.reshape(t.shape) for name, t in back.tensors.items()}
    same(made | {name: made[of] for name, of in back.copies.items()}, hub)
    bits = {name: torch.from_numpy(array.view(f"i{array.itemsize}").copy()) for name, array in hub.items()}
    again = to_hub(family, to_trained(family, bits, config(case)), config(case), "Megatron")
    for name, tensor in again.tensors.items():
        assert torch.equal(tensor.value.reshape(tensor.shape), bits[name]), name


@pytest.mark.parametrize("case", sorted(LOSSY))
def test_what_cannot_be_put_back_is_refused(case: str) -> None:
    with pytest.raises(CkptconvError, match="is not put back"):
        to_trained(table(case), truth(case), config(case))


@pytest.mark.parametrize("case", sorted(set(ONE_OF_EACH) - LOSSY))
def test_the_way_back_makes_what_megatron_stored(case: str) -> None:
    made = to_trained(table(case), truth(case), config(case))
    stored = open_checkpoint(home(case) / "run").tensors
    for name, array in made.items():
        if name not in stored:
            # Tied: Megatron keeps no head. A norm has two homes, by which the layer is dense or not.
            assert name == "output_layer.weight" or "norm" in name
            continue
        rows = read_numpy(stored[name].view)[: array.shape[0]]  # the vocabulary is padded
        assert rows.tobytes() == np.ascontiguousarray(array).tobytes(), name


def case_with(case: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home(case) / "run", tmp_path / "run"))


def test_a_missing_distcp_file_is_named(tmp_path: Path) -> None:
    run = case_with("qwen2_tp2", tmp_path)
    lost = sorted(run.rglob("__1_0.distcp"))[0]
    lost.unlink()
    with pytest.raises(CkptconvError, match=r"__1_0\.distcp is missing"):
        merge(run, tmp_path / "out", config=home("qwen2_tp2") / "hf")
    assert not (tmp_path / "out").exists()


def test_a_file_on_another_disk_is_found_with_also(tmp_path: Path) -> None:
    run = case_with("qwen2_tp2", tmp_path)
    lost = sorted(run.rglob("__1_0.distcp"))[0]
    (tmp_path / "other").mkdir()
    shutil.move(lost, tmp_path / "other" / lost.name)
    (tmp_path / "other" / ".metadata").write_bytes((lost.parent / ".metadata").read_bytes())
    (tmp_path / "other" / "metadata.json").write_bytes((lost.parent / "metadata.json").read_bytes())
    merge(run, tmp_path / "out", config=home("qwen2_tp2") / "hf", also=[tmp_path / "other"])
    same(load_file(tmp_path / "out" / "model.safetensors"), truth("qwen2_tp2"))


def test_a_save_that_never_finished_is_said(tmp_path: Path) -> None:
    run = case_with("qwen2_v2", tmp_path)
    next(run.rglob("ckpt_contents.json")).unlink()
    with pytest.raises(CkptconvError, match="incomplete save"):
        open_checkpoint(run)


def test_a_missing_legacy_rank_is_named(tmp_path: Path) -> None:
    run = case_with("qwen2_mlm_legacy", tmp_path)
    shutil.rmtree(next(run.rglob("mp_rank_01_001")))
    with pytest.raises(CkptconvError, match="tp rank 1 of 2 is missing in pipeline stage 1"):
        open_checkpoint(run)


def test_an_unknown_architecture_lists_what_is_known(tmp_path: Path) -> None:
    run = case_with("qwen2_tp2", tmp_path)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config("qwen2_tp2"), "model_type": "nobody"}))
    with pytest.raises(CkptconvError, match="nobody") as error:
        merge(run, tmp_path / "out", config=tmp_path / "hf")
    assert "qwen2" in str(error.value.wanted)
    assert "adding-a-model" in str(error.value.hint)


def test_a_config_with_another_number_of_heads_is_refused(tmp_path: Path) -> None:
    run = case_with("qwen2_tp2", tmp_path)
    (tmp_path / "hf").mkdir()
    wrong = {**config("qwen2_tp2"), "num_attention_heads": 5}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(wrong))
    with pytest.raises(CkptconvError, match="give two values of num_attention_heads"):
        merge(run, tmp_path / "out", config=tmp_path / "hf")
    assert not (tmp_path / "out").exists()


INDEXER = "decoder.layers.0.self_attention.core_attention.indexer.linear_wq_b.weight"
NORM_BIASES = (
    "decoder.final_layernorm.bias",
    "decoder.layers.0.self_attention.linear_qkv.layer_norm_bias",
    "decoder.layers.0.mlp.linear_fc1.layer_norm_bias",
)
KNOWN = {  # the families that do have such tensors
    INDEXER: {"glm_moe_dsa", "deepseek_v32", "deepseek_v4"},
    **{name: {"nemotron", "starcoder2"} for name in NORM_BIASES},
}


@pytest.mark.parametrize("name", [*NORM_BIASES, INDEXER, "mtp.layers.0.attn_norm.weight"])
def test_what_no_table_knows_is_refused_in_every_family(name: str) -> None:
    """LayerNorm's biases, DeepSeek-V3.2's indexer, MTP layers of another kind."""
    for model_type in sorted(FAMILIES.keys() - KNOWN.get(name, set())):
        text = {"num_hidden_layers": 2, "model_type": "qwen3", "layer_types": [], "moe_num_experts": 4}
        table = FAMILIES[model_type].family({"text_config": text})
        with pytest.raises(CkptconvError, match=f"has no entry for the stored tensor {name}"):
            to_hub(table, {name: np.ones(4, np.float32)}, {"num_hidden_layers": 2}, "Megatron")


def test_without_transformer_engine_a_moe_layers_norm_has_a_dense_layers_name() -> None:
    stored = open_checkpoint(home("qwen3_moe_local") / "run").tensors
    assert "decoder.layers.0.mlp.linear_fc1.layer_norm_weight" in stored
    assert not any("pre_mlp_layernorm" in name for name in stored)


def test_a_rank_files_tensor_whose_cut_is_not_known_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    run = case_with("qwen2_verl_legacy", tmp_path)
    for file in sorted(run.rglob("model.pt")):
        (chunk,) = torch.load(file, weights_only=False)
        chunk["decoder.layers.0.self_attention.mystery.weight"] = torch.ones(3, 4)
        torch.save([chunk], file)
    with pytest.raises(CkptconvError, match=r"how .*mystery.* is sharded over tensor parallel ranks"):
        open_checkpoint(run)


def test_the_lists_of_families_are_made_from_the_tables() -> None:
    root = FIXTURES.parents[1]
    maker = runpy.run_path(str(root / "tests" / "make" / "megatron" / "docs.py"))
    for path, part in ((root / "README.md", "readme"), (root / "docs" / "megatron.md", "table")):
        text = path.read_text()
        assert maker[part]() in text
        assert maker["renewed"](text, maker[part]()) == text, f"run {maker['__file__']}"


@pytest.mark.parametrize("key", ["num_experts", "moe_intermediate_size"])
def test_a_config_with_other_experts_is_refused(key: str, tmp_path: Path) -> None:
    case = "qwen3_moe_tp2pp2ep2"
    wrong = {**config(case), key: config(case)[key] * 2}
    (tmp_path / "config.json").write_text(json.dumps(wrong))
    with pytest.raises(CkptconvError, match=r"does not match these tensors|layout that config\.json implies"):
        merge(home(case) / "run", tmp_path / "out", config=tmp_path)
    assert not (tmp_path / "out").exists()
