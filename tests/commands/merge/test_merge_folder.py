"""merge: the files of a model folder, its config, and that transformers loads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.helpers import (
    ROLE,
    assert_equal,
    edit_config,
    edit_json,
    own_copy,
    tensors,
)

from ckptconv.commands.merge.run import merge

Made = Callable[[str], Path]


# --- files


def test_a_file_is_the_one_that_safetensors_itself_would_write(made: Made, tmp_path: Path) -> None:
    """The whole file, header, order and padding included."""
    merge(made("fsdp2_bf16_w4"), tmp_path / "out", dtype="keep")
    ours = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert ours == (made("fsdp2_bf16_w4") / "hub" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("limit", ["5KB", "20KB", 30_000])
def test_shards_keep_to_the_limit_and_the_index_names_them(
    made: Made, tmp_path: Path, limit: int | str
) -> None:
    done = merge(made("fsdp2_w4"), tmp_path / "out", dtype="keep", max_shard_size=limit)
    out = tmp_path / "out"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) == len(done.plan.files) > 1
    most = limit if isinstance(limit, int) else int(limit[:-2]) * 1000
    for file in files:
        held = tensors(out / file)
        assert {name for name, where in index["weight_map"].items() if where == file} == set(held)
        assert len(held) == 1 or sum(len(t.data) for t in held.values()) <= most
    assert index["metadata"]["total_size"] == sum(len(t.data) for t in tensors(out).values())
    assert_equal(tensors(out), tensors(made("fsdp2_w4") / "hub"))


def test_one_file_has_no_index(made: Made, tmp_path: Path) -> None:
    merge(made("fsdp2_w4"), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.index.json"))
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]


def test_every_file_says_format_pt(made: Made, tmp_path: Path) -> None:
    """transformers refuses files without it."""
    from safetensors import safe_open

    merge(made("fsdp2_w4"), tmp_path / "out", max_shard_size="20KB")
    for path in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}


ASSETS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def test_assets_arrive_byte_for_byte(made: Made, tmp_path: Path) -> None:
    """Also those that a serialiser would write in another way, in subfolders, and code that is never run."""
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    source = run / ROLE / "huggingface"
    (source / "special_tokens_map.json").write_bytes(b'{ "eos_token" :"\\u003c/s>",\r\n\t"x":1.0e0 }')
    (source / "modeling_odd.py").write_bytes("raise SystemExit('run')  # é\n".encode("latin-1"))
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool.jinja").write_bytes(b"{{ x }}\n\n")
    edit_config(run, auto_map={"AutoConfig": "modeling_odd.Odd"})
    done = merge(run, tmp_path / "out", keep_config=True)
    copied = {str(p.relative_to(source)): p.read_bytes() for p in source.rglob("*") if p.is_file()}
    del copied["config.json"]
    assert set(done.assets) == set(copied) > set(ASSETS)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in copied} == copied
    assert json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"]


def test_weights_and_indexes_that_lie_beside_the_tokenizer_are_not_copied(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    for name in (
        "model-00001-of-00002.safetensors",
        "pytorch_model.bin",
        "model.safetensors.index.json",
        "ckptconv.json",
    ):
        (run / ROLE / "huggingface" / name).write_bytes(b"an old one")
    merge(run, tmp_path / "out")
    assert b"an old one" not in [p.read_bytes() for p in (tmp_path / "out").iterdir()]


def test_a_link_out_of_the_folder_is_not_followed(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    (tmp_path / "secret").write_text("secret")
    (run / ROLE / "huggingface" / "notes.txt").symlink_to(tmp_path / "secret")
    merge(run, tmp_path / "out")
    assert not (tmp_path / "out" / "notes.txt").exists()


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())  # type: ignore[no-any-return]


def test_the_config_says_the_dtype_of_the_weights_and_nothing_else_changes(
    made: Made, tmp_path: Path
) -> None:
    merge(made("fsdp2_w4"), tmp_path / "out", keep_config=True)
    before = config_of(made("fsdp2_w4") / ROLE / "huggingface")
    assert before["dtype"] == "float32"
    assert config_of(tmp_path / "out") == before | {"dtype": "bfloat16"}


def test_a_config_that_needs_no_change_keeps_its_own_bytes(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    file = run / ROLE / "huggingface" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=7))
    merge(run, tmp_path / "out", dtype="keep", keep_config=True)
    assert (tmp_path / "out" / "config.json").read_bytes() == file.read_bytes()


def test_readers_of_transformers_4_find_their_keys_and_the_trainers_stay(made: Made, tmp_path: Path) -> None:
    done = merge(made("fsdp2_w4"), tmp_path / "out")
    source = made("fsdp2_w4") / ROLE / "huggingface"
    before, after = config_of(source), config_of(tmp_path / "out")
    assert after["rope_theta"] == before["rope_parameters"]["rope_theta"]
    added = {"torch_dtype": "bfloat16", "rope_theta": after["rope_theta"]}
    assert after == before | {"dtype": "bfloat16"} | added
    text = (source / "tokenizer_config.json").read_text()
    assert "TokenizersBackend" in text
    old = text.replace("TokenizersBackend", "PreTrainedTokenizerFast")
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == old
    summary = done.plan.config_summary
    assert "rope_theta" in summary
    assert "TokenizersBackend is written as PreTrainedTokenizerFast" in summary
    assert json.loads((tmp_path / "out" / "ckptconv.json").read_text())["config"] == summary


def test_a_dtype_inside_a_vision_models_config_is_corrected_too(made: Made, tmp_path: Path) -> None:
    merge(made("qwen2_5_vl_w4"), tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert {config["dtype"], config["text_config"]["dtype"], config["vision_config"]["dtype"]} == {"bfloat16"}


def test_an_old_configs_torch_dtype_is_corrected_under_its_own_name(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    edit_config(run, dtype=None, torch_dtype="float32")
    merge(run, tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert (config.get("dtype"), config["torch_dtype"]) == (None, "bfloat16")


def test_a_critics_config_gets_its_class_and_its_one_label(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("critic_w2"), tmp_path / "run")
    edit_config(run, architectures=["Qwen2ForCausalLM"], id2label=None, label2id=None)
    done = merge(run, tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert config["architectures"] == ["Qwen2ForTokenClassification"]
    assert config["id2label"] == {"0": "LABEL_0"}
    assert config["label2id"] == {"LABEL_0": 0}
    assert any("score.weight" in note for note in done.plan.notes)


def test_a_head_that_differs_is_kept_and_the_config_says_untied(made: Made, tmp_path: Path) -> None:
    done = merge(made("fsdp2_untied_but_config_tied_w4"), tmp_path / "out", dtype="keep")
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is False
    assert "lm_head.weight" in tensors(tmp_path / "out")
    assert any("tie_word_embeddings is set to false" in note for note in done.plan.notes)


def test_a_tied_head_is_written_once_and_said(made: Made, tmp_path: Path) -> None:
    done = merge(made("fsdp2_tied_w4"), tmp_path / "out")
    assert "lm_head.weight" not in tensors(tmp_path / "out")
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is True
    assert [(d.name, d.reason) for d in done.plan.dropped] == [
        ("lm_head.weight", "tied: equal to model.embed_tokens.weight")
    ]


def test_missing_architectures_are_filled_in(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    edit_config(run, architectures=None)
    merge(run, tmp_path / "out")
    assert config_of(tmp_path / "out")["architectures"] == ["Qwen2ForCausalLM"]


# --- transformers loads it

LOADS = ("llama", "qwen3_moe", "gemma2", "phi3", "gpt_oss", "deepseek_v3", "mixtral", "olmoe")


@pytest.mark.parametrize("variant", ["fsdp2_tied_w4", *(f"arch_{model_type}_w2" for model_type in LOADS)])
def test_transformers_loads_it_without_a_missing_or_unexpected_key(
    made: Made, tmp_path: Path, variant: str
) -> None:
    from transformers import AutoModelForCausalLM

    merge(made(variant), tmp_path / "out", dtype="keep")
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {name: list(found) for name, found in info.items() if found} == {}
    truth = tensors(made(variant) / "truth.safetensors")
    loaded = {name: t.contiguous().numpy().tobytes() for name, t in model.state_dict().items()}
    assert loaded == {name: tensor.data for name, tensor in truth.items()}


@pytest.mark.parametrize("variant", ["qwen2_5_vl_w4", "arch_gemma3_w2", "arch_qwen3_5_moe_w2"])
def test_transformers_loads_a_vision_model(made: Made, tmp_path: Path, variant: str) -> None:
    from transformers import AutoModelForImageTextToText

    merge(made(variant), tmp_path / "out")
    _, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {name: list(found) for name, found in info.items() if found} == {}


def test_transformers_loads_a_critic_by_its_auto_class(made: Made, tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification

    merge(made("critic_w2"), tmp_path / "out", dtype="keep")
    model, info = AutoModelForTokenClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {name: list(found) for name, found in info.items() if found} == {}
    truth = tensors(made("critic_w2") / "truth.safetensors")
    assert model.score.weight.detach().numpy().tobytes() == truth["score.weight"].data


def test_the_config_option_brings_config_and_tokenizer(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    shutil.move(run / ROLE / "huggingface", tmp_path / "base")
    edit_json(tmp_path / "base" / "config.json", rope_theta=7)
    merge(run, tmp_path / "out", config=tmp_path / "base", keep_config=True)
    assert config_of(tmp_path / "out")["rope_theta"] == 7
    for name in ASSETS:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "base" / name).read_bytes()
