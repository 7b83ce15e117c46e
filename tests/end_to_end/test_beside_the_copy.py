"""A class that the shipped data lacks is compared with the installed transformers while the weights are written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.helpers import save_ws1
from transformers import Qwen2Config, Qwen2ForCausalLM

from ckptconv import CkptconvError, merge
from ckptconv.commands.merge import beside_copy
from ckptconv.models import skeleton


@pytest.fixture(autouse=True)
def _no_data_and_no_short_copies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(skeleton, "_DATA", tmp_path / "none.zip")
    monkeypatch.setattr(beside_copy, "LONG", 0)
    monkeypatch.setattr(beside_copy, "_SECONDS", 900)  # a machine with other work
    _forget()
    yield
    _forget()


def _forget() -> None:
    for known in (skeleton.load, skeleton._packages, skeleton._archive):
        known.cache_clear()


def saved(folder: Path, *, without: str = "", **changes: object) -> Path:
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=41, hidden_size=20, intermediate_size=28, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    state = {
        n: t for n, t in Qwen2ForCausalLM(config).state_dict().items() if not without or without not in n
    }
    stated = {**config.to_dict(), "architectures": ["Qwen2ForCausalLM"], **changes}
    return save_ws1(state, stated, folder)


def test_a_whole_model_is_published_with_a_note_of_what_was_compared(tmp_path: Path) -> None:
    done = merge(saved(tmp_path / "run"), tmp_path / "model")
    assert any("names and shapes were compared with Qwen2ForCausalLM" in note for note in done.notes)
    assert (tmp_path / "model/config.json").is_file()


@pytest.mark.parametrize(
    ("without", "changes", "says"),
    [
        ("layers.1.mlp.up_proj", {}, r"are missing[\s\S]*layers\.1\.mlp\.up_proj\.weight"),
        ("", {"num_labels": 2, "architectures": ["Qwen2ForSequenceClassification"]}, r"names are not those"),
    ],
)
def test_a_model_that_is_not_whole_is_not_published(
    tmp_path: Path, without: str, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(CkptconvError, match=says):
        merge(saved(tmp_path / "run", without=without, **changes), tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_class_that_cannot_be_built_is_a_note(tmp_path: Path) -> None:
    done = merge(saved(tmp_path / "run", architectures=["Qwen2ForNothing"]), tmp_path / "model")
    assert any("could not tell the tensors of this class" in note for note in done.notes)
    assert json.loads((tmp_path / "model/config.json").read_text())["architectures"] == ["Qwen2ForNothing"]
