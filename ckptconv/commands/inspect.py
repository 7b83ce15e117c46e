"""inspect: what a checkpoint holds and who stores what, from metadata alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptconv import assets
from ckptconv.backends import open_checkpoint
from ckptconv.checkpoint import Checkpoint, StoredTensor, starred
from ckptconv.models.facts import named_architectures
from ckptconv.view import Shape

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Slice:
    """What one rank holds of a tensor: a box. copy: another rank's copy of it is the one that is used."""

    rank: int
    offsets: Shape
    sizes: Shape
    copy: bool = False


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
        """The dims along which the slices differ."""
        whole = [piece for piece in self.slices if not piece.copy]
        return tuple(d for d in range(len(self.shape)) if len({piece.offsets[d] for piece in whole}) > 1)


@dataclass(frozen=True, slots=True)
class RankMap:
    """One rank's share: bytes used, bytes that are copies, and which parts of the model it stores."""

    rank: int
    files: tuple[str, ...]
    nbytes: int
    copies: int
    parts: tuple[
        float, ...
    ]  # for each of Inspection.parts: the share of its bytes that this rank stores, 0 to 1


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect` shows. parts: the model's parts in order ("embedding", "0", .. "35", "head")."""

    path: Path
    layout: str
    backend: str
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


def inspect(
    path: str | Path, *, backend: str | None = None, step: int | None = None, also: Sequence[str | Path] = ()
) -> Inspection:
    """Look at a checkpoint (run, step or role folder, or a model folder). Reads metadata only.

    Raises CkptconvError for what is no whole checkpoint; a missing rank is one (exit code 1).
    """
    checkpoint = open_checkpoint(path, backend=backend, step=step, also=also)
    config = assets.read_config(checkpoint.assets) if checkpoint.assets else {}
    tensors = checkpoint.tensors
    dtypes: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for tensor in tensors.values():
        dtypes[tensor.view.dtype][0] += 1
        dtypes[tensor.view.dtype][1] += tensor.view.nbytes
    rank_of = checkpoint.rank_of
    slices = {name: _slices(tensor, rank_of) for name, tensor in tensors.items()}
    parts, ranks = _shares(checkpoint, slices)
    named = named_architectures(config)
    return Inspection(
        path=Path(path),
        layout=checkpoint.layout,
        backend=checkpoint.backend,
        root=checkpoint.root,
        step=checkpoint.step,
        role=checkpoint.role,
        architecture=named[0] if named else None,
        config=config,
        meshes=tuple(map(str, checkpoint.meshes)),
        world_size=checkpoint.world_size,
        tensors=len(tensors),
        parameters=sum(tensor.view.numel for tensor in tensors.values()),
        nbytes=sum(tensor.view.nbytes for tensor in tensors.values()),
        replica_bytes=sum(tensor.replica_bytes for tensor in tensors.values()),
        dtypes=tuple((name, n, size) for name, (n, size) in sorted(dtypes.items(), key=lambda i: -i[1][1])),
        skipped=tuple((item.what, item.nbytes, item.reason) for item in checkpoint.skipped),
        parts=parts,
        ranks=ranks,
        rows=_rows(checkpoint, slices),
        lora=_lora(checkpoint),
        notes=checkpoint.notes,
    )


def part_of(name: str) -> str:
    """The part of the model that a tensor belongs to: "embedding", a layer's number, "head" or "other"."""
    match = _LAYER.search(name)
    if match:
        return match.group(1)
    if "embed" in name or ".wte." in name or "wpe" in name:
        return "embedding"
    if re.search(r"lm_head|score|v_head|output_layer|(^|\.)norm\.|final|ln_f", name):
        return "head"
    return "other"


def _shares(
    checkpoint: Checkpoint, slices: dict[str, tuple[Slice, ...]]
) -> tuple[tuple[str, ...], tuple[RankMap, ...]]:
    held: dict[int, dict[str, int]] = {file.rank: defaultdict(int) for file in checkpoint.files}
    files: dict[int, list[str]] = defaultdict(list)
    for file in checkpoint.files:
        files[file.rank].append(file.path)
    copies: dict[int, int] = defaultdict(int)
    totals: dict[str, int] = defaultdict(int)
    for name, tensor in checkpoint.tensors.items():
        part = part_of(name)
        totals[part] += tensor.view.nbytes
        item = tensor.view.nbytes // max(tensor.view.numel, 1)
        for piece in slices[name]:
            nbytes = item
            for size in piece.sizes:
                nbytes *= size
            held[piece.rank][part] += nbytes
            if piece.copy:
                copies[piece.rank] += nbytes
    order = sorted(totals, key=lambda part: (_ORDER.get(part, 1), int(part) if part.isdigit() else 0))
    ranks = tuple(
        RankMap(
            rank,
            tuple(files[rank]),
            sum(parts.values()) - copies[rank],
            copies[rank],
            tuple(parts[part] / totals[part] if totals[part] else 0.0 for part in order),
        )
        for rank, parts in held.items()
    )
    return tuple(order), ranks


_ORDER = {"embedding": 0, "other": 2, "head": 3}


def _slices(tensor: StoredTensor, rank_of: dict[str, int]) -> tuple[Slice, ...]:
    found = [Slice(rank_of[c.file], c.offsets, c.sizes) for c in tensor.view.chunks]
    for offsets, view in tensor.replicas:
        for c in view.chunks:
            begin = tuple(map(int.__add__, offsets, c.offsets))
            found.append(Slice(rank_of[c.file], begin, c.sizes, copy=True))
    return tuple(sorted(found, key=lambda piece: (piece.offsets, piece.copy, piece.rank)))


def _rows(checkpoint: Checkpoint, slices: dict[str, tuple[Slice, ...]]) -> tuple[Row, ...]:
    """Equal layers collapse to `*`: same pattern, shape, dtype and cuts, on whichever ranks."""
    groups: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name, tensor in checkpoint.tensors.items():
        boxes = tuple((piece.offsets, piece.sizes, piece.copy) for piece in slices[name])
        view = tensor.view
        groups[starred(name), view.shape, view.dtype, tensor.placement, boxes].append(name)
    return tuple(
        Row(
            pattern if len(names) > 1 else names[0],
            len(names),
            shape,
            dtype,
            placement,
            checkpoint.tensors[names[0]].view.nbytes * len(names),
            slices[names[0]],
            tuple(sorted({piece.rank for name in names for piece in slices[name]})),
        )
        for (pattern, shape, dtype, placement, _), names in groups.items()
    )


def _lora(checkpoint: Checkpoint) -> str | None:
    modules = {name.rsplit(".lora_", 1)[0] for name in checkpoint.tensors if ".lora_" in name}
    if not modules:
        return None
    meta = checkpoint.extras.get("lora") or {}
    alpha = meta.get("lora_alpha", "unknown")
    alone = all(".lora_" in name for name in checkpoint.tensors)
    tail = ", without base weights" if alone else ""
    return f"on {len(modules)} modules, r {meta.get('r', 'unknown')}, alpha {alpha}{tail}"


__all__ = ["Inspection", "RankMap", "Row", "Slice", "inspect", "part_of"]
