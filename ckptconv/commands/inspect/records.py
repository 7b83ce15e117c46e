"""What `inspect` finds, as plain records; `--json` writes them as they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptconv.display import Displayed
from ckptconv.tensors.boxes import Box
from ckptconv.tensors.view import Shape


@dataclass(frozen=True, slots=True)
class Slice:
    """What one rank holds of a tensor: a box. copy: another rank's copy of it is the one that is used."""

    rank: int
    offsets: Shape
    sizes: Shape
    copy: bool = False

    @property
    def box(self) -> Box:
        return Box(self.offsets, self.sizes)


@dataclass(frozen=True, slots=True)
class Row:
    """Equal tensors under one pattern: `model.layers.*.mlp.up_proj.weight`, how many, how they are cut.

    slices: of the first of them. ranks: all that store a part of any; pipeline stages cut alike on other ranks.
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
        """The dims along which the ranks' slices differ; none where one rank stores all."""
        whole = [piece for piece in self.slices if not piece.copy]
        if len({piece.rank for piece in whole}) < 2:
            return ()
        return tuple(d for d in range(len(self.shape)) if len({piece.offsets[d] for piece in whole}) > 1)


@dataclass(frozen=True, slots=True)
class RankMap:
    """One rank's share: bytes used, bytes that are copies, and which parts of the model it stores.

    parts: for each of Inspection.parts the share of its bytes that this rank stores, 0 to 1.
    coordinate: the rank's seat in the mesh, {"pp": 0, "tp": 1}; empty where no file says so.
    """

    rank: int
    files: tuple[str, ...]
    nbytes: int
    copies: int
    parts: tuple[float, ...]
    coordinate: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of one tensor in one rank's file.

    offsets, sizes: its box, in elements; of a run, the box around it. run: the first and the end position, row-major,
    where it is a run of elements and no box (flat partitions). start: the first element's byte in the file.
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


@dataclass(frozen=True, slots=True)
class Match:
    """Tensors that a pattern matches, and that lie alike in the same files: names, and the parts of the first."""

    pattern: str
    names: tuple[str, ...]
    shape: Shape
    dtype: str
    placement: str
    nbytes: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A module, with what is under it; or a tensor, with its shape and dtype.

    name: under its parent; equal neighbours by number are one: `layers.0–23`, count 24. Totals are of all of them.
    children: of the first.
    """

    name: str
    count: int
    tensors: int
    parameters: int
    nbytes: int
    shape: Shape | None = None
    dtype: str = ""
    children: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """Something that a file says of who saved the checkpoint, and with what."""

    what: str
    value: str
    file: str


@dataclass(frozen=True, slots=True)
class Next:
    """The suggested next command.

    writes: a summary of the plan; "" if it was not computed. why_not: why it was not. hint: what helps.
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
    complete: bool = True
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
