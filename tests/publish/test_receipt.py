"""publish/receipt.py: ckptconv.json says where every tensor came from, and its hashes are those of the written bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from support.helpers import ROLE, state, tensors

from ckptconv.commands.merge.run import merge

Made = Callable[[str], Path]


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
