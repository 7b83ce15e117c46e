"""Shapes and configs that do not fit, in one clear error."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bad_tools import refused
from support.helpers import (
    ROLE,
    assert_equal,
    assert_one_error,
    cli,
    edit_config,
    own_copy,
    rank_file,
    save_ws1,
    tensors,
)

Made = Callable[[str], Path]


def test_shapes_that_disagree(made: Made, tmp_path: Path, place: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    shutil.copy(rank_file(made("fsdp2_tp_even_w4"), 1), rank_file(run, 1))
    refused(
        run,
        place,
        r"ranks disagree on model\.embed_tokens\.weight",
        names=("[104, 28]", "[101, 27]", "rank 1"),
    )


def test_slices_that_leave_a_hole(made: Made, tmp_path: Path, place: Path) -> None:
    """Rank 1's slices twice, rank 2's nowhere."""
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    shutil.copy(rank_file(run, 1), rank_file(run, 2))
    refused(
        run, place, r"rank 1 and rank 2 hold the same rank's shards", names=("model_world_size_4_rank_2.pt",)
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("vocab_size", 102), ("hidden_size", 28), ("num_hidden_layers", 3), ("num_hidden_layers", 1)],
)
def test_a_config_that_does_not_fit(made: Made, tmp_path: Path, place: Path, key: str, value: int) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    edit_config(run, **{key: value})
    refused(run, place, r"json does not match these tensors", names=(f"{key} {value}", "--config"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("intermediate_size", 38),
        ("num_key_value_heads", 9),
        ("num_attention_heads", 3),
        ("head_dim", 7),
    ],
)
def test_a_config_whose_heads_or_mlp_do_not_fit(
    made: Made, tmp_path: Path, place: Path, key: str, value: int
) -> None:
    """transformers would not load such a folder."""
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    edit_config(run, **{key: value})
    refused(run, place, r"json does not match these tensors", names=("--config",))


def test_no_config_at_all(made: Made, tmp_path: Path, place: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    shutil.rmtree(run / ROLE / "huggingface")
    refused(run, place, r"no config\.json", names=("--config DIR",))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\x01"])
def test_a_config_that_is_no_json_table(made: Made, tmp_path: Path, place: Path, text: str) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    (run / ROLE / "huggingface" / "config.json").write_text(text)
    refused(run, place, r"config\.json", names=("config.json",))
    assert_one_error(cli("inspect", run), r"config\.json")


@pytest.mark.parametrize(
    "values",
    [
        {"architectures": "Qwen2ForCausalLM"},
        {"architectures": [3]},
        {"num_hidden_layers": "two"},
        {"vocab_size": None},
        {"text_config": 7},
        {"model_type": ["qwen2"]},
        {"dtype": 7},
        {"id2label": [1]},
    ],
    ids=str,
)
def test_a_config_of_odd_values_is_an_error_or_harmless(
    made: Made, tmp_path: Path, place: Path, values: dict[str, Any]
) -> None:
    run = own_copy(made("critic_w2"), tmp_path / "run")
    edit_config(run, **values)
    for words in (("merge", run, place / "out", "--dtype", "keep"), ("inspect", run)):
        ran = cli(*words)
        assert "unexpected error" not in ran.err, ran.err
    assert ran.code == 0
    if (place / "out").exists():
        assert_equal(tensors(place / "out"), tensors(made("critic_w2") / "hub"))


def test_experts_under_the_config_of_a_model_without_experts(tmp_path: Path) -> None:
    """Equal sizes, another kind of model: it would load with every expert missing."""
    experts = {f"model.layers.0.mlp.experts.{i}.up_proj.weight": torch.zeros(3, 4) for i in range(2)}
    config = {"model_type": "qwen2", "vocab_size": 5, "hidden_size": 4, "num_hidden_layers": 1}
    folder = save_ws1({"model.embed_tokens.weight": torch.zeros(5, 4), **experts}, config, tmp_path / "run")
    ran = cli("merge", folder, tmp_path / "out")
    assert_one_error(ran, says="the names are not those of Qwen2ForCausalLM", names=["experts.0.up_proj"])
    assert not (tmp_path / "out").exists()
