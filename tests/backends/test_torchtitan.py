"""Real torchtitan checkpoints (tests/make/torchtitan) become what torchtitan's own adapters make of them, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.helpers import unpacked

from ckptconv import CkptconvError, merge
from ckptconv.backends import open_checkpoint
from ckptconv.models.signs import Sign, signs_of
from ckptconv.models.torchtitan import FAMILIES, family_of, to_hub, to_trained
from ckptconv.models.torchtitan.verbs import EARLIER
from ckptconv.read.reader import read_numpy

CASES = (
    "0_3/llama",
    "0_3/qwen3_tied",
    "0_3/qwen3_moe",
    "0_3/deepseek_v3",
    "0_3/gpt_oss",
    "0_2/llama",
    "0_2/llama4",
    "0_2/qwen3_moe",
    "0_2/deepseek_v3_plain",
    "0_2/gpt_oss",
)
NEWEST = tuple(case for case in CASES if case.startswith("0_3"))
# The Hub's copies in an MTP layer, which torchtitan's adapter does not write.
COPIES = {
    "model.layers.3.embed_tokens.weight": "model.embed_tokens.weight",
    "model.layers.3.shared_head.head.weight": "lm_head.weight",
}
Arrays = dict[str, np.ndarray[Any, Any]]


def home(case: str) -> Path:
    version, _, name = case.partition("/")
    return unpacked(f"torchtitan_{version}") / name


def steps(case: str) -> Path:
    return home(case) / "run" / "checkpoint"


def truth(case: str) -> Arrays:
    return load_file(home(case) / "hf" / "model.safetensors")


def config(case: str) -> dict[str, Any]:
    return json.loads((home(case) / "hf" / "config.json").read_text())


def stored(case: str) -> Arrays:
    found = open_checkpoint(steps(case), step=2).tensors
    return {name: read_numpy(tensor.view) for name, tensor in found.items()}


def translated(tensors: Arrays, case: str) -> Arrays:
    made = to_hub(tensors, config(case))
    return {name: tensor.value.reshape(tensor.shape) for name, tensor in made.tensors.items()}


def same(found: Arrays, wanted: Arrays) -> None:
    assert sorted(found) == sorted(wanted)
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


TEXT_ALONE = (
    "0_2/llama4"  # torchtitan trains the language model; config.json names the class with a vision tower
)


def test_a_vision_tower_that_was_not_trained_comes_from_the_base(tmp_path: Path) -> None:
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    given = config(TEXT_ALONE)
    given["text_config"]["interleave_moe_layer_step"] = (
        2  # layer 0 is dense; the class's default is that none is
    )
    vision = {"hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4, "vision_output_dim": 20}
    vision |= {"projector_input_dim": 20, "projector_output_dim": 20}
    whole = Llama4ForConditionalGeneration(Llama4Config(**given, vision_config=vision))
    whole.save_pretrained(tmp_path / "base")
    options = {"config": tmp_path / "base", "dtype": "keep", "step": 2}
    with pytest.raises(CkptconvError, match=r"vision_model"):
        merge(steps(TEXT_ALONE), tmp_path / "out", **options)
    merge(steps(TEXT_ALONE), tmp_path / "out", base=tmp_path / "base", **options)
    base = load_file(tmp_path / "base" / "model.safetensors")
    same(load_file(tmp_path / "out" / "model.safetensors"), {**base, **truth(TEXT_ALONE)})


@pytest.mark.parametrize("case", [case for case in CASES if case != TEXT_ALONE])
def test_a_checkpoint_becomes_what_torchtitans_own_adapter_makes_of_it(case: str, tmp_path: Path) -> None:
    merge(steps(case), tmp_path / "out", config=home(case) / "hf", dtype="keep", step=2)
    found = load_file(tmp_path / "out" / "model.safetensors")
    for copy, of in COPIES.items():
        if copy in found:
            assert found.pop(copy).tobytes() == found[of].tobytes()
    same(found, truth(case))


@pytest.mark.parametrize("case", ["0_2/llama", "0_3/llama"])
def test_the_last_save_is_the_model_alone_in_the_export_dtype(case: str, tmp_path: Path) -> None:
    result = merge(steps(case), tmp_path / "out", config=home(case) / "hf", dtype="keep")
    assert result.plan.checkpoint.step == 3
    wanted = {name: array.astype(ml_dtypes.bfloat16) for name, array in truth(case).items()}
    same(load_file(tmp_path / "out" / "model.safetensors"), wanted)


def test_the_router_and_the_bias_that_chooses_experts_stay_float32(tmp_path: Path) -> None:
    merge(steps("0_3/deepseek_v3"), tmp_path / "out", config=home("0_3/deepseek_v3") / "hf")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == np.float32
    assert found["model.layers.1.mlp.gate.weight"].dtype == np.float32  # as transformers 5.24 builds it
    assert found["model.layers.1.mlp.shared_experts.up_proj.weight"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("case", CASES)
def test_the_stored_names_are_told_and_the_hubs_are_not(case: str) -> None:
    assert signs_of(open_checkpoint(steps(case), step=2).tensors) >= {Sign.TORCHTITAN}
    assert not signs_of(truth(case))


@pytest.mark.parametrize("case", CASES)
def test_optimizer_loader_and_trainer_are_skipped_with_reasons(case: str) -> None:
    reasons = {entry.reason for entry in open_checkpoint(steps(case), step=2).skipped}
    assert {"optimizer", "data loader", "trainer state", "scheduler"} <= reasons


@pytest.mark.parametrize("case", CASES)
def test_a_family_is_reversible(case: str) -> None:
    """Hub -> torchtitan -> Hub is the identity, on torch tensors as on numpy arrays."""
    torch = pytest.importorskip("torch")
    hub = truth(case)
    same(translated(to_trained(hub, config(case)), case), hub)
    bits = {name: torch.from_numpy(array.view(f"i{array.itemsize}").copy()) for name, array in hub.items()}
    again = to_hub(to_trained(bits, config(case)), config(case))
    for name, tensor in again.tensors.items():
        assert torch.equal(tensor.value.reshape(tensor.shape), bits[name]), name


@pytest.mark.parametrize("case", NEWEST)
def test_the_way_back_makes_what_torchtitan_stored(case: str) -> None:
    kept = stored(case)
    made = to_trained(truth(case), config(case))
    lost = {name for name in kept if name not in made}
    assert all(name == "lm_head.weight" or name.endswith("expert_bias_E") for name in lost), lost
    same({name: np.ascontiguousarray(array) for name, array in made.items()}, {n: kept[n] for n in made})


@pytest.mark.parametrize("case", NEWEST)
def test_every_earlier_spelling_of_the_names_is_read(case: str) -> None:
    """Each change of a name came in a commit of its own: alone, and all of them together."""
    kept = stored(case)
    wanted = translated(kept, case)
    for changes in (*((change,) for change in EARLIER), EARLIER):
        renamed = {}
        for name, array in kept.items():
            for new, old in changes:
                name = name.replace(new, old)
            renamed[name] = array
        assert len(renamed) == len(kept)
        same(translated(renamed, case), wanted)


@pytest.mark.parametrize("case", ["0_3/qwen3_moe", "0_3/gpt_oss", "0_2/llama4"])
def test_a_bias_that_the_hub_has_no_place_for_is_left_out_with_its_reason(case: str) -> None:
    left_out = to_hub(stored(case), config(case)).left_out
    assert {name.split(".")[-1].removesuffix("_E") for name, _, _ in left_out} == {"expert_bias"}
    assert all("load-balancing bias" in reason for _, _, reason in left_out)


def test_the_rotary_table_of_the_first_release_is_left_out() -> None:
    case = "0_2/llama"
    table = np.ones((64, 2), np.complex64)
    made = to_hub({**stored(case), "freqs_cis": table}, config(case))
    assert [(name, reason) for name, _, reason in made.left_out] == [
        ("freqs_cis", "a table of angles, which the model computes itself")
    ]
    assert sorted(made.tensors) == sorted(truth(case))


def test_the_language_model_of_llama_4_alone_has_no_prefix() -> None:
    case = "0_2/llama4"
    made = to_hub(stored(case), config(case)["text_config"]).tensors
    assert {f"language_model.{name}" for name in made} == set(truth(case))


def test_a_name_that_no_rule_knows_is_an_error() -> None:
    tensors = stored("0_3/llama") | {"layers.0.attention.qkv_linear.wq.lora_a.weight": np.ones((2, 24))}
    with pytest.raises(CkptconvError, match=r"Llama 3 has no entry for .*wq\.lora_a\.weight"):
        to_hub(tensors, config("0_3/llama"))


def test_half_of_a_fused_tensor_is_an_error() -> None:
    tensors = stored("0_2/llama4")
    del tensors["layers.1.moe.experts.w3"]
    with pytest.raises(CkptconvError, match="some pieces needed for"):
        to_hub(tensors, config("0_2/llama4"))


@pytest.mark.parametrize("count", [4, 6])
def test_a_config_with_another_number_of_experts_is_refused(count: int) -> None:
    with pytest.raises(CkptconvError, match="5 tensors cannot be named"):
        to_hub(stored("0_3/qwen3_moe"), config("0_3/qwen3_moe") | {"num_experts": count})


def test_a_config_that_does_not_count_the_experts_is_refused() -> None:
    with pytest.raises(CkptconvError, match="number of experts per layer") as error:
        family_of({"model_type": "deepseek_v3"})
    assert error.value.wanted == "n_routed_experts"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"num_attention_heads": 5}, r"wq\.weight does not have the layout that config\.json implies"),
        ({"num_key_value_heads": 3}, r"config\.json does not match these tensors"),
    ],
)
def test_a_config_with_other_heads_is_refused(wrong: dict[str, int], says: str, tmp_path: Path) -> None:
    case = "0_3/llama"
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config(case) | wrong))
    with pytest.raises(CkptconvError, match=says):
        merge(steps(case), tmp_path / "out", config=tmp_path / "hf")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_table_lists_what_there_is() -> None:
    with pytest.raises(CkptconvError, match="no table for the tensors of 'qwen3_5' in torchtitan") as error:
        family_of({"model_type": "qwen3_5"})
    assert all(model_type in str(error.value.wanted) for model_type in FAMILIES)


def test_without_a_config_one_is_asked_for(tmp_path: Path) -> None:
    run = shutil.copytree(home("0_3/llama") / "run", tmp_path / "a/b/c/run")
    with pytest.raises(CkptconvError, match=r"no config\.json found for this checkpoint") as error:
        merge(run / "checkpoint", tmp_path / "out")
    assert "--config" in str(error.value.hint)


@pytest.mark.parametrize("name", ["llama", "llama4", "qwen3_moe", "deepseek_v3_plain", "gpt_oss"])
def test_transformers_computes_with_the_output_what_torchtitan_computed(name: str, tmp_path: Path) -> None:
    """Independent of any adapter: torchtitan's own forward pass (tests/make/torchtitan/forward.py)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    case = f"forward/{name}"
    merge(steps(case), tmp_path / "out", config=home(case) / "hf", dtype="keep")
    model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out",
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    assert not any(loaded.values()), loaded
    wanted = {key: torch.from_numpy(v) for key, v in load_file(home(case) / "forward.safetensors").items()}
    with torch.no_grad():
        if name == "gpt_oss":
            out, *_ = model.model.layers[0].mlp(wanted["states"])
        else:
            out = model(wanted["tokens"]).logits
    scale = wanted["out"].abs().max()
    assert (out.reshape(wanted["out"].shape) - wanted["out"]).abs().max() < 1e-4 * scale
