"""What a backend finds in a folder: tensors as views, who stores them, and what was left out. No data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptconv.tensors.file_state import FileState
from ckptconv.tensors.view import View

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class RankFile:
    """One file that one rank wrote. seat: the rank's coordinate in the mesh, (("pp", 0), ("tp", 1)), where it is known."""

    rank: int
    path: str
    nbytes: int
    seat: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Mesh:
    """A DeviceMesh: sizes and names of its dims. Names are free text; () where a trainer gives none."""

    shape: tuple[int, ...]
    names: tuple[str, ...]

    def __str__(self) -> str:
        names = self.names or tuple(f"dim{i}" for i in range(len(self.shape)))
        return " × ".join(f"{name} {size}" for name, size in zip(names, self.shape, strict=True)) or "none"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of the checkpoint: the view that is used, and its other copies.

    placement: how it was cut, in the trainer's words ("Shard(0)"), "" for a plain tensor.
    replicas: other copies, whole or in parts; each is a view in its own right with the same shape and dtype
    as the part it repeats, and stands beside the offsets where that part begins.
    equal: what the files' own checksums say of the replicas, without a byte read: all are equal to the bytes
    that are used (True), one is not (False), or nothing (None).
    implied: no mesh says that they are replicas, so that nothing but equal bytes makes them so.
    """

    view: View
    placement: str = ""
    replicas: tuple[tuple[tuple[int, ...], View], ...] = ()
    equal: bool | None = None
    implied: bool = False

    @property
    def replica_bytes(self) -> int:
        return sum(view.nbytes for _, view in self.replicas)


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that was not read, and why: optimizer files, other roles, padding."""

    what: str
    nbytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """What a trainer wrote about the model it trained. values: by the trainer's own names; where: the file."""

    values: Mapping[str, Any]
    where: str


@dataclass(frozen=True, slots=True)
class Lora:
    """What the files next to the tensors say of LoRA.

    Args:
        settings: adapter_config.json, verl's lora_train_meta.json, or what Megatron-Bridge's run_config.yaml says in
            their words; empty where there is none.
        is_folder: the tensors are those of PEFT's adapter_model.safetensors, which never holds the whole base model,
            though it may repeat some of its weights.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    is_folder: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trainer's checkpoint as data: every tensor with the places where its bytes lie.

    backend: the room that read it; layout: what a user calls it; root: the folder that holds the rank files.
    world_size: ranks that took part in the save; files: the rank files, in rank order.
    assets: the folder with config.json and the tokenizer, None where there is none.
    lora: what the files next to the tensors say of LoRA.
    extras: other facts that a later step may need (trainer settings), plain data.
    notes: findings that a user should see; they do not make the checkpoint wrong.
    naming: whose names the tensors have: "transformers" (a module's), "megatron", or "hub".
    trainer: what the trainer wrote about the model, one record per file; the plan compares it with config.json.
    low_precision: by name, the trainer's own copy of a tensor in the dtype that it computed in. Casting the tensor gives
    the copy's values, or the two are of different saves.
    is_sharded: False for a whole model, whose files no rank wrote.
    stamps: what the files were before any of them was opened.
    """

    backend: str
    layout: str
    root: Path
    world_size: int
    files: tuple[RankFile, ...]
    tensors: dict[str, StoredTensor]
    meshes: tuple[Mesh, ...] = ()
    step: int | None = None
    role: str | None = None
    assets: Path | None = None
    skipped: tuple[Skipped, ...] = ()
    lora: Lora = Lora()
    extras: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    naming: str = "transformers"
    trainer: tuple[TrainerSettings, ...] = ()
    low_precision: dict[str, View] = field(default_factory=dict)
    is_sharded: bool = True
    stamps: dict[str, FileState] = field(default_factory=dict)

    @property
    def rank_of(self) -> dict[str, int]:
        """file -> the rank that wrote it."""
        return {file.path: file.rank for file in self.files}


def starred(name: str) -> str:
    """A name with `*` for its numbers, as the names of equal tensors are shown."""
    return _NUMBER.sub("*", name)
