"""`merge --ray` writes what a merge on one machine writes, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import state, unpacked

from ckptconv.commands.merge.run import merge
from ckptconv.commands.progress import Progress

pytestmark = pytest.mark.xdist_group("ray")  # one cluster for all

CHECKPOINTS: dict[str, tuple[Callable[[Callable[[str], Path]], Path], str, str | None]] = {
    "fsdp": (lambda made: made("fsdp2_w4"), "5KB", None),
    "dcp": (lambda made: made("dcp_tp_w4") / "run", "5KB", None),
    "megatron": (lambda made: unpacked("megatron/qwen2_tp2"), "20KB", None),
    "lora": (lambda made: made("lora_w4"), "20KB", "both"),  # with a file in a folder of its own
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_the_result_is_the_same(
    connected: str, made: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    source, size, lora = CHECKPOINTS[kind]
    told: list[Progress] = []
    local = merge(source(made), tmp_path / "local", max_shard_size=size, lora=lora)
    far = merge(
        source(made), tmp_path / "far", max_shard_size=size, lora=lora, ray=connected, on_progress=told.append
    )
    assert len(far.plan.files) > 2
    assert state(tmp_path / "far") == state(tmp_path / "local")
    assert told[-1].done == told[-1].total == far.plan.nbytes
    assert far.read == local.read
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "local"]
