"""What a backend finds in a folder: tensors as views, who stores them, and what was left out. No data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ckptconv.tensors.storage import FileState
from ckptconv.tensors.view import View

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


class RankFile(NamedTuple):
    """One file that one rank wrote.

    Args:
        rank: the global rank that wrote it.
        path: the file.
        nbytes: its size in bytes.
        coordinate: the rank's coordinate along each mesh dim, such as (("pp", 0), ("tp", 1)); () if it is not known.
    """

    rank: int
    path: str
    nbytes: int
    coordinate: tuple[tuple[str, int], ...] = ()


class Mesh(NamedTuple):
    """A DeviceMesh.

    Args:
        shape: the number of ranks along each dim.
        names: the name of each dim, as the trainer chose it; () if the trainer stores no names.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]

    def __str__(self) -> str:
        names = self.names or tuple(f"dim{i}" for i in range(len(self.shape)))
        return " × ".join(f"{name} {size}" for name, size in zip(names, self.shape, strict=True)) or "none"


def without_submeshes(meshes: Sequence[Mesh]) -> tuple[Mesh, ...]:
    """Return the meshes without those whose named dims are all dims of another one."""
    dims = [set(zip(mesh.names, mesh.shape, strict=False)) for mesh in meshes]
    return tuple(
        mesh
        for mesh, own in zip(meshes, dims, strict=True)
        if not own or not any(own < other for other in dims)
    )


class StoredTensor(NamedTuple):
    """A tensor of the checkpoint: the view that is used, and its replicas.

    Args:
        view: the whole tensor; its chunks name the copy of each part that goes into the model.
        placement: how the trainer sharded it, in the trainer's words ("Shard(0)"); "" for a plain tensor.
        replicas: (offsets, view) for each further copy of the tensor or of a part of it. The view has the shape and dtype
            of the part that it repeats; the offsets, in elements, say where that part begins in the tensor.
        equal: whether the checksums in the files' headers prove the replicas equal to the used bytes (True) or
            different from them (False); None if the files have no checksums to compare.
        implied: True if no mesh declares the replicas: they count as replicas only if their bytes are equal.
    """

    view: View
    placement: str = ""
    replicas: tuple[tuple[tuple[int, ...], View], ...] = ()
    equal: bool | None = None
    implied: bool = False

    @property
    def replica_bytes(self) -> int:
        """Bytes of all replicas together."""
        return sum(view.nbytes for _, view in self.replicas)


class Skipped(NamedTuple):
    """Something in the folder that the backend does not read: optimizer files, other roles, padding.

    Args:
        what: a file, a folder or a group of tensors.
        nbytes: its size in bytes.
        reason: why it is not read, for the user.
    """

    what: str
    nbytes: int
    reason: str


class TrainerSettings(NamedTuple):
    """What a trainer wrote about the model that it trained.

    Args:
        values: the settings, by the trainer's own names.
        where: the file that holds them.
    """

    values: Mapping[str, Any]
    where: str


@dataclass(frozen=True, slots=True)
class Lora:
    """What the files next to the tensors state about LoRA.

    Args:
        settings: the content of adapter_config.json or of verl's lora_train_meta.json, or Megatron-Bridge's
            run_config.yaml translated to the same keys; empty if there is no such file.
        is_folder: the tensors are those of PEFT's adapter_model.safetensors, which never holds the whole base model,
            though it may repeat some of its weights.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    is_folder: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trainer's checkpoint as data: every tensor, and where its bytes are in the files.

    Args:
        backend: the name of the backend that read it, such as "fsdp".
        layout: the format in words, for the user.
        root: the folder that holds the rank files.
        world_size: the number of ranks that took part in the save.
        files: the rank files, in rank order.
        tensors: the tensors by name, in the trainer's order.
        meshes: the device meshes over which tensors are sharded.
        step: the training step; None if the folder does not tell.
        role: the model's role in the step, such as "actor"; None if there are no roles.
        assets: the folder with config.json and the tokenizer; None if there is none.
        tokenizer: the folder with the tokenizer of the training, if it is not `assets`; None if there is none.
        skipped: what the backend did not read, with reasons.
        lora: what the files next to the tensors state about LoRA.
        extras: further facts for later steps, as plain data.
        notes: findings for the user that do not make the checkpoint wrong.
        naming: whose names the tensors have: "transformers" (the module's), "megatron", "nanotron", "maxtext" or "hub";
            "nanotron_interleaved" if the rows that rotate together are neighbours.
        trainer: what the trainer wrote about the model, one record per file; the plan compares it with config.json.
        low_precision: name -> the trainer's own copy of the tensor in the dtype that it computed in. A cast of the
            tensor must give the values of the copy; otherwise the two are from different saves.
        is_sharded: False for a whole model, whose files no rank wrote.
        stamps: file -> its state before any file was opened.
        one_file: the file, where one file in `root` is the whole checkpoint and others may lie next to it.
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
    tokenizer: Path | None = None
    skipped: tuple[Skipped, ...] = ()
    lora: Lora = Lora()
    extras: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    naming: str = "transformers"
    trainer: tuple[TrainerSettings, ...] = ()
    low_precision: dict[str, View] = field(default_factory=dict)
    is_sharded: bool = True
    stamps: dict[str, FileState] = field(default_factory=dict)
    one_file: Path | None = None

    @property
    def rank_of(self) -> dict[str, int]:
        """Map each file's path to the rank that wrote it."""
        return {file.path: file.rank for file in self.files}


def starred(name: str) -> str:
    """Replace the numbers in a name with `*`, to group the tensors of different layers."""
    return _NUMBER.sub("*", name)
