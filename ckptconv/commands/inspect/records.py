"""The result of `inspect` as plain records; `--json` writes them as they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ckptconv.commands.display import Displayed
from ckptconv.tensors.boxes import Box
from ckptconv.tensors.view import Shape


class Slice(NamedTuple):
    """The box of a tensor that one rank holds.

    Args:
        rank: the rank.
        offsets: the first corner of the box, in elements.
        sizes: its size along each dim, in elements.
        copy: True if a merge uses another rank's copy.
    """

    rank: int
    offsets: Shape
    sizes: Shape
    copy: bool = False

    @property
    def box(self) -> Box:
        return Box(self.offsets, self.sizes)


@dataclass(frozen=True, slots=True)
class Row:
    """Equal tensors under one pattern.

    Args:
        pattern: the name with `*` for numbers, such as `model.layers.*.mlp.up_proj.weight`.
        count: the number of tensors.
        shape: the shape of each tensor.
        dtype: the dtype of each tensor.
        placement: how the trainer sharded them, in its words.
        nbytes: bytes of all of them.
        slices: the slices of the first tensor.
        ranks: all ranks that store a part of any of them. Pipeline stages shard equal tensors over different ranks.
    """

    pattern: str
    count: int
    shape: Shape
    dtype: str
    placement: str
    nbytes: int
    slices: tuple[Slice, ...]
    ranks: tuple[int, ...]

    @property
    def cut_dims(self) -> tuple[int, ...]:
        """The dims along which the ranks' slices differ; () if one rank stores everything."""
        whole = [piece for piece in self.slices if not piece.copy]
        if len({piece.rank for piece in whole}) < 2:
            return ()
        return tuple(d for d in range(len(self.shape)) if len({piece.offsets[d] for piece in whole}) > 1)


@dataclass(frozen=True, slots=True)
class RankMap:
    """What one rank stores.

    Args:
        rank: the rank.
        files: its files.
        nbytes: bytes that a merge uses.
        copies: bytes that are copies of another rank's.
        parts: for each of `Inspection.parts`, the share of its bytes that this rank stores, 0 to 1.
        coordinate: the rank's coordinate in the mesh, {"pp": 0, "tp": 1}; empty if no file states it.
    """

    rank: int
    files: tuple[str, ...]
    nbytes: int
    copies: int
    parts: tuple[float, ...]
    coordinate: dict[str, int] = field(default_factory=dict)


class Part(NamedTuple):
    """A part of one tensor in one rank's file.

    Args:
        rank: the rank.
        coordinate: its coordinate in the mesh.
        offsets: the first corner of the part's box, in elements; for a run, of the box around it.
        sizes: the size of that box along each dim, in elements.
        run: the first and the end position in row-major order, if the part is a run and not a box (flat partitions).
        nbytes: its size in bytes.
        file: the file that holds it.
        start: the byte of the file at which its first element begins.
        copy: True if a merge uses another rank's copy.
    """

    rank: int
    coordinate: dict[str, int]
    offsets: Shape
    sizes: Shape
    run: tuple[int, int] | None
    nbytes: int
    file: str
    start: int
    copy: bool = False

    @property
    def box(self) -> Box:
        return Box(self.offsets, self.sizes)


class Match(NamedTuple):
    """Tensors that match the pattern and are stored in the same way in the same files. `parts` are those of the first."""

    pattern: str
    names: tuple[str, ...]
    shape: Shape
    dtype: str
    placement: str
    nbytes: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A module with its children, or a tensor with its shape and dtype.

    Consecutive equal modules share a node: `layers.0–23` with count 24.

    Args:
        name: the name under its parent.
        count: the number of modules or tensors that share the node.
        tensors: tensors in all of them.
        parameters: elements in all of them.
        nbytes: bytes in all of them.
        shape: the shape of a tensor; None for a module.
        dtype: the dtype of a tensor.
        children: the children of the first module.
    """

    name: str
    count: int
    tensors: int
    parameters: int
    nbytes: int
    shape: Shape | None = None
    dtype: str = ""
    children: tuple[Node, ...] = ()


class Evidence(NamedTuple):
    """A fact about who saved the checkpoint, and with what, that a file states."""

    what: str
    value: str
    file: str


class Next(NamedTuple):
    """The suggested next command.

    Args:
        command: the command line.
        writes: the kind of model that it would write; "" if the plan was not computed.
        tensors: how many it would write.
        files: how many it would write.
        nbytes: bytes that it would write.
        why_not: why the plan was not computed.
        hint: what the user can do about that.
    """

    command: str
    writes: str = ""
    tensors: int = 0
    files: int = 0
    nbytes: int = 0
    why_not: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Inspection(Displayed):
    """What `inspect` shows. parts: the model's parts in order ("visual 0", "embedding", "0", .. "35", "head").

    saved_by: what files say of the trainer and its versions. heads: what the model ends in. matches: with a pattern, the
    tensors that it matches. tree: the modules, where they were asked for.

    complete: True where the tensors that `merge` would write are all those of the class that config.json names; False
    where some are missing or others are there; None where they could not be compared. why_not: the reason where
    `complete` is not True.
    """

    path: Path
    layout: str
    backend: str
    is_sharded: bool
    root: Path
    step: int | None
    role: str | None
    architecture: str | None
    config: dict[str, Any]
    meshes: tuple[str, ...]
    world_size: int
    tensors: int
    parameters: int
    nbytes: int
    replica_bytes: int
    dtypes: tuple[tuple[str, int, int], ...]  # (dtype, tensors, bytes)
    skipped: tuple[tuple[str, int, str], ...]
    parts: tuple[str, ...]
    ranks: tuple[RankMap, ...]
    rows: tuple[Row, ...]
    lora: str | None
    notes: tuple[str, ...]
    complete: bool | None = None
    why_not: str = ""
    optimizer_bytes: int = 0
    saved_by: tuple[Evidence, ...] = ()
    heads: tuple[str, ...] = ()
    matches: tuple[Match, ...] | None = None
    tree: Node | None = None
    next: Next | None = None

    @property
    def summary(self) -> str:
        """Its format, step and size in one line."""
        step = f", step {self.step}" if self.step is not None else ""
        return f"{self.layout}{step}, {self.tensors:,} tensors, {self.parameters:,} parameters, {self.nbytes:,} bytes"
