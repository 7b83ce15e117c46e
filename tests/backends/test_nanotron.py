"""Real nanotron checkpoints (tests/make/nanotron) become the Hugging Face models that they were made from, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.helpers import assert_equal, tensors, unpacked

from ckptconv import CkptconvError, inspect, merge, verify
from ckptconv.backends import open_checkpoint
from ckptconv.backends.nanotron.slices import parts, unsharded_shape
from ckptconv.errors import Incomplete
from ckptconv.models.naming import NANOTRON
from ckptconv.models.nanotron import hub_config, to_hub, to_trained
from ckptconv.tensors.view import stored

CASES = ("llama_tp2_pp2", "llama_tied_tp2", "llama_tied_pp2", "qwen2_bias_tp2", "smollm3_tp1")
FIRST = "llama_tp2_pp2"  # rows that rotate together are neighbours, on two pipeline stages
QKV = "model/model/decoder/0/pp_block/attn/qkv_proj"


def home(case: str) -> Path:
    return unpacked(f"nanotron_{case}")


def config(case: str) -> dict[str, Any]:
    return json.loads((home(case) / "hf" / "config.json").read_text())


def copied(case: str, tmp_path: Path) -> Path:
    """A run's folder that a test may change."""
    return Path(shutil.copytree(home(case) / "run", tmp_path / "run"))


def edited(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def restated(path: Path, **metadata: str) -> None:
    """A safetensors file with other metadata and the same tensor."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        old = dict(file.metadata() or {})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = old | metadata
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize("case", CASES)
def test_a_run_becomes_the_model_that_it_was_made_from(case: str, tmp_path: Path) -> None:
    merged = merge(home(case) / "run", tmp_path / "out", dtype="keep")
    assert merged.plan.checkpoint.step == 10
    assert_equal(tensors(tmp_path / "out"), tensors(home(case) / "hf"))
    assert verify(tmp_path / "out", against=home(case) / "run").ok


@pytest.mark.parametrize("case", CASES)
def test_the_config_is_made_from_model_config_json(case: str, tmp_path: Path) -> None:
    merge(home(case) / "run", tmp_path / "out", dtype="keep")
    made, wanted = json.loads((tmp_path / "out" / "config.json").read_text()), config(case)
    defaults = {"head_dim", "pretraining_tp", "transformers_version", "attention_dropout", "layer_types"}
    defaults |= {"use_sliding_window", "sliding_window", "max_window_layers", "attention_bias", "mlp_bias"}
    for key in wanted.keys() - defaults:
        assert made[key] == wanted[key], key
    assert made["rope_theta"] == wanted["rope_parameters"]["rope_theta"]


def test_the_config_gives_transformers_the_same_logits(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    for case in ("llama_tp2_pp2", "smollm3_tp1", "qwen2_bias_tp2"):
        merge(home(case) / "run", tmp_path / case, dtype="keep")
        ids = torch.arange(40).reshape(2, 20)
        made, truth = (
            AutoModelForCausalLM.from_pretrained(path)(ids).logits
            for path in (tmp_path / case, home(case) / "hf")
        )
        assert torch.equal(made, truth), case


def test_a_given_config_that_contradicts_the_trainers_is_refused(tmp_path: Path) -> None:
    given = {**config(FIRST), "rms_norm_eps": 1e-6}
    (tmp_path / "config.json").write_text(json.dumps(given))
    with pytest.raises(CkptconvError, match=r"two values of rms_norm_eps"):
        merge(home(FIRST) / "run", tmp_path / "out", config=tmp_path)
    given = {**config(FIRST), "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    (tmp_path / "config.json").write_text(json.dumps(given))
    with pytest.raises(CkptconvError, match=r"two values of rope_theta"):
        merge(home(FIRST) / "run", tmp_path / "out", config=tmp_path)


def test_the_run_names_its_latest_step_and_step_n_takes_another(tmp_path: Path) -> None:
    run = copied(FIRST, tmp_path)
    shutil.copytree(run / "10", run / "9")
    edited(run / "9" / "checkpoint_metadata.json", metas={"last_train_step": 9})
    assert open_checkpoint(run).step == 10
    assert open_checkpoint(run, step=9).step == 9
    (run / "latest.txt").write_text("9")
    assert open_checkpoint(run).step == 9


def test_inspect_shows_stages_and_tp_ranks() -> None:
    found = inspect(home(FIRST) / "run")
    assert found.meshes == ("pp 2 × tp 2",)
    assert found.complete
    assert found.architecture == "LlamaForCausalLM"
    assert [rank.rank for rank in found.ranks] == [0, 1, 2, 3]
    assert {"embedding", "2", "head"} <= {*found.parts}


def test_a_missing_tp_rank_is_named(tmp_path: Path) -> None:
    run = copied(FIRST, tmp_path)
    (run / "10" / QKV / "model_weight_pp-rank-0-of-2_tp-rank-1-of-2.safetensors").unlink()
    with pytest.raises(Incomplete, match=r"TP rank 1 of 2 is missing from model\.decoder\.0\.pp_block"):
        open_checkpoint(run)


def test_a_missing_stage_is_named_and_read_from_another_disk(tmp_path: Path) -> None:
    run, other = copied(FIRST, tmp_path), tmp_path / "other" / "10"
    names = [path.relative_to(run / "10") for path in run.rglob("*_pp-rank-1-of-2_*")]
    blocks = {name.parts[:4] for name in names if "decoder" in name.parts}
    for folder in [*(Path(*block) for block in blocks), *(name.parent for name in names)]:
        if (run / "10" / folder).exists():
            (other / folder).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(run / "10" / folder, other / folder)
    with pytest.raises(Incomplete, match=r"pipeline stage 1 of 2 are missing"):
        open_checkpoint(run)
    shutil.copy(run / "10" / "model_config.json", other)
    merge(run, tmp_path / "out", also=[other], dtype="keep")
    assert_equal(tensors(tmp_path / "out"), tensors(home(FIRST) / "hf"))


def test_files_of_two_saves_are_refused(tmp_path: Path) -> None:
    run = copied(FIRST, tmp_path)
    file = run / "10" / QKV / "model_weight_pp-rank-0-of-2_tp-rank-1-of-2.safetensors"
    added = file.with_name("model_weight_pp-rank-0-of-2_tp-rank-3-of-4.safetensors")
    shutil.copy(file, added)
    with pytest.raises(CkptconvError, match="files of two saves with different numbers of ranks"):
        open_checkpoint(run)
    added.unlink()
    shutil.copy(file, file.with_name("model_weight.safetensors"))
    with pytest.raises(CkptconvError, match="stored whole and in shards"):
        open_checkpoint(run)
    file.with_name("model_weight.safetensors").unlink()
    shutil.copy(file, file.with_name("model_weight_pp-rank-1-of-2_tp-rank-1-of-2.safetensors"))
    with pytest.raises(CkptconvError, match="stored by several pipeline stages"):
        open_checkpoint(run)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"metas": {"last_train_step": 8}}, "another step than its folder's name"),
        ({"tp": 4}, "another number of TP ranks"),
    ],
)
def test_metadata_of_another_save_is_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    run = copied(FIRST, tmp_path)
    edited(run / "10" / "checkpoint_metadata.json", **changed)
    with pytest.raises(CkptconvError, match=message):
        open_checkpoint(run)


def test_a_step_without_model_config_json_is_not_complete(tmp_path: Path) -> None:
    run = copied(FIRST, tmp_path)
    (run / "10" / "model_config.json").unlink()
    with pytest.raises(Incomplete, match="how the model is laid out"):
        open_checkpoint(run)


@pytest.mark.parametrize(
    ("case", "changed", "message"),
    [
        (FIRST, {"vocab_size": 68}, r"(?s)not of the model.*vocab_size 68.*66 rows"),
        (FIRST, {"tie_word_embeddings": True}, r"(?s)not of the model.*lm_head.* is stored too"),
        ("llama_tied_pp2", {"tie_word_embeddings": False}, "output head has no file"),
        ("qwen2_bias_tp2", {"attention_bias": False}, r"(?s)not of the model.*qkv_proj.bias is stored"),
        ("smollm3_tp1", {"attention_bias": True}, r"(?s)not of the model.*has no bias"),
    ],
)
def test_a_model_config_of_another_model_is_refused_whatever_config_is_given(
    case: str, changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    run = copied(case, tmp_path)
    edited(run / "10" / "model_config.json", **changed)
    with pytest.raises(CkptconvError, match=message):
        open_checkpoint(run)
    with pytest.raises(CkptconvError, match=message):
        merge(run, tmp_path / "out", config=home(case) / "hf")


def test_a_lost_head_is_not_replaced_by_the_embedding_of_a_config_that_ties(tmp_path: Path) -> None:
    run = copied(FIRST, tmp_path)
    shutil.rmtree(run / "10" / "model" / "model" / "lm_head")
    (tmp_path / "config.json").write_text(json.dumps({**config(FIRST), "tie_word_embeddings": True}))
    with pytest.raises(Incomplete, match="output head has no file"):
        merge(run, tmp_path / "out", config=tmp_path)


def test_llama_ignores_attention_bias_as_nanotron_does(tmp_path: Path) -> None:
    run = copied(FIRST, tmp_path)
    edited(run / "10" / "model_config.json", attention_bias=True)
    merge(run, tmp_path / "out", config=home(FIRST) / "hf", dtype="keep")
    assert_equal(tensors(tmp_path / "out"), tensors(home(FIRST) / "hf"))
    merge(run, tmp_path / "made", dtype="keep")
    assert_equal(tensors(tmp_path / "made"), tensors(home(FIRST) / "hf"))
    assert json.loads((tmp_path / "made" / "config.json").read_text())["attention_bias"] is False


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"local_global_slices_pairs": "0,12,None|None,None,None#0,12,None|None,None,None"},
            "slices of the shard",
        ),
        ({"local_global_slices_pairs": "0,24,None#0,24,None"}, "does not describe its tensor"),
        ({"local_global_slices_pairs": "0,24,2|None,None,None#0,24,2|None,None,None"}, "does not describe"),
        ({"unsharded_shape": "(48, [24])"}, "unsharded_shape"),
        ({"unsharded_shape": "(96, 24)"}, "shards of .* are of different tensors"),
    ],
)
def test_slices_that_contradict_their_shard_are_refused(
    metadata: dict[str, str], message: str, tmp_path: Path
) -> None:
    run = copied(FIRST, tmp_path)
    restated(run / "10" / QKV / "model_weight_pp-rank-0-of-2_tp-rank-1-of-2.safetensors", **metadata)
    with pytest.raises(CkptconvError, match=message):
        open_checkpoint(run)


def test_two_ranks_that_hold_the_same_slices_are_refused(tmp_path: Path) -> None:
    run = copied(FIRST, tmp_path)
    one, two = sorted((run / "10" / QKV).iterdir())
    shutil.copy(one, two)
    with pytest.raises(CkptconvError, match="qkv_proj"):
        open_checkpoint(run)


def test_every_spelling_of_a_shape_is_read() -> None:
    for text in ("(96, 48)", "(np.int64(96), 48)", "(96,48,)", "(np.int64(96), np.int64(48))"):
        assert unsharded_shape({"unsharded_shape": text}, Path("x")) == (96, 48)


def test_a_shard_of_several_parts_goes_to_several_places() -> None:
    shard = stored("x", 0, (6, 4), "bfloat16")
    pairs = "0,4,None|None,None,None#4,8,None|0,4,None;4,6,1|None,None,None#10,12,None|None,None,None"
    found = parts({"local_global_slices_pairs": pairs}, (12, 4), shard, Path("x"))
    assert [(at, part.shape) for at, part in found] == [((4, 0), (4, 4)), ((10, 0), (2, 4))]


@pytest.mark.parametrize("naming", NANOTRON)
def test_the_rules_lead_back(naming: str) -> None:
    sizes = {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "num_hidden_layers": 1}
    given = {**config("llama_tied_tp2"), **sizes, "head_dim": 6, "intermediate_size": 14}
    numbers = np.arange(10_000, dtype=np.float32)
    shapes = {"q_proj": (30, 40), "k_proj": (6, 40), "v_proj": (6, 40), "o_proj": (40, 30)}
    hub = {
        f"model.layers.0.self_attn.{n}.weight": numbers[: a * b].reshape(a, b) for n, (a, b) in shapes.items()
    }
    trained = to_trained(naming, hub, given)
    back = to_hub(naming, trained, given)
    for name, named in back.tensors.items():
        assert (named.value.reshape(named.shape) == hub[name]).all(), name


@pytest.mark.parametrize(
    "setting",
    [{"rope_scaling": {"type": "linear"}}, {"sliding_window_size": 4}, {"moe_config": {"num_experts": 2}}],
)
def test_a_config_is_not_made_where_no_class_has_the_setting(setting: dict[str, Any], tmp_path: Path) -> None:
    run = copied("smollm3_tp1", tmp_path)
    edited(run / "10" / "model_config.json", **setting)
    assert hub_config(json.loads((run / "10" / "model_config.json").read_text())) is None
    with pytest.raises(CkptconvError, match=r"no config\.json found") as error:
        merge(run, tmp_path / "out")
    assert "model_config.json" in str(error.value.found)


def test_llama_before_the_key_rotates_neighbours(tmp_path: Path) -> None:
    run = copied(FIRST, tmp_path)
    path = run / "10" / "model_config.json"
    settings = json.loads(path.read_text())
    del settings["rope_interleaved"]
    path.write_text(json.dumps(settings))
    assert open_checkpoint(run).naming == "nanotron_interleaved"
    path.write_text(json.dumps({**settings, "rope_interleaved": False}))
    assert open_checkpoint(run).naming == "nanotron"


def test_a_file_of_two_tensors_is_refused(tmp_path: Path) -> None:
    run = copied("smollm3_tp1", tmp_path)
    path = run / "10" / "model/model/final_layer_norm/pp_block/model_weight.safetensors"
    one = np.zeros(4, np.float32)
    save_file({"data": one, "more": one}, path)
    with pytest.raises(CkptconvError, match="does not hold one tensor named data"):
        open_checkpoint(run)
