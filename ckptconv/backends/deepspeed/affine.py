"""Join the parts of tensor parallel ranks by the checkpoint's own affine map: which box of a parameter each rank holds.

AutoTP records the map under `universal_checkpoint_info` (deepspeed/module_inject/layers.py,
`collect_autotp_universal_checkpoint_info`; deepspeed/checkpoint/affine.py): for each parameter its whole shape, and for each
rank the shape of its part and pieces. A piece has a shape, and an offset and strides in elements, as in torch.as_strided,
once in the whole parameter (`source`) and once in the part (`dest`). Several ranks hold a piece that is replicated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckptconv.backends.deepspeed.files import table
from ckptconv.errors import CkptconvError, Kind, listed
from ckptconv.formats.bounds import whole_numbers
from ckptconv.formats.inert import items
from ckptconv.formats.torch_zip import TorchZip
from ckptconv.tensors.boxes import Box, Shape, contiguous_strides
from ckptconv.tensors.checkpoint import StoredTensor
from ckptconv.tensors.view import View, narrow, place, unflatten

_VERSION = 1
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a parameter is cut over tensor parallel ranks.

    Args:
        shape: the shape of the whole parameter.
        parts: for each rank, the shape of its part.
        pieces: for each rank, (box in the whole parameter, box in the part).
        is_sum: True where the parameter is the sum of the ranks' tensors. They are stacked: dim 0 counts the ranks.
    """

    shape: Shape
    parts: tuple[Shape, ...]
    pieces: tuple[tuple[tuple[Box, Box], ...], ...]
    is_sum: bool = False

    @property
    def placement(self) -> str:
        """The layout in words: "Shard(0)" for boxes along one dim, "Replicate", "Partial" for a sum, or "affine map"."""
        if self.is_sum:
            return "Partial"
        boxes = [[box for box, _ in rank] for rank in self.pieces]
        if all(rank == boxes[0] for rank in boxes):
            return "Replicate"
        dims = {
            d for rank in boxes for box in rank for d, size in enumerate(box.sizes) if size != self.shape[d]
        }
        single = all(len(rank) == 1 for rank in boxes)
        return f"Shard({dims.pop()})" if single and len(dims) == 1 else "affine map"


def layouts_of(root: Mapping[str, Any], file: TorchZip) -> dict[str, Layout]:
    """Return name -> layout, from a model file; {} if it has no affine map.

    Raises:
        CkptconvError: the map is damaged, or is of a version or a kind that ckptconv does not know.
    """
    info = table(root.get("universal_checkpoint_info"), "universal_checkpoint_info", file)
    stated = table(info.get("affine_map"), "affine_map", file)
    if not stated:
        return {}
    if stated.get("version") != _VERSION:
        raise CkptconvError(
            "the affine map of the tensor parallel ranks has an unknown version",
            where=file.path,
            found=stated.get("version"),
            wanted=_VERSION,
            kind=Kind.UNSUPPORTED,
        )
    maps = table(stated.get("params"), "affine_map", file)
    return {_name(key, file): _layout(key, entry, file) for key, entry in maps.items()}


def unsupported(root: Mapping[str, Any], file: TorchZip) -> dict[str, str]:
    """Return name -> DeepSpeed's reason, of the parameters that DeepSpeed itself cannot describe."""
    info = table(root.get("universal_checkpoint_info"), "universal_checkpoint_info", file)
    reasons = table(info.get("autotp_unsupported_parameter_patterns"), "unsupported patterns", file)
    return {_name(key, file): str(reason) for key, reason in reasons.items()}


def joined(name: str, layout: Layout, parts: Sequence[StoredTensor], where: str) -> StoredTensor:
    """Return a whole parameter. Pieces that several ranks hold become replicas.

    Args:
        name: the name of the parameter.
        layout: how it is cut.
        parts: each tensor parallel rank's, in rank order.
        where: the checkpoint, for error messages.

    Raises:
        CkptconvError: a part has another shape than the map says, or the pieces do not tile the parameter exactly once.
    """
    if len(parts) != len(layout.parts):
        raise _mismatch(name, where, f"{len(parts)} tensor parallel ranks", f"{len(layout.parts)}")
    used: dict[Box, View] = {}
    copies: list[tuple[Shape, View]] = []
    for rank, part in enumerate(parts):
        wanted = layout.parts[rank]
        views = [part.view, *(copy for _, copy in part.replicas)]
        if layout.is_sum:
            views = [unflatten(view, 0, (1, *view.shape[:1])) for view in views]
        if views[0].shape != wanted:
            raise _mismatch(name, where, f"{list(part.view.shape)} on rank {rank}", f"{list(wanted)}")
        for view in views:
            for whole, inner in layout.pieces[rank]:
                piece = _cut(view, inner)
                if whole in used:
                    copies.append((whole.offsets, piece))
                else:
                    used[whole] = piece
    dtype = parts[0].view.dtype
    try:
        view = place(layout.shape, dtype, [(box.offsets, piece) for box, piece in used.items()])
    except CkptconvError as error:
        raise error.within(inside=name, where=where) from error
    before = parts[0].placement
    placement = f"{layout.placement} over tp{', ' + before if before else ''}"
    return StoredTensor(view, placement, tuple(copies))


def replicated(name: str, parts: Sequence[StoredTensor], where: str) -> StoredTensor:
    """Return a tensor that the map does not list, such as a buffer: all ranks must hold the same bytes.

    Raises:
        CkptconvError: the ranks' tensors have different shapes.
    """
    first = parts[0]
    for rank, part in enumerate(parts):
        if part.view.shape != first.view.shape or part.view.dtype != first.view.dtype:
            raise _mismatch(
                name, where, f"{list(part.view.shape)} on rank {rank}", f"{list(first.view.shape)}"
            )
    zero = (0,) * len(first.view.shape)
    views = [view for part in parts for view in (part.view, *(copy for _, copy in part.replicas))]
    return StoredTensor(first.view, first.placement, tuple((zero, view) for view in views[1:]), implied=True)


def _layout(key: str, entry: Any, file: TorchZip) -> Layout:
    stated = entry if isinstance(entry, dict) else {}
    shape = whole_numbers(stated.get("logical_shape"), "logical_shape", file.path)
    ranks = stated.get("ranks")
    if not isinstance(ranks, dict) or sorted(ranks) != list(range(len(ranks))) or not ranks:
        raise CkptconvError("the affine map does not list its ranks", where=file.path, found=key)
    parts, pieces = [], []
    for rank in range(len(ranks)):
        each = ranks[rank] if isinstance(ranks[rank], dict) else {}
        part = whole_numbers(each.get("shard_shape"), "shard_shape", file.path)
        parts.append(part)
        found = (_piece(key, piece, shape, part, file) for piece in items(each.get("pieces")))
        pieces.append(tuple(piece for piece in found if piece is not None))
    return Layout(shape, tuple(parts), tuple(pieces))


def _piece(key: str, entry: Any, whole: Shape, part: Shape, file: TorchZip) -> tuple[Box, Box] | None:
    """Return (box in the whole parameter, box in the part); None for a piece without elements."""
    stated = entry if isinstance(entry, dict) else {}
    if stated.get("scale", 1.0) != 1.0:
        raise CkptconvError(
            "a tensor parallel rank holds a parameter multiplied by a number, which is not read",
            where=file.path,
            found=f"{key}, scale {stated.get('scale')}",
            kind=Kind.UNSUPPORTED,
        )
    sizes = whole_numbers(stated.get("shape"), "a piece's shape", file.path)
    if not all(sizes):
        return None
    boxes = [_box(sizes, stated.get(side), inside) for side, inside in (("source", whole), ("dest", part))]
    if None in boxes:
        raise CkptconvError(
            "the affine map has a piece that is not a box of its parameter",
            where=file.path,
            found=f"{key}: shape {list(sizes)}, source {stated.get('source')}, dest {stated.get('dest')}",
            kind=Kind.UNSUPPORTED,
        )
    source, dest = boxes
    return source, dest  # type: ignore[return-value]


def _box(sizes: Shape, window: Any, inside: Shape) -> Box | None:
    """Return the box that (offset, strides) address in a row-major tensor of shape `inside`, or None if it is no box."""
    if not isinstance(window, list | tuple) or len(window) != 2 or len(sizes) != len(inside):
        return None
    offset, strides = window
    if type(offset) is not int or not isinstance(strides, list | tuple) or len(strides) != len(sizes):
        return None
    steps, offsets = contiguous_strides(inside, 1), []
    left = offset
    for size, stride, step, whole in zip(sizes, strides, steps, inside, strict=True):
        if size > 1 and stride != step:
            return None
        at, left = divmod(left, step) if step else (0, left)
        if at < 0 or at + size > whole:
            return None
        offsets.append(at)
    return None if left else Box(tuple(offsets), sizes)


def _cut(view: View, box: Box) -> View:
    for dim, (offset, size) in enumerate(zip(*box, strict=True)):
        view = narrow(view, dim, offset, size)
    return view


def _name(pattern: str, file: TorchZip) -> str:
    """Return the one name that a pattern matches: `^`, the name as re.escape writes it, `$`. No pattern is ever run."""
    name = _ESCAPED.sub(r"\1", pattern[1:-1])
    if pattern != f"^{re.escape(name)}$":
        raise CkptconvError(
            "the affine map has a pattern that is not the name of one parameter",
            where=file.path,
            found=pattern,
            kind=Kind.UNSUPPORTED,
        )
    return name


def _mismatch(name: str, where: str, found: str, wanted: str) -> CkptconvError:
    return CkptconvError(
        f"the tensor parallel ranks do not hold {name} as the checkpoint says",
        where=where,
        found=found,
        wanted=wanted,
        hint="the files are of different saves: copy all of one step again",
    )


def check_known(names: Sequence[str], reasons: Mapping[str, str], where: str) -> None:
    """Refuse parameters that have no layout.

    Args:
        names: the names of parameters that no layout describes.
        reasons: name -> DeepSpeed's reason.
        where: the model file.
    """
    if not names:
        return
    reason = next((reasons[name] for name in names if name in reasons), None)
    raise CkptconvError(
        "the checkpoint does not say how a parameter is cut over its tensor parallel ranks",
        where=where,
        found=listed(names, 3) + (f": {reason}" if reason else ""),
        wanted="an affine map, as DeepSpeed 0.19.8 saves it (0.19.4 does not)",
        hint="save it again with a DeepSpeed that records the layout, or export it with save_16bit_model",
        kind=Kind.UNSUPPORTED,
    )


__all__ = ["Layout", "check_known", "joined", "layouts_of", "replicated", "unsupported"]
