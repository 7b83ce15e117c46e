"""The layers files and config: small files that are broken, missing or edited, and a config.json of another model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from support.verify_tools import Made, edit_config

from ckptconv.commands.merge.run import merge
from ckptconv.commands.push.private import cleaned
from ckptconv.commands.verify import verify
from ckptconv.publish.receipt import RECEIPT, SMALL_FILES, hash_of

LLAMA = "arch_llama_w2"
Folder = Callable[[str], Path]


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_as_it_was_merged_has_nothing_to_report(merged: Folder) -> None:
    folder = merged(LLAMA)
    receipt = json.loads((folder / RECEIPT).read_text())
    small = {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    assert receipt[SMALL_FILES].keys() == small
    found = verify(folder)
    assert found.ok
    assert not found.is_edited
    assert found.layer("files") is None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", lambda path: edit_json(path, rms_norm_eps=0.5)),
        ("generation_config.json", lambda path: edit_json(path, eos_token_id=7)),
        ("tokenizer.json", lambda path: path.write_text(path.read_text() + "\n")),
        ("chat_template.jinja", lambda path: path.write_text("{{ messages }}")),
        ("chat_template.jinja", Path.unlink),
    ],
)
def test_a_small_file_that_is_not_as_it_was_merged_is_reported(
    merged: Folder, name: str, change: Callable[[Path], Any]
) -> None:
    folder = merged(LLAMA)
    change(folder / name)
    found = verify(folder)
    word = "changed" if (folder / name).exists() else "is missing"
    assert found.layer("files").ok is None
    assert f"{name} {word} since the merge, by {RECEIPT}" in found.layer("files").notes
    assert found.is_edited
    assert found.code == 0


def test_a_model_card_may_be_written_by_anybody(merged: Folder) -> None:
    folder = merged(LLAMA)
    (folder / "README.md").write_text("# a model\n")
    assert verify(folder).layer("files") is None


def test_a_receipt_of_an_older_version_states_nothing_about_small_files(merged: Folder) -> None:
    folder = merged(LLAMA)
    edit_json(folder / "config.json", rms_norm_eps=0.5)
    receipt = json.loads((folder / RECEIPT).read_text())
    del receipt[SMALL_FILES]
    (folder / RECEIPT).write_text(json.dumps(receipt))
    assert verify(folder).layer("files") is None


def test_a_push_that_takes_a_path_out_of_a_file_states_the_hash_of_what_it_sends(merged: Folder) -> None:
    folder = merged(LLAMA)
    edit_json(folder / "config.json", _name_or_path="/home/ann/base")
    receipt = json.loads((folder / RECEIPT).read_text())
    receipt[SMALL_FILES]["config.json"] = hash_of((folder / "config.json").read_bytes())
    (folder / RECEIPT).write_text(json.dumps(receipt))
    assert not verify(folder).is_edited
    sent = cleaned(folder, [path.name for path in folder.iterdir()])
    assert {name: each.removed for name, each in sent.items()} == {
        "config.json": ("_name_or_path",), RECEIPT: (),
    }  # fmt: skip
    for name, each in sent.items():
        (folder / name).write_text(each.text)
    assert not verify(folder).is_edited


def test_a_file_that_cannot_be_parsed_is_a_problem(merged: Folder) -> None:
    folder = merged(LLAMA)
    (folder / "generation_config.json").write_text("{")
    found = verify(folder).layer("files")
    assert found.ok is False
    assert [problem.name for problem in found.problems] == ["generation_config.json"]


def test_files_without_which_transformers_finds_no_weights_or_no_tokenizer_are_problems(
    made: Made, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    merge(made(LLAMA), folder, max_shard_size=20_000)
    assert verify(folder).ok
    (folder / "model.safetensors.index.json").unlink()
    (folder / "tokenizer.json").unlink()
    found = verify(folder)
    assert found.code == 1
    assert [problem.name for problem in found.layer("files").problems] == [
        "model.safetensors.index.json", "tokenizer.json",
    ]  # fmt: skip


def test_an_adapter_config_next_to_a_whole_model_is_a_problem(merged: Folder) -> None:
    folder = merged(LLAMA)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "other"}')
    (problem,) = verify(folder).layer("files").problems
    assert "loads the adapter's base" in problem.what


CODE = {"AutoConfig": "configuration_x.X", "AutoModel": "org/name--modeling_y.Y"}


def test_code_is_a_note_where_transformers_has_the_class_itself(merged: Folder) -> None:
    folder = merged(LLAMA)
    edit_config(folder, auto_map=CODE)
    (layer,) = (layer for layer in verify(folder).layers if layer.name == "files")
    assert layer.problems == ()
    assert any("configuration_x.py" in note and "trust_remote_code" in note for note in layer.notes)
    assert not any("modeling_y.py" in note for note in layer.notes)


def test_code_that_auto_map_names_has_to_be_there(merged: Folder) -> None:
    folder = merged(LLAMA)
    edit_config(folder, auto_map=CODE, model_type="own", architectures=["Own"])
    assert [problem.name for problem in verify(folder).layer("files").problems] == ["configuration_x.py"]
    (folder / "configuration_x.py").write_text("")
    assert verify(folder).layer("files").problems == ()


def test_weights_that_no_reader_of_the_index_opens_are_named(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    merge(made(LLAMA), folder, max_shard_size=20_000)
    stale = load_file(sorted(folder.glob("model-*.safetensors"))[0])
    save_file(stale, folder / "model-00001-of-00009.safetensors")
    found = verify(folder)
    assert found.ok
    assert any("model-00001-of-00009.safetensors" in note for note in found.layer("files").notes)


def test_token_ids_beyond_the_embedding_are_reported_as_in_a_merge(merged: Folder) -> None:
    folder = merged(LLAMA)
    edit_json(folder / "generation_config.json", eos_token_id=7000)
    assert any("eos_token_id 7,000" in note for note in verify(folder).layer("files").notes)


def test_a_quantisers_settings_next_to_a_plain_model_are_reported(merged: Folder) -> None:
    folder = merged(LLAMA)
    (folder / "quantize_config.json").write_text('{"bits": 4}')
    assert any("quantize_config.json is here" in note for note in verify(folder).layer("files").notes)


def test_a_class_of_another_type_is_a_problem_also_where_transformers_builds_it(merged: Folder) -> None:
    folder = merged(LLAMA)
    edit_config(folder, model_type="mistral")
    found = verify(folder)
    assert found.layer("loads").ok
    assert found.layer("model").ok is False


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        (LLAMA, {"rms_norm_eps": 0.5}),
        (LLAMA, {"rope_theta": 5.0, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}),
        (LLAMA, {"hidden_act": "relu"}),
        (LLAMA, {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 18}),
        ("arch_qwen3_moe_w2", {"num_experts_per_tok": 3}),
        ("arch_deepseek_v3_w2", {"routed_scaling_factor": 9.0}),
        ("arch_granite_w2", {"logits_scaling": 9.0}),
    ],
)
def test_a_config_that_computes_with_other_numbers_than_the_reference_is_a_problem(
    made: Made, merged: Folder, variant: str, changes: dict[str, Any]
) -> None:
    folder = merged(variant)
    assert verify(folder, against=made(variant)).layer("config") is None
    edit_config(folder, **changes)
    found = verify(folder, against=made(variant))
    assert found.layer("values").ok
    assert found.layer("config").ok is False
    assert {problem.name.partition(".")[0] for problem in found.layer("config").problems} <= changes.keys()
    assert found.code == 1


def test_settings_of_training_and_the_spelling_of_a_generation_are_no_difference(
    made: Made, merged: Folder
) -> None:
    folder = merged(LLAMA)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    config |= {
        "use_cache": False,
        "attention_dropout": 0.5,
        "torch_dtype": "float32",
        "transformers_version": "4.1",
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert verify(folder, against=made(LLAMA)).layer("config") is None


def test_other_token_ids_than_the_references_and_a_missing_rotary_base_are_notes(
    made: Made, merged: Folder
) -> None:
    folder = merged(LLAMA)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"], config["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 5}))
    found = verify(folder, against=made(LLAMA)).layer("config")
    assert found.ok
    assert found.notes == (
        "config.json has eos_token_id 5, the reference's has 2",
        "config.json lacks rope_theta, which the reference states: readers take the class's default",
    )


def test_a_quantization_config_without_codes_is_a_problem_with_a_reference_too(
    made: Made, merged: Folder
) -> None:
    folder = merged(LLAMA)
    edit_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    found = verify(folder, against=made(LLAMA)).layer("model")
    assert found.ok is False
    assert "no quantised tensor is stored" in found.problems[0].what
