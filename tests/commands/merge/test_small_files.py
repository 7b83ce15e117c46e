"""The small files of a model folder: nothing comes along that changes what the folder is, and nothing is lost in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import support.peft_models as models
import torch
from safetensors.torch import save_file
from support.helpers import ROLE, cli, edit_config, own_copy
from transformers import AutoModelForCausalLM

from ckptconv import CkptconvError, merge

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
    assert "replace those of the model's folder" in note


def test_both_says_where_the_adapter_is_and_gives_it_the_tokenizer(made: Made, tmp_path: Path) -> None:
    ran = cli("merge", made("lora_w4"), tmp_path / "out", "--lora", "both", columns=300)
    assert ran.code == 0, ran.err
    assert "the adapter is written to lora_adapter/ with the tokenizer" in ran.flat
    model, adapter = (tmp_path / "out" / part / "tokenizer.json" for part in (".", "lora_adapter"))
    assert model.read_bytes() == adapter.read_bytes()


BESIDE = {
    "credentials.json": "{}",
    "id_rsa": "a key",
    "service-account.json": "{}",
    "train.py": "pass",
    "notes/plan.md": "text",
    "notes/tokenizer.json": "{}",
    "modeling_odd.py": "from .odd_parts import part\nfrom . import odd_more\n",
    "odd_parts.py": "from .deep.ops import op",
    "odd_more.py": "",
    "deep/ops.py": "",
    "named_by_config.py": "",
    "LICENSE": "text",
    "additional_chat_templates/tools.jinja": "text",
    "1_Pooling/config.json": "{}",
    "modules.json": "[]",
    "qwen.tiktoken": "text",
    "preprocessor_config.json": "{}",
}
OURS = {
    "modeling_odd.py",
    "odd_parts.py",
    "odd_more.py",
    "deep/ops.py",
    "named_by_config.py",
    "LICENSE",
    "additional_chat_templates/tools.jinja",
    "1_Pooling/config.json",
    "modules.json",
    "qwen.tiktoken",
    "preprocessor_config.json",
}


def with_files(made: Made, tmp_path: Path) -> Path:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    folder = run / ROLE / "huggingface"
    for name, text in BESIDE.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    edit_config(run, auto_map={"AutoModel": "named_by_config.Odd"})
    return run


def copied_of(out: Path) -> set[str]:
    return {name for name in BESIDE if (out / name).exists()}


def test_only_known_files_of_a_model_are_copied_and_the_others_are_listed(made: Made, tmp_path: Path) -> None:
    """A key or a token next to a checkpoint would be published by the next push."""
    done = merge(with_files(made, tmp_path), tmp_path / "out")
    assert copied_of(tmp_path / "out") == OURS
    assert set(done.left) == set(BESIDE) - OURS
    receipt = (tmp_path / "out" / "ckptconv.json").read_text()
    assert not [name for name in done.left if name in receipt]


def test_the_screen_names_what_was_left(made: Made, tmp_path: Path) -> None:
    ran = cli("merge", with_files(made, tmp_path), tmp_path / "out", columns=300)
    assert "credentials.json, id_rsa, notes/plan.md and 3 more: not known as files of a model" in ran.flat


def test_include_takes_more_files(made: Made, tmp_path: Path) -> None:
    run = with_files(made, tmp_path)
    assert cli("merge", run, tmp_path / "out", "--include", "train.py", "--include", "notes/*").code == 0
    assert copied_of(tmp_path / "out") == OURS | {"train.py", "notes/plan.md", "notes/tokenizer.json"}


def test_include_never_takes_weights_by_a_glob_nor_the_files_that_a_merge_writes(
    made: Made, tmp_path: Path
) -> None:
    assert merge(made("fsdp2_w4"), tmp_path / "first").target
    (tmp_path / "first" / "old.bin").write_text("old weights")
    (tmp_path / "first" / "notes.txt").write_text("text")
    merge(tmp_path / "first", tmp_path / "out", include=["*"], dtype="float32")
    assert (tmp_path / "out" / "notes.txt").exists()
    assert not (tmp_path / "out" / "old.bin").exists()
    header = (tmp_path / "out" / "model.safetensors").read_bytes()[:200]
    assert b"F32" in header
    merge(tmp_path / "first", tmp_path / "named", include=["old.bin"])
    assert (tmp_path / "named" / "old.bin").exists()


def test_include_that_fits_nothing_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(CkptconvError, match="--include matches no file"):
        merge(made("fsdp2_w4"), tmp_path / "out", include=["tokeniser*"])
