"""merge: the receipt, and a target that is written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import (
    ROLE,
    own_copy,
    state,
    tensors,
)

from ckptconv.commands.merge.run import merge
from ckptconv.commands.progress import Progress
from ckptconv.errors import CkptconvError

Made = Callable[[str], Path]


# --- the receipt


def test_the_receipt_says_where_every_tensor_came_from(made: Made, tmp_path: Path) -> None:
    merge(made("fsdp2_tied_w4"), tmp_path / "out", max_shard_size="20KB")
    receipt = json.loads((tmp_path / "out" / "ckptconv.json").read_text())
    assert receipt["source"]["backend"] == "fsdp"
    assert (receipt["source"]["step"], receipt["source"]["role"]) == (7, "actor")
    assert (receipt["source"]["world_size"], receipt["source"]["mesh"]) == (4, ["fsdp 4"])
    assert receipt["source"]["folder"] == ROLE
    assert [(d["name"], d["reason"]) for d in receipt["dropped"]] == [
        ("lm_head.weight", "tied: equal to model.embed_tokens.weight")
    ]
    held = tensors(tmp_path / "out")
    assert {n: (t["dtype"], t["shape"], t["stored"]) for n, t in receipt["tensors"].items()} == {
        name: ("bfloat16", list(t.shape), "float32") for name, t in held.items()
    }
    assert all(t["from"] == [name] and t["ranks"] == [0, 1, 2, 3] for name, t in receipt["tensors"].items())
    assert receipt["files"] == {p.name: p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors")}


def test_the_receipts_hashes_are_those_of_the_written_bytes(made: Made, tmp_path: Path) -> None:
    import xxhash

    merge(made("qwen3_moe_w4"), tmp_path / "out")
    receipt = json.loads((tmp_path / "out" / "ckptconv.json").read_text())
    assert receipt["hash"] == "xxh3-128/4MiB"
    assert {n: t["hash"] for n, t in receipt["tensors"].items()} == {
        name: xxhash.xxh3_128_hexdigest(t.data) for name, t in tensors(tmp_path / "out").items()
    }


def test_the_receipt_holds_no_path_of_this_machine(made: Made, tmp_path: Path) -> None:
    merge(made("lora_w4"), tmp_path / "out", max_shard_size="20KB")
    text = (tmp_path / "out" / "ckptconv.json").read_text()
    assert str(tmp_path) not in text
    assert str(made("lora_w4").parent) not in text


def test_a_merge_is_repeatable_byte_for_byte(made: Made, tmp_path: Path) -> None:
    merge(made("lora_w4"), tmp_path / "one", workers=1)
    merge(made("lora_w4"), tmp_path / "two", workers=4)
    assert state(tmp_path / "one") == state(tmp_path / "two")


# --- the target


def test_a_target_that_is_there_is_refused_and_stays(made: Made, tmp_path: Path) -> None:
    merge(made("fsdp2_w4"), tmp_path / "out")
    before = state(tmp_path)
    with pytest.raises(CkptconvError, match="OUT already exists") as error:
        merge(made("fsdp2_tied_w4"), tmp_path / "out")
    assert "--overwrite" in str(error.value.hint)
    assert state(tmp_path) == before


def test_overwrite_leaves_nothing_of_the_old_model(made: Made, tmp_path: Path) -> None:
    merge(made("fsdp2_w4"), tmp_path / "out", max_shard_size="20KB")
    (tmp_path / "out" / "left.txt").write_text("over")
    merge(made("fsdp2_tied_w4"), tmp_path / "out", overwrite=True)
    merge(made("fsdp2_tied_w4"), tmp_path / "alone")
    assert state(tmp_path / "out") == state(tmp_path / "alone")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "alone"}


def test_overwrite_does_not_replace_a_folder_that_is_no_model(made: Made, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years")
    with pytest.raises(CkptconvError, match="not a model folder"):
        merge(made("fsdp2_w4"), tmp_path / "thesis", overwrite=True)
    assert state(tmp_path) == {"thesis": "", "thesis/chapter1.txt": hashlib.sha256(b"years").hexdigest()}


def test_an_overwrite_that_fails_leaves_the_old_model(made: Made, tmp_path: Path) -> None:
    merge(made("fsdp2_w4"), tmp_path / "out")
    before = state(tmp_path)

    def fail(step: Progress) -> None:
        if step.done:
            raise CkptconvError("on the way")

    with pytest.raises(CkptconvError, match="on the way"):
        merge(made("fsdp2_tied_w4"), tmp_path / "out", overwrite=True, on_progress=fail)
    assert state(tmp_path) == before


def test_an_empty_folder_is_a_fine_target(made: Made, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    merge(made("fsdp2_w4"), tmp_path / "out")
    assert tensors(tmp_path / "out")


def test_missing_parents_are_made(made: Made, tmp_path: Path) -> None:
    merge(made("fsdp2_w4"), tmp_path / "a" / "b" / "out")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["out"]


def test_a_linked_target_is_written_where_the_link_leads(made: Made, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    merge(made("fsdp2_w4"), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert tensors(tmp_path / "disk")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (".", "OUT contains the checkpoint"),
        *((target, "not a model folder") for target in (ROLE, "global_step_7", f"{ROLE}/huggingface/../")),
    ],
)
def test_a_target_that_is_the_source_or_holds_it_is_refused(
    made: Made, tmp_path: Path, target: str, says: str
) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    before = state(tmp_path)
    with pytest.raises(CkptconvError, match=says):
        merge(run, run / target, overwrite=True)
    assert state(tmp_path) == before


@pytest.mark.parametrize("option", ["config", "base"])
def test_a_target_that_holds_the_config_or_the_base_is_refused(
    made: Made, tmp_path: Path, option: str
) -> None:
    """--overwrite would put the finished model in their place."""
    variant = "fsdp2_w4" if option == "config" else "lora_only_w2"
    run = own_copy(made(variant), tmp_path / "run")
    shutil.copytree(made("lora_w4") / "base", tmp_path / "base")
    before = state(tmp_path)
    with pytest.raises(CkptconvError, match="OUT contains the checkpoint"):
        merge(run, tmp_path / "base", overwrite=True, **{option: tmp_path / "base"})
    assert state(tmp_path) == before


def test_a_target_that_appears_during_the_merge_is_not_replaced(made: Made, tmp_path: Path) -> None:
    target = tmp_path / "out"

    def appear(*_: object) -> None:
        target.mkdir(exist_ok=True)
        (target / "config.json").write_text("somebody else's")

    with pytest.raises(CkptconvError, match="already exists"):
        merge(made("fsdp2_w4"), target, on_progress=appear)
    assert state(tmp_path) == {"out": "", "out/config.json": hashlib.sha256(b"somebody else's").hexdigest()}


def test_a_dry_run_writes_nothing(made: Made, tmp_path: Path) -> None:
    done = merge(made("lora_w4"), tmp_path / "a" / "out", dry_run=True)
    assert done.dry_run
    assert done.plan.nbytes > 0
    assert state(tmp_path) == {}


def test_options_may_be_given_as_words(made: Made, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        merge(made("fsdp2_w4"), tmp_path / "out", dtypes="keep")


def test_max_memory_bounds_the_buffers_and_too_little_is_refused(made: Made, tmp_path: Path) -> None:
    done = merge(made("fsdp2_w4"), tmp_path / "out", max_memory=32 << 20, workers=64)
    assert 0 < done.buffers <= 32 << 20
    with pytest.raises(CkptconvError, match="too small") as error:
        merge(made("fsdp2_w4"), tmp_path / "none", max_memory=1 << 20)
    assert "--max-memory" in str(error.value.hint)


@pytest.mark.parametrize("check_replicas", [False, True])
def test_plain_tensors_that_differ_between_ranks_are_refused(tmp_path: Path, check_replicas: bool) -> None:
    import torch

    role = tmp_path / "run" / "global_step_1" / "actor"
    (role / "huggingface").mkdir(parents=True)
    (role / "huggingface" / "config.json").write_text('{"model_type": "odd"}')
    for rank in range(2):
        torch.save({"w": torch.tensor([1.0, 2.0, 3.0 + rank])}, role / f"model_world_size_2_rank_{rank}.pt")
    with pytest.raises(CkptconvError, match="copies of w differ") as error:
        merge(tmp_path / "run", tmp_path / "checked", check_replicas=check_replicas)
    assert "first at [2]" in str(error.value.found)
    assert not (tmp_path / "checked").exists()
