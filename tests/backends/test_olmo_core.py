"""Real OLMo-core checkpoints (tests/make/olmo_core) become what its own conversion makes of them, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.helpers import assert_equal, tensors, unpacked

from ckptconv import CkptconvError, inspect, merge, verify
from ckptconv.backends import open_checkpoint
from ckptconv.errors import Incomplete
from ckptconv.models.olmo_core import hub_config, to_hub, to_trained

CASES = ("olmo2", "olmo3", "qwen3", "flex_olmo", "flex_olmo_dropless")
FORWARD = ("olmo2", "olmo3", "qwen3")
CLASSES = {"olmo2": "Olmo2", "olmo3": "Olmo3", "qwen3": "Qwen3", "flex_olmo": "FlexOlmo"}


def home(case: str) -> Path:
    return unpacked(f"olmo_core_{case}")


def copied(case: str, tmp_path: Path) -> Path:
    """A run's folder without the Hugging Face model next to it, that a test may change."""
    return Path(shutil.copytree(home(case) / "run", tmp_path / "trained" / "run"))


def experiment(case: str) -> dict[str, Any]:
    return json.loads((home(case) / "run" / "step10" / "config.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_a_step_becomes_what_olmo_cores_own_conversion_makes(case: str, tmp_path: Path) -> None:
    run = copied(case, tmp_path)
    merged = merge(run, tmp_path / "out", dtype="keep")
    assert merged.plan.checkpoint.step == 10
    wanted = tensors(home(case) / "hf")
    if case == "olmo2":
        del wanted["lm_head.weight"]  # tied
    assert_equal(tensors(tmp_path / "out"), wanted)
    assert verify(tmp_path / "out", against=run).ok


@pytest.mark.parametrize("case", FORWARD)
def test_the_made_config_gives_the_logits_that_olmo_core_computes(case: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    merge(copied(case, tmp_path), tmp_path / "out", dtype="keep")
    forward = load_file(home(case) / "forward.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    torch.testing.assert_close(model(forward["ids"]).logits, forward["logits"], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_the_made_config_states_what_olmo_cores_own_does(case: str, tmp_path: Path) -> None:
    merge(copied(case, tmp_path), tmp_path / "out", dtype="keep")
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    wanted = json.loads((home(case) / "hf" / "config.json").read_text())
    assert made["architectures"] == [f"{CLASSES[case.removesuffix('_dropless')]}ForCausalLM"]
    for key in ("model_type", "hidden_size", "intermediate_size", "num_key_value_heads", "rms_norm_eps"):
        assert made[key] == wanted[key], key
    for key in (
        "tie_word_embeddings",
        "attention_bias",
        "sliding_window",
        "num_experts",
        "num_experts_per_tok",
    ):
        assert made.get(key) == wanted.get(key), key
    assert (made["eos_token_id"], made["pad_token_id"], made["max_position_embeddings"]) == (1, 2, 128)


def test_sliding_layers_keep_the_trained_rotary_base(tmp_path: Path) -> None:
    from transformers import AutoConfig

    merge(copied("olmo3", tmp_path), tmp_path / "out", dtype="keep")
    read = AutoConfig.from_pretrained(tmp_path / "out")
    assert read.layer_types == ["sliding_attention", "full_attention", "full_attention"]
    assert read.rope_parameters["sliding_attention"] == {"rope_type": "default", "rope_theta": 50000.0}
    assert read.rope_parameters["full_attention"]["rope_type"] == "yarn"


@pytest.mark.parametrize(
    ("key", "value"),
    [("rms_norm_eps", 1e-5), ("sliding_window", 9), ("model_type", "olmo2"), ("rope_theta", 500000.0)],
)
def test_a_given_config_that_contradicts_the_experiment_is_refused(
    key: str, value: Any, tmp_path: Path
) -> None:
    run = copied("olmo3", tmp_path)
    merge(run, tmp_path / "out", dtype="keep")
    given = json.loads((tmp_path / "out" / "config.json").read_text())
    given |= {key: value}
    if key == "rope_theta":
        del given["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(given))
    with pytest.raises(CkptconvError, match=f"two values of {key}"):
        merge(run, tmp_path / "wrong", config=tmp_path / "config.json")


def attention(model: dict[str, Any]) -> dict[str, Any]:
    return model["block"]["sequence_mixer"]


@pytest.mark.parametrize(
    ("setting", "change"),
    [
        ("clip_qkv", lambda m: attention(m).update(clip_qkv=8.0)),
        ("rope.name", lambda m: attention(m)["rope"].update(name="complex")),
        ("rope.partial_rotary_factor", lambda m: attention(m)["rope"].update(partial_rotary_factor=0.5)),
        ("attention_sinks", lambda m: attention(m).update(attention_sinks=True)),
        ("embed_scale", lambda m: m.update(embed_scale=4.0)),
        ("layer_norm.name", lambda m: m["block"]["layer_norm"].update(name="default")),
        ("feed_forward.activation", lambda m: m["block"]["feed_forward"].update(activation="gelu")),
        ("block.name", lambda m: m["block"].update(name="peri_norm")),
        ("rope.scaling", lambda m: attention(m)["rope"].update(scaling={"_CLASS_": "olmo_core.nn.rope.ABF"})),
    ],
)
def test_a_setting_that_no_class_has_is_refused(
    setting: str, change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    run = copied("olmo2", tmp_path)
    values = experiment("olmo2")
    change(values["model"])
    (run / "step10" / "config.json").write_text(json.dumps(values))
    for options in ({}, {"config": home("olmo2") / "hf"}):
        with pytest.raises(CkptconvError, match="no class of transformers has") as refused:
            merge(run, tmp_path / "out", **options)
        assert setting in str(refused.value.found)
    assert inspect(run).tensors == 36


def test_layers_of_several_kinds_and_windows_of_several_sizes_are_refused() -> None:
    values = experiment("olmo3")
    block = json.loads(json.dumps(values["model"]["block"]))
    block["feed_forward"]["hidden_size"] = 44
    with pytest.raises(CkptconvError, match="layers are of different kinds"):
        hub_config({"model": {**values["model"], "block_overrides": {"1": block}}})
    values["model"]["block_overrides"] = {}
    values["model"]["block"]["sequence_mixer"]["sliding_window"]["pattern"] = [8, 9]
    with pytest.raises(CkptconvError, match="sliding windows of several sizes"):
        hub_config(values)


def test_an_experiment_that_cannot_be_read_is_refused_and_another_file_is_not_one() -> None:
    values = experiment("olmo2")
    del values["model"]["d_model"]
    with pytest.raises(CkptconvError, match="cannot be read"):
        hub_config(values)
    assert hub_config({"model_type": "olmo2"}) is None
    assert hub_config({"model": {"_CLASS_": "other.Config"}}) is None


def test_square_experts_are_refused() -> None:
    from ckptconv.models.olmo_core.experts import GatedProjections
    from ckptconv.models.pieces import Piece
    from ckptconv.tensors.view import stored

    with pytest.raises(CkptconvError, match="square experts"):
        GatedProjections(3, 4, 4).split([Piece.of(stored("x", 0, (12, 4), "float32"))])
    with pytest.raises(CkptconvError, match="is not a stack of 3 experts"):
        GatedProjections(3, 4, 5).split([Piece.of(stored("x", 0, (13, 4), "float32"))])


def test_the_rules_of_experts_lead_back() -> None:
    from safetensors.numpy import load_file

    config = json.loads((home("flex_olmo") / "hf" / "config.json").read_text())
    hub = load_file(home("flex_olmo") / "hf" / "model.safetensors")
    trained = to_trained(hub, config)
    assert trained["blocks.0.feed_forward_moe.experts.mlp.w1"].shape == (3 * 16, 10)
    for name, named in to_hub(trained, config).tensors.items():
        assert (named.value.reshape(named.shape) == hub[name]).all(), name


def test_inspect_shows_the_class_and_the_layers(tmp_path: Path) -> None:
    found = inspect(copied("olmo3", tmp_path))
    assert (found.architecture, found.complete, found.world_size) == ("Olmo3ForCausalLM", True, 3)
    assert {"embedding", "0", "2", "head"} <= {*found.parts}


def test_a_missing_file_and_another_steps_state_are_refused(tmp_path: Path) -> None:
    run = copied("olmo2", tmp_path)
    (run / "step10").rename(run / "step12")
    with pytest.raises(CkptconvError, match="state is of another step"):
        open_checkpoint(run)
    (run / "step12").rename(run / "step10")
    next((run / "step10" / "model_and_optim").glob("__1_*.distcp")).unlink()
    with pytest.raises(Incomplete, match=r"__1_\d+\.distcp is missing"):
        open_checkpoint(run)
