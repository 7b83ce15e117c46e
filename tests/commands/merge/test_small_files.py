"""The small files of a model folder: nothing comes along that changes what the folder is, and nothing is lost in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import support.peft_models as models
import torch
from safetensors.torch import save_file
from support.helpers import ROLE, cli, own_copy
from transformers import AutoModelForCausalLM

from ckptconv import merge

Made = Callable[[str], Path]


@pytest.mark.parametrize("name", ["adapter_config.json", "lora_train_meta.json", "quantize_config.json"])
def test_a_file_that_makes_the_folder_something_else_does_not_come_along(
    made: Made, tmp_path: Path, name: str
) -> None:
    """transformers looks for adapter_model.safetensors where it sees the first; vLLM takes the last for GPTQ."""
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    stated = {"peft_type": "LORA", "base_model_name_or_path": "gone", "bits": 4, "r": 1}
    (run / ROLE / "huggingface" / name).write_text(json.dumps(stated))
    merge(run, tmp_path / "out")
    assert not (tmp_path / "out" / name).exists()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out") is not None


def test_a_module_of_sentence_transformers_comes_along_and_another_model_is_named(
    made: Made, tmp_path: Path
) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    beside = run / ROLE / "huggingface"
    for folder in ("2_Dense", "reranker"):
        (beside / folder).mkdir()
        (beside / folder / "config.json").write_text("{}")
        save_file({"linear.weight": torch.ones(2, 3)}, beside / folder / "model.safetensors")
    ran = cli("merge", run, tmp_path / "out", columns=300)
    assert ran.code == 0, ran.err
    assert "2_Dense/model.safetensors is copied as it is" in ran.flat
    assert (
        "not copied, since it is not part of the model's own weights: reranker/model.safetensors" in ran.flat
    )
    copied, own = (folder / "2_Dense" / "model.safetensors" for folder in (tmp_path / "out", beside))
    assert copied.read_bytes() == own.read_bytes()
    assert not (tmp_path / "out" / "reranker" / "model.safetensors").exists()


def test_the_adapters_tokenizer_replaces_that_of_the_base_with_a_note(tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, target_modules=["q_proj"])
    for folder, text in ((trained.base, "old"), (trained.adapter, "new")):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_text(json.dumps({"from": text}))
    (trained.base / "added_tokens.json").write_text('{"old": 1}')
    (trained.adapter / "chat_template.jinja").write_text("new")
    done = merge(trained.adapter, tmp_path / "out", base=trained.base)
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text()) == {"from": "new"}
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "new"
    assert not (tmp_path / "out" / "added_tokens.json").exists()
    (note,) = [note for note in done.plan.notes if "tokenizer" in note]
    assert "replace the base model's" in note


def test_both_says_where_the_adapter_is_and_gives_it_the_tokenizer(made: Made, tmp_path: Path) -> None:
    ran = cli("merge", made("lora_w4"), tmp_path / "out", "--lora", "both", columns=300)
    assert ran.code == 0, ran.err
    assert "the adapter is written to lora_adapter/ with the tokenizer" in ran.flat
    model, adapter = (tmp_path / "out" / part / "tokenizer.json" for part in (".", "lora_adapter"))
    assert model.read_bytes() == adapter.read_bytes()
