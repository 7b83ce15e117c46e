"""Multi-token prediction layers in real Megatron checkpoints: kept under the Hub's names, or dropped and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - numpy learns bfloat16
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.helpers import cli, tensors, unpacked

from ckptconv import merge, verify
from ckptconv.backends import open_checkpoint
from ckptconv.read.reader import read_numpy, same_values

CASES = {
    "deepseek_v3_mtp_mcb": "model.layers.2.",
    "deepseek_v3_mtp_mlm_legacy": "model.layers.2.",
    "glm4_moe_mtp_mcb": "model.layers.2.",
    "glm4_moe_lite_mtp_mcb": "model.layers.2.",
    "mimo_tp2": "model.mtp_layers.0.",
}


def merged(case: str, out: Path, **choices: Any) -> Any:
    home = unpacked(f"megatron/{case}")
    return merge(home / "run", out, config=home / "hf", **choices)


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_dropped_layers_are_in_the_ledger_and_out_of_the_config(case: str, tmp_path: Path) -> None:
    result = merged(case, tmp_path / "out", mtp="drop")
    truth = tensors(unpacked(f"megatron/{case}") / "hf")
    left = {name for name in truth if not name.startswith(CASES[case])}
    assert 0 < len(left) < len(truth)
    assert set(tensors(tmp_path / "out")) == left
    assert config(tmp_path / "out")["num_nextn_predict_layers"] == 0
    assert "num_nextn_predict_layers is set to 0: no MTP layers are written" in result.plan.notes
    dropped = [item for item in result.plan.dropped if item.reason == "an MTP layer (--mtp drop)"]
    stored = open_checkpoint(unpacked(f"megatron/{case}") / "run").tensors
    assert {item.name for item in dropped} == {name for name in stored if name.startswith("mtp.")}


@pytest.mark.parametrize("case", CASES)
def test_kept_layers_leave_the_config_as_it_was(case: str, tmp_path: Path) -> None:
    result = merged(case, tmp_path / "out")
    assert config(tmp_path / "out")["num_nextn_predict_layers"] == 1
    copies = {output.name: output.repeats for output in result.plan.outputs.values() if output.repeats}
    layer = CASES[case]
    wanted = {
        f"{layer}embed_tokens.weight": "model.embed_tokens.weight",
        f"{layer}shared_head.head.weight": "lm_head.weight",
    }
    assert copies == ({} if case == "mimo_tp2" else wanted)
    assert any("written twice" in note for note in result.plan.notes) == bool(copies)


@pytest.mark.parametrize("mtp", ["keep", "drop"])
@pytest.mark.parametrize("case", ["deepseek_v3_mtp_mcb", "glm4_moe_mtp_mcb", "glm4_moe_lite_mtp_mcb"])
def test_verify_knows_them(case: str, mtp: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    merged(case, tmp_path / "out", mtp=mtp)
    assert {layer.name: layer.ok for layer in verify(tmp_path / "out").layers if layer.ok is False} == {}


def test_verify_still_minds_a_layer_that_the_config_does_not_count(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    merged("glm4_moe_mtp_mcb", tmp_path / "out")
    wrong = {**config(tmp_path / "out"), "num_nextn_predict_layers": 0}
    (tmp_path / "out" / "config.json").write_text(json.dumps(wrong))
    names = next(layer for layer in verify(tmp_path / "out").layers if layer.name == "names")
    assert names.ok is False
    assert any("model.layers.2." in problem.name for problem in names.problems)


@pytest.mark.parametrize("mtp", ["keep", "drop"])
def test_layers_that_the_config_counts_and_nobody_stored_are_said(mtp: str, tmp_path: Path) -> None:
    """As verl leaves them: MTP is off in training, and the config is the base model's."""
    home = unpacked("megatron/kimi_k2_mcb")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(
        json.dumps({**config(home / "hf"), "num_nextn_predict_layers": 1})
    )
    result = merge(home / "run", tmp_path / "out", config=tmp_path / "hf", mtp=mtp)
    said = [note for note in result.plan.notes if "the config counts 1 MTP layer, and none is stored" in note]
    assert len(said) == (mtp == "keep")
    assert config(tmp_path / "out")["num_nextn_predict_layers"] == (mtp == "keep")


def test_mimos_projection_reads_the_hidden_state_first(tmp_path: Path) -> None:
    """Megatron's eh_proj reads [embedding, hidden state], MiMo's input_proj [hidden state, embedding]."""
    merged("mimo_tp2", tmp_path / "out", dtype="keep")
    stored = open_checkpoint(unpacked("megatron/mimo_tp2") / "run").tensors["mtp.layers.0.eh_proj.weight"]
    embedding, hidden = np.split(read_numpy(stored.view), 2, axis=1)
    made = load_file(tmp_path / "out" / "model.safetensors")["model.mtp_layers.0.input_proj.weight"]
    assert np.array_equal(made, np.concatenate([hidden, embedding], axis=1).view(made.dtype))


def test_the_last_stages_embedding_is_a_copy_not_a_second_tensor() -> None:
    found = open_checkpoint(unpacked("megatron/deepseek_v3_mtp_mlm_legacy") / "run").tensors
    embedding = found["embedding.word_embeddings.weight"]
    assert len(embedding.replicas) == 1
    assert same_values(embedding.view, embedding.replicas[0][1])
    assert found["mtp.layers.0.eh_proj.weight"].view.shape == (20, 40)  # cut over TP, unlike the norms


def test_the_option_on_the_command_line(tmp_path: Path) -> None:
    home = unpacked("megatron/mimo_tp2")
    ran = cli("merge", "--mtp", "drop", "--config", home / "hf", home / "run", tmp_path / "out")
    assert ran.code == 0
    assert not any("mtp" in name for name in tensors(tmp_path / "out"))
    wrong = cli("merge", "--mtp", "maybe", "--config", home / "hf", home / "run", tmp_path / "other")
    assert (wrong.code, wrong.errors[0]) == (2, "error: --mtp does not accept maybe")
