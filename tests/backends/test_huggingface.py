"""Folders of torch files: what merge makes of them is what transformers loads from them and saves, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from make.hf import model_of, save_bin
from support.helpers import assert_equal, assert_one_error, cli, opened, parse, tensors

from ckptconv import CkptconvError, merge
from ckptconv.backends import open_checkpoint


def by_transformers(folder: Path, target: Path) -> Path:
    """The folder as transformers itself turns it into safetensors."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder, dtype="auto").save_pretrained(target)
    return target


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ({}, None),
        ({}, "20KB"),
        ({"tie_word_embeddings": True}, None),
        ({"tie_word_embeddings": True}, "20KB"),
        ({"dtype": "bfloat16"}, "9KB"),
        ({"dtype": "float16"}, None),
        ({"dtype": "float64"}, None),
        ({"model_type": "gpt2", "n_embd": 42, "n_head": 3, "n_layer": 2}, None),
    ],
)
def test_a_folder_becomes_what_transformers_makes_of_it(
    tmp_path: Path, values: dict[str, Any], size: str | None
) -> None:
    source = save_bin(model_of(**values), tmp_path / "in", size)
    assert (len(list(source.glob("*.bin"))) > 2) == (size is not None)
    merge(source, tmp_path / "out", keep_config=True)
    assert_equal(tensors(tmp_path / "out"), tensors(by_transformers(source, tmp_path / "truth")))
    assert (tmp_path / "out" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert not list((tmp_path / "out").glob("*.bin*"))


def test_a_tied_head_is_written_once_and_one_that_differs_twice(tmp_path: Path) -> None:
    source = save_bin(model_of(tie_word_embeddings=True), tmp_path / "in")
    plan = merge(source, tmp_path / "out").plan
    assert "lm_head.weight" not in plan.outputs
    assert [(d.name, d.reason) for d in plan.dropped] == [
        ("lm_head.weight", "tied: equal to model.embed_tokens.weight")
    ]
    state = torch.load(source / "pytorch_model.bin")
    torch.save(state | {"lm_head.weight": state["lm_head.weight"] * 2}, source / "pytorch_model.bin")
    assert "lm_head.weight" in merge(source, tmp_path / "two").plan.outputs
    assert not json.loads((tmp_path / "two" / "config.json").read_text())["tie_word_embeddings"]


def odd_tensors() -> dict[str, torch.Tensor]:
    """Strided, offset, shared, padded, empty, scalar and expanded tensors of several dtypes."""
    base = torch.randn(7, 11)
    return {
        "plain": base,
        "again": base,
        "turned": base.t(),
        "window": torch.randn(5, 9, 4)[1:4, ::3, 1:],
        "rows_of_larger": torch.arange(1000, dtype=torch.int64)[37:50],
        "inner_of_shared": base[2:5, 3:7],
        "expanded": torch.randn(1, 3).expand(4, 3),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "counter": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "half": torch.randn(3, 5).half().t(),
        "brain": torch.randn(3, 5).bfloat16()[:, 1:4],
        "eighth": torch.randn(3, 5).to(torch.float8_e4m3fn),
        "none": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }


@pytest.mark.parametrize("wrapped", [(), ("state_dict",), ("module", "state_dict")])
def test_every_kind_of_tensor_is_read_as_torch_reads_it(tmp_path: Path, wrapped: tuple[str, ...]) -> None:
    from safetensors.torch import save

    content: Any = odd_tensors()
    wanted = {name: tensor.detach().contiguous().clone() for name, tensor in content.items()}
    for key in wrapped:
        content = {key: content, "epoch": 3, "optimizer": {"state": {0: torch.randn(50)}}, "args": tmp_path}
    torch.save(content, tmp_path / "model.pt")
    assert_equal(opened(tmp_path / "model.pt"), parse(save(wanted)))
    found = open_checkpoint(tmp_path / "model.pt")
    skipped = {item.what: item.nbytes for item in found.skipped}
    assert skipped["unused parts of storages in model.pt"] > (1000 - 13) * 8
    assert skipped.get("other entries of model.pt", 0) == 200 * len(wrapped)
    assert bool(found.notes) == bool(wrapped)
    assert not wrapped or "epoch, optimizer, args" in " ".join(found.notes)


def test_the_ledger_holds_with_shared_and_overlapping_tensors(tmp_path: Path) -> None:
    torch.save(odd_tensors(), tmp_path / "model.pt")
    (tmp_path / "config.json").write_text('{"model_type": "odd", "architectures": ["Odd"]}')
    merge(tmp_path / "model.pt", tmp_path / "out", dtype="keep")
    assert_equal(tensors(tmp_path / "out"), opened(tmp_path / "model.pt"))


def test_one_file_with_the_models_config(tmp_path: Path) -> None:
    model = model_of(tie_word_embeddings=True)
    folder = save_bin(model, tmp_path / "base")
    torch.save({"model": model.state_dict(), "step": 9}, tmp_path / "step9.pt")
    assert_one_error(
        cli("merge", tmp_path / "step9.pt", tmp_path / "out"), "no config.json", names=["--config"]
    )
    ran = cli("merge", tmp_path / "step9.pt", tmp_path / "out", "--config", folder, "--dtype", "keep")
    assert ran.code == 0, ran.err
    assert "not read: step" in ran.flat
    assert_equal(tensors(tmp_path / "out"), tensors(by_transformers(folder, tmp_path / "truth")))
    assert "state dict" in cli("inspect", tmp_path / "step9.pt").out
    assert cli("verify", tmp_path / "out", "--against", tmp_path / "step9.pt", "--config", folder).code == 0


def test_verify_against_the_torch_files(tmp_path: Path) -> None:
    source = save_bin(model_of(tie_word_embeddings=True), tmp_path / "in", "20KB")
    merge(source, tmp_path / "out")
    ran = cli("verify", tmp_path / "out", "--against", source)
    assert ran.code == 0, ran
    assert " checksums in " in ran.flat
    path = next(iter(sorted(source.glob("*00002*.bin"))))
    state = torch.load(path)
    state[next(iter(state))].view(-1)[0] += 1
    torch.save(state, path)
    assert cli("verify", tmp_path / "out", "--against", source).code == 1


def test_safetensors_come_before_torch_files(tmp_path: Path) -> None:
    source = save_bin(model_of(), tmp_path / "in")
    torch.save({"of": torch.ones(2)}, source / "pytorch_model.bin")
    by_transformers(save_bin(model_of(), tmp_path / "truth"), source)
    found = open_checkpoint(source)
    assert {Path(file.path).name for file in found.files} == {"model.safetensors"}
    assert any("not read: pytorch_model.bin" in note for note in found.notes)
    assert [item.what for item in found.skipped] == ["pytorch_model.bin"]


def test_an_adapter_as_old_peft_saved_it(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    model = get_peft_model(model_of(), LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "new")
    old = Path(shutil.copytree(tmp_path / "new", tmp_path / "old"))
    (old / "adapter_model.safetensors").unlink()
    torch.save(get_peft_model_state_dict(model), old / "adapter_model.bin")
    assert_equal(opened(old), opened(tmp_path / "new"))
    assert open_checkpoint(old).extras == open_checkpoint(tmp_path / "new").extras


# --- what is refused


def test_the_form_from_before_torch_1_6(tmp_path: Path) -> None:
    model_of().config.save_pretrained(tmp_path)
    torch.save({"a": torch.ones(3)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    ran = cli("inspect", tmp_path)
    assert_one_error(ran, "legacy", names=["pytorch_model.bin", "torch.save it again"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (torch.nn.Linear(2, 2), "no state dict"),
        ([torch.ones(2)], "no state dict"),
        ({"epoch": 3}, "no state dict"),
        ({"model": {"a": torch.ones(2)}, "state_dict": {"a": torch.ones(2)}}, "several state dicts"),
        ({"a": torch.ones(2), "b": [torch.ones(2)]}, "object of list"),
        ({"a": torch.ones(2), "b": {"c": torch.ones(2)}}, "object of dict"),
        ({"a": torch.ones(2), "b": torch.ones(2).to_sparse()}, "not a tensor"),
        ({"a": torch.ones(2), 3: torch.ones(2)}, "not a string"),
    ],
)
def test_files_of_something_else(tmp_path: Path, content: Any, says: str) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CkptconvError, match=says) as caught:
        open_checkpoint(tmp_path / "model.pt")
    assert "model.pt" in str(caught.value.where)


def test_modules_of_extra_state_and_counters_are_no_weights(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "a._extra_state": b"x", "n": 3, "none": None}, tmp_path / "model.pt")
    found = open_checkpoint(tmp_path / "model.pt")
    assert list(found.tensors) == ["a"]
    assert "a._extra_state, n, none" in found.notes[0]


def test_a_set_with_a_gap_and_no_index(tmp_path: Path) -> None:
    source = save_bin(model_of(), tmp_path / "in", "20KB")
    (source / "pytorch_model.bin.index.json").unlink()
    whole = opened(source)
    assert len(whole) == len(model_of().state_dict())
    shard = sorted(source.glob("*.bin"))[1]
    assert_one_error(cli("inspect", shard), "one file of a set", names=["name the folder"])
    shard.unlink()
    assert_one_error(cli("inspect", source), "1 of the .* are missing", code=1, names=["00002"])


def test_a_shard_that_the_index_names_is_not_there(tmp_path: Path) -> None:
    source = save_bin(model_of(), tmp_path / "in", "20KB")
    shard = sorted(source.glob("*.bin"))[1]
    shard.unlink()
    assert_one_error(cli("inspect", source), "named in the index is missing", code=1, names=[shard.name])


def test_a_model_beside_an_index_of_another(tmp_path: Path) -> None:
    model = model_of()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    by_transformers(save_bin(model, tmp_path / "truth"), tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_one_error(cli("inspect", tmp_path), "the folder has both", names=["model.safetensors.index.json"])
    assert cli("inspect", tmp_path / "model.safetensors").code == 0
