"""What holds of every layout: parts make up tensors, ranks and modules make up the checkpoint, the document is JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.helpers import FIXTURES, cli, unpacked

from ckptconv import inspect
from ckptconv.backends import open_checkpoint

Made = Callable[[str], Path]

PACKED = sorted(
    str(path.relative_to(FIXTURES)).removesuffix(".tar.xz")
    for kind in ("megatron/*", "megatron_fsdp/*", "deepspeed_*")
    for path in FIXTURES.glob(f"{kind}.tar.xz")
)
REFUSED = ("_moe_z", "_pipeline_")  # by DeepSpeed's backend; its tests say why
VARIANTS = (
    "ws1_fsdp1",
    "fsdp1_sharded_tensor_w4",
    "smalldims_w4",
    "buffers_w2",
    "lora_only_w2",
    "mixtral_w4",
)
DCP = ("dcp_tp_w4", "dcp_hsdp_w4", "dcp_accelerate_w2", "dcp_titan_w2", "dcp_hf_tp_w4")


def check(run: Path) -> None:
    """Everything that `inspect` says in numbers, held against the checkpoint itself."""
    tensors = open_checkpoint(run).tensors
    found = inspect(run, tensor="*", tree=True)
    assert found.matches is not None
    assert found.tree is not None
    assert found.next is not None
    names = [name for match in found.matches for name in match.names]
    assert sorted(names) == sorted(tensors)
    for match in found.matches:
        stored = tensors[match.names[0]]
        used = sum(part.nbytes for part in match.parts if not part.copy)
        copies = sum(part.nbytes for part in match.parts if part.copy)
        assert (used, copies) == (stored.view.nbytes, stored.replica_bytes), match.pattern
        assert {part.file for part in match.parts if not part.copy} == set(stored.view.files)
    assert sum(row.nbytes for row in found.rows) == found.nbytes == found.tree.nbytes
    assert sum(rank.nbytes for rank in found.ranks) == found.nbytes
    assert sum(rank.copies for rank in found.ranks) == found.replica_bytes
    for part, shares in zip(
        found.parts, zip(*(rank.parts for rank in found.ranks), strict=True), strict=True
    ):
        whole = found.replica_bytes == 0
        assert sum(shares) == pytest.approx(1) if whole else sum(shares) >= 0.999, part


def finite(document: str) -> object:
    """JSON as others read it: no NaN, no Infinity."""

    def refuse(word: str) -> Iterator[None]:
        raise AssertionError(word)

    return json.loads(document, parse_constant=refuse)


@pytest.mark.parametrize("case", [case for case in PACKED if not any(word in case for word in REFUSED)])
def test_packed(case: str) -> None:
    check(unpacked(case) / "run")


@pytest.mark.parametrize("variant", VARIANTS)
def test_made(made: Made, variant: str) -> None:
    check(made(variant))


@pytest.mark.parametrize("variant", DCP)
def test_distributed_checkpoints(made: Made, variant: str) -> None:
    check(made(variant) / "run")


@pytest.mark.parametrize("fixture", ["torch_2_4", "torch_2_6", "torch_2_8"])
def test_older_torch(fixture: str) -> None:
    for run in sorted(path.parent for path in (FIXTURES / fixture).glob("*/model_world_size_*_rank_0.pt")):
        check(run)


def test_folders_of_models(made: Made) -> None:
    for run in (made("fsdp2_w4") / "hub", made("lora_w4") / "adapter", made("qwen3_moe_w4") / "hub"):
        check(run)


@pytest.mark.parametrize("case", ["torchtitan_0_3", "deepspeed_z2_fp32_w4", "megatron/qwen2_5_vl_tp2"])
def test_the_document_is_json(case: str) -> None:
    run = unpacked(case) / ("llama/run" if "titan" in case else "run")
    found = finite(cli("inspect", run, "--tensor", "*", "--tree", "--json").out)
    assert isinstance(found, dict)
    assert {
        "matches",
        "tree",
        "next",
        "saved_by",
        "heads",
        "lora",
        "skipped",
        "optimizer_bytes",
        "step",
    } <= set(found)
