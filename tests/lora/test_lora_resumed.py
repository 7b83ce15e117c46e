"""A run that is taken up again: files of another plan over the same checkpoint are not taken over."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import support.peft_models as models
import torch
from safetensors.torch import load_file
from support.helpers import edit_json, environment

from ckptconv.commands.merge.run import merge
from ckptconv.commands.merge.sources import fingerprint
from ckptconv.compute.sources import (
    Added,
    Computed,
    Decomposed,
    Dequantised,
    Fuse,
    Lengths,
    Rewritten,
    Scaled,
    Scales,
    Shift,
    Summed,
)
from ckptconv.tensors.view import View, stored

KILLED = """
import os, signal, sys
from ckptconv.commands.merge.run import merge
import ckptconv.commands.merge.small_files as small
small.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
merge(sys.argv[1], sys.argv[2], base=sys.argv[3], max_shard_size="2KB", workers=1)
"""


def test_other_token_rows_are_not_taken_over_from_a_killed_run(tmp_path: Path) -> None:
    """Only adapter_config.json tells which rows the trained tokens replace: files and shapes stay as they are."""
    trained = models.train(
        models.qwen2(), tmp_path, target_modules=["q_proj"], trainable_token_indices=[3, 40, 7]
    )
    words = [sys.executable, "-c", KILLED, *map(str, (trained.adapter, tmp_path / "out", trained.base))]
    assert subprocess.run(words, env=environment(), timeout=60, check=False).returncode == -signal.SIGKILL
    edit_json(trained.adapter / "adapter_config.json", trainable_token_indices=[5, 1, 9])
    done = merge(trained.adapter, tmp_path / "out", base=trained.base, max_shard_size="2KB", workers=1)
    assert not done.resumed
    found: dict[str, torch.Tensor] = {}
    for path in (tmp_path / "out").glob("*.safetensors"):
        found |= load_file(path)
    began, after = (
        each["model.embed_tokens.weight"] for each in (load_file(trained.base / "model.safetensors"), found)
    )
    changed = (began != after).any(dim=1).nonzero().flatten()
    assert changed.tolist() == [1, 5, 9]


def one(start: int = 0) -> View:
    return stored("file", start, (4, 4), "float32")


SOURCES: list[Computed] = [
    Dequantised(one(), scales=Scales(one(64), (2, 2), "bfloat16")),
    Rewritten(one(), one(64), (1, 2)),
    Shift(one(), 1.0),
    Scaled(one(), 2.0),
    Summed(one(), (one(64),)),
    Added(one(), one(64), 2.0),
    Fuse(one(), one(64), one(128), 2.0),
    Decomposed(one(), one(64), one(128), 2.0, one(192)),
]


def other(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, View):
        return value._replace(chunks=(*value.chunks, value.chunks[0]._replace(start=999)))
    if isinstance(value, Scales):
        return value._replace(block=(4, 2))
    if value is None:
        return Scales(one(256), (1, 1), "float32")
    if isinstance(value, tuple) and isinstance(value[-1], View):
        return (*value[:-1], other(value[-1]))
    if isinstance(value, tuple):
        return (*value[:-1], value[-1] + 1)
    return not value if isinstance(value, bool) else value + 1


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
def test_every_field_of_a_source_makes_another_plan(source: Computed, tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, target_modules=["q_proj"])
    plan = merge(trained.adapter, tmp_path / "out", base=trained.base, dry_run=True).plan
    name, output = next(iter(plan.outputs.items()))

    def of(filled: Computed) -> str:
        return fingerprint(replace(plan, outputs={**plan.outputs, name: output._replace(source=filled)}), {})

    assert of(source) == of(replace(source))
    for field in fields(source):
        value = getattr(source, field.name)
        if not isinstance(value, Lengths):  # a cache
            changed = replace(source, **{field.name: other(value)})
            assert of(changed) != of(source), field.name


def test_every_kind_of_source_is_among_them() -> None:
    kinds = {each.__name__ for parent in (Computed, Fuse) for each in parent.__subclasses__()}
    assert {type(each).__name__ for each in SOURCES} == kinds


def test_the_last_piece_of_a_view_counts_too(tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, target_modules=["q_proj"])
    plan = merge(trained.adapter, tmp_path / "out", base=trained.base, dry_run=True).plan
    name, output = next((n, o) for n, o in plan.outputs.items() if isinstance(o.source, View))
    source = output.source
    assert isinstance(source, View)
    moved = source._replace(chunks=(*source.chunks, source.chunks[-1]._replace(start=999)))
    changed = replace(plan, outputs={**plan.outputs, name: output._replace(source=moved)})
    assert fingerprint(changed, {}) != fingerprint(plan, {})
