"""Read what a pickled DTensor says of its shape and placements. Ranks' pickles repeat it: nothing here depends on a rank."""

from __future__ import annotations

from typing import Any, NamedTuple

from ckptconv.backends.fsdp.attributes import require_known
from ckptconv.backends.fsdp.sharding import PLACEMENTS, Placement
from ckptconv.errors import CkptconvError, Kind, brief
from ckptconv.formats.bounds import whole_numbers
from ckptconv.formats.inert import Inert, field_of, items
from ckptconv.formats.stand_ins import Dtype, TensorRecord, WrapperRecord


class Cut(NamedTuple):
    """How tensors of one shape are cut over a mesh; `text` is the placements as text."""

    shape: tuple[int, ...]
    mesh: Inert
    placements: tuple[Placement, ...]
    order: tuple[tuple[int, tuple[int, ...]], ...]
    text: str


class Whole(NamedTuple):
    """A whole tensor, and how it is cut, as text."""

    shape: tuple[int, ...]
    dtype: str
    placement: str


class DTensor(NamedTuple):
    """A pickled DTensor without the rank's position in the mesh. Tensors with equal cuts share one `cut` object."""

    whole: Whole
    cut: Cut
    local: TensorRecord


def read_dtensor(value: WrapperRecord, cuts: dict[Cut, Cut]) -> DTensor:
    """Read a pickled DTensor.

    Args:
        value: its record.
        cuts: those of other tensors; an equal one is shared.

    Raises:
        CkptconvError: it lacks a field, or ckptconv does not know how its shards are laid out.
    """
    spec, local = value.state.get("_spec"), value.state.get("_local_tensor")
    meta = spec.get("tensor_meta") if isinstance(spec, Inert) else None
    if not isinstance(spec, Inert) or not isinstance(local, TensorRecord) or not isinstance(meta, Inert):
        raise CkptconvError("a DTensor without its local tensor or its spec")
    require_known(spec, "DTensorSpec")
    mesh = spec.get("mesh")
    if not isinstance(mesh, Inert):
        raise CkptconvError("a DTensor without a mesh")
    # TensorMeta(shape, stride, dtype): a NamedTuple, so its fields are the constructor's arguments.
    if len(meta.args) != 3:
        raise CkptconvError("a DTensor without its shape and dtype")
    shape = whole_numbers(meta.args[0], "a DTensor's shape")
    dtype = meta.args[2].name if isinstance(meta.args[2], Dtype) else "?"
    placements = tuple(map(_placement, items(spec.get("placements"))))
    order = tuple(_order(entry) for entry in items(spec.get("shard_order")))
    if spec.get("use_strided_shard_as_shard_order") is False and any(
        p.kind == "_StridedShard" for p in placements
    ):
        raise CkptconvError(
            "a _StridedShard that comes from a view: its rank holds rows that do not lie together",
            found=f"{', '.join(map(str, placements))}, use_strided_shard_as_shard_order=False",
            hint="redistribute the tensor to plain Shard placements before it is saved",
            kind=Kind.UNSUPPORTED,
        )
    if any(mesh_dim >= len(placements) for _, dims in order for mesh_dim in dims):
        raise CkptconvError("a DTensor's shard order names a mesh dimension that does not exist")
    cut = Cut(shape, mesh, placements, order, f"({', '.join(map(str, placements))})")
    return DTensor(Whole(shape, dtype, cut.text), cuts.setdefault(cut, cut), local)


def _placement(placement: Any) -> Placement:
    kind = placement.kind if isinstance(placement, Inert) else type(placement).__name__
    if kind in PLACEMENTS:
        require_known(placement, kind)
    dim, factor = field_of(placement, "dim"), field_of(placement, "split_factor")
    numbers = (0 if dim is None else dim, 1 if factor is None else factor)
    if not all(type(number) is int for number in numbers):
        raise CkptconvError(
            f"a {kind} placement has parameters that are not integers",
            found=brief(numbers),
            kind=Kind.UNSUPPORTED,
        )
    return Placement(kind, *numbers)


def _order(entry: Any) -> tuple[int, tuple[int, ...]]:
    """Return (tensor_dim, mesh_dims) of a ShardOrderEntry, which is a NamedTuple."""
    if not isinstance(entry, Inert) or len(entry.args) != 2:
        raise CkptconvError("a DTensor has a shard order of an unknown form", kind=Kind.UNSUPPORTED)
    (dim,), dims = whole_numbers(entry.args[:1], "a dim"), whole_numbers(entry.args[1], "an order of dims")
    return dim, dims
