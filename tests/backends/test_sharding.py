"""Boxes are exactly those of torch.distributed.tensor, for every mesh, placement and uneven size."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset as torch_box
from torch.distributed.tensor.placement_types import _StridedShard

from ckptconv.backends.fsdp.sharding import Placement, local_box
from ckptconv.errors import CkptconvError
from ckptconv.tensors.boxes import Box

FIXED = settings(deadline=None, derandomize=True, database=None)
Order = list[tuple[int, int]]  # (mesh dim, tensor dim), the first cut first


def ours(placement: object) -> Placement:
    """A torch placement in this project's words."""
    if isinstance(placement, Replicate):
        return Placement("Replicate")
    assert isinstance(placement, Shard | _StridedShard)
    fields = {"kind": type(placement).__name__, "dim": placement.dim}
    if "split_factor" in Placement._fields and isinstance(placement, _StridedShard):
        fields["split_factor"] = placement.split_factor
    return Placement(**fields)


def boxes(
    shape: tuple[int, ...], mesh: tuple[int, ...], placements: list[object]
) -> dict[tuple[int, ...], Box]:
    """The box at every mesh coordinate."""
    said = tuple(map(ours, placements))
    return {at: local_box(shape, mesh, at, said) for at in product(*map(range, mesh))}


def assert_as_torch_says(shape: tuple[int, ...], mesh: tuple[int, ...], placements: list[object]) -> None:
    for at, box in boxes(shape, mesh, placements).items():
        sizes, offsets = torch_box(shape, mesh, list(at), placements)
        assert box.sizes == sizes, at
        if 0 not in sizes:  # where torch puts what is empty does not matter
            assert box.offsets == offsets, at


def assert_as_chunked(shape: tuple[int, ...], mesh: tuple[int, ...], found: dict, order: Order) -> None:
    """Against what trainers do: torch.chunk, one mesh dim after another."""
    whole = torch.arange(prod(shape)).reshape(shape)
    for at, box in found.items():
        part = whole
        for mesh_dim, dim in order:
            pieces = part.chunk(mesh[mesh_dim], dim)
            index = at[mesh_dim]
            part = pieces[index] if index < len(pieces) else part.narrow(dim, 0, 0)
        cut = whole[tuple(slice(o, o + n) for o, n in zip(box.offsets, box.sizes, strict=True))]
        assert tuple(part.shape) == box.sizes, at
        assert torch.equal(part, cut), at


shapes = st.lists(st.integers(1, 17), min_size=1, max_size=3).map(tuple)
meshes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


@settings(FIXED, max_examples=150)
@given(shape=shapes, mesh=meshes, draw=st.data())
def test_shards_and_replicas_on_any_mesh(shape: tuple[int, ...], mesh: tuple[int, ...], draw) -> None:
    dims = [draw.draw(st.sampled_from([None, *range(len(shape))])) for _ in mesh]
    placements = [Replicate() if dim is None else Shard(dim) for dim in dims]
    assert_as_torch_says(shape, mesh, placements)
    order = [(mesh_dim, dim) for mesh_dim, dim in enumerate(dims) if dim is not None]
    assert_as_chunked(shape, mesh, boxes(shape, mesh, placements), order)


@pytest.mark.parametrize("size", range(10))
@pytest.mark.parametrize("parts", range(1, 10))
def test_every_small_cut(size: int, parts: int) -> None:
    assert_as_torch_says((3, size), (parts,), [Shard(1)])
    found = boxes((3, size), (parts,), [Shard(1)])
    assert sum(box.sizes[1] for box in found.values()) == size


def test_five_rows_over_four_ranks_are_two_two_one_none() -> None:
    found = boxes((5, 3), (4,), [Shard(0)])
    assert [(box.offsets[0], box.sizes[0]) for box in found.values()] == [(0, 2), (2, 2), (4, 1), (5, 0)]


def fsdp_over_tp(fsdp_dim: int, tp_dim: int | None, tp: int) -> list[object]:
    """What fully_shard makes of a tensor that tensor parallelism has cut: tp first, whatever the mesh's order."""
    if tp_dim is None:
        return [Shard(fsdp_dim), Replicate()]
    return [
        _StridedShard(fsdp_dim, split_factor=tp) if tp_dim == fsdp_dim else Shard(fsdp_dim),
        Shard(tp_dim),
    ]


@settings(FIXED, max_examples=150)
@given(shape=shapes, mesh=st.tuples(st.integers(1, 4), st.integers(2, 4)), draw=st.data())
def test_fsdp_over_tensor_parallel_is_cut_by_tp_first(shape, mesh: tuple[int, int], draw) -> None:
    tp_dim = draw.draw(st.sampled_from([None, *range(len(shape))]))
    placements = fsdp_over_tp(0, tp_dim, mesh[1])
    order = [(0, 0)] if tp_dim is None else [(1, tp_dim), (0, 0)]
    assert_as_chunked(shape, mesh, boxes(shape, mesh, placements), order)


@settings(FIXED, max_examples=80)
@given(mesh=st.tuples(st.integers(1, 4), st.integers(2, 4)), rows=st.integers(1, 3), draw=st.data())
def test_strided_shards_are_torchs_where_they_are_even(mesh: tuple[int, int], rows: int, draw) -> None:
    shape = (prod(mesh) * rows, 7)
    assert_as_torch_says(shape, mesh, fsdp_over_tp(0, draw.draw(st.sampled_from([None, 0, 1])), mesh[1]))


@settings(FIXED, max_examples=80)
@given(shape=shapes, mesh=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 3)), draw=st.data())
def test_hsdp_over_tensor_parallel(shape, mesh: tuple[int, int, int], draw) -> None:
    tp_dim = draw.draw(st.sampled_from([None, *range(len(shape))]))
    placements = [Replicate(), *fsdp_over_tp(0, tp_dim, mesh[2])]
    order = [(1, 0)] if tp_dim is None else [(2, tp_dim), (1, 0)]
    assert_as_chunked(shape, mesh, boxes(shape, mesh, placements), order)


# What the placements say (DTensorSpec._maybe_convert_StridedShard_to_shard_order): the mesh dims in order of cutting.
STRIDED = {
    "fsdp over two that cut": ([_StridedShard(0, split_factor=6), Shard(0), Shard(0)], (1, 2, 0)),
    "fsdp over the last": ([Shard(0), _StridedShard(0, split_factor=3), Shard(0)], (0, 2, 1)),
    "two, each after the last": (
        [_StridedShard(0, split_factor=3), _StridedShard(0, split_factor=3), Shard(0)],
        (2, 0, 1),
    ),
    "all turned around": (
        [_StridedShard(0, split_factor=6), _StridedShard(0, split_factor=3), Shard(0)],
        (2, 1, 0),
    ),
    "another dim between": ([_StridedShard(0, split_factor=3), Shard(1), Shard(0)], (2, 1, 0)),
    "two of another dim": ([Shard(1), _StridedShard(1, split_factor=3), Shard(1)], (0, 2, 1)),
}


@pytest.mark.parametrize("case", STRIDED)
@pytest.mark.parametrize("shape", [(24, 24), (48, 24), (29, 31), (7, 5)], ids=str)
def test_strided_shards_on_three_mesh_dims(case: str, shape: tuple[int, int]) -> None:
    placements, order = STRIDED[case]
    mesh = (4, 2, 3)
    if not any(size % prod(mesh) for size in shape):
        assert_as_torch_says(shape, mesh, placements)
    found = boxes(shape, mesh, placements)
    assert_as_chunked(shape, mesh, found, [(mesh_dim, placements[mesh_dim].dim) for mesh_dim in order])


@settings(FIXED, max_examples=80)
@given(shape=shapes, mesh=meshes, draw=st.data())
def test_a_stated_order_is_followed(shape: tuple[int, ...], mesh: tuple[int, ...], draw) -> None:
    """Newer torch pickles (tensor dim, mesh dims) pairs beside plain Shards."""
    dims = [draw.draw(st.integers(0, len(shape) - 1)) for _ in mesh]
    stated = {
        dim: draw.draw(st.permutations([m for m, d in enumerate(dims) if d == dim])) for dim in set(dims)
    }
    said = tuple(Placement("Shard", dim) for dim in dims)
    entries = tuple((dim, tuple(order)) for dim, order in sorted(stated.items()))
    found = {at: local_box(shape, mesh, at, said, entries) for at in product(*map(range, mesh))}
    assert_as_chunked(shape, mesh, found, [(m, dim) for dim, order in stated.items() for m in order])


def test_a_dim_from_the_end_counts_from_there() -> None:
    assert local_box((4, 6), (2,), (1,), (Placement("Shard", -1),)) == Box((0, 3), (4, 3))


def test_a_scalar_is_whole_everywhere() -> None:
    assert local_box((), (2, 2), (1, 0), (Placement("Replicate"),) * 2) == Box((), ())


@pytest.mark.parametrize("dim", [2, -3])
def test_a_dim_that_is_not_there_is_refused(dim: int) -> None:
    with pytest.raises(CkptconvError, match="a placement cuts dim"):
        local_box((4, 6), (2,), (1,), (Placement("Shard", dim),))


def test_a_partial_sum_is_refused() -> None:
    with pytest.raises(CkptconvError, match="is still unreduced"):
        local_box((4,), (2,), (0,), (Placement(type(Partial()).__name__),))
