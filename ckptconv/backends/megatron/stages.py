"""Joins the parts in rank files: pipeline stages and model chunks in the order of their layers, TP parts, and experts.

The files number layers from 0 in each pipeline stage and model chunk, and experts from 0 on each expert parallel (EP) rank
(megatron/training/checkpointing.py, generate_state_dict). They do not record how a tensor is sharded over TP; see `cuts`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ckptconv.backends.megatron.cuts import over_tp
from ckptconv.backends.megatron.names import numbered
from ckptconv.errors import CkptconvError
from ckptconv.tensors.checkpoint import StoredTensor
from ckptconv.tensors.view import View

DECODER = re.compile(r"^(thinker\.)?(language_model\.)?decoder\.")  # its layers continue in the next stage
_LAYER = re.compile(r"(?<=layers\.)(\d+)(?=\.)")
_EXPERT = re.compile(r"^(.*\.experts\.)(\d+)(\.linear_fc[12]\..+)$")
# Settings for a gated MLP (megatron/core/transformer/transformer_config.py; --swiglu of megatron/training/arguments.py).
_GATE_SETTINGS = ("gated_linear_unit", "swiglu", "quick_geglu")
_REPEATED = re.compile(
    r"(^|\.)embedding\."
)  # the last stage also has the first stage's embedding, for its MTP layers


class Coordinate(NamedTuple):
    """A rank's index along each axis: tensor, pipeline and expert parallel."""

    tp: int
    pp: int
    ep: int


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank's model chunks.

    Args:
        coordinate: the rank's coordinate.
        chunks: name -> view for each chunk; layers are numbered from 0 in each.
    """

    coordinate: Coordinate
    chunks: tuple[dict[str, View], ...]

    def layers(self, chunk: int) -> int:
        """The number of decoder layers in a chunk."""
        found = [
            int(m[1]) for name in self.chunks[chunk] if DECODER.match(name) and (m := _LAYER.search(name))
        ]
        return max(found, default=-1) + 1


def expert_rows(ranks: list[Rank]) -> Iterator[tuple[tuple[int, int, str], int, int]]:
    """((PP index, EP index, name), TP index, number of rows) of every expert's linear_fc1 on every rank."""
    for rank in ranks:
        for name, view in ((name, view) for chunk in rank.chunks for name, view in chunk.items()):
            if (match := _EXPERT.match(numbered(name))) and match[3] == ".linear_fc1.weight":
                yield (
                    (rank.coordinate.pp, rank.coordinate.ep, name),
                    rank.coordinate.tp,
                    view.shape[0] if view.shape else 0,
                )


def assembled(
    ranks: list[Rank], sizes: dict[str, int], settings: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """Join the tensors of all ranks.

    Args:
        ranks: all ranks, in the order of their coordinates.
        sizes: axis -> its number of ranks; only "pp" is read.
        settings: the trainer's settings; `expert_tensor_parallel_size` and those for a gated MLP are read.

    Returns:
        Every tensor by its name in the whole model.

    Raises:
        CkptconvError: the ranks do not fit together.
    """
    return _once(_assembled(ranks, sizes, settings))


def _assembled(
    ranks: list[Rank], sizes: dict[str, int], settings: Mapping[str, Any]
) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the tensors of chunk 0 of every stage, then those of chunk 1, and so on, which is the order of the layers."""
    first = 0
    if len({len(rank.chunks) for rank in ranks}) > 1:
        raise CkptconvError("the rank files hold different numbers of model chunks")
    for chunk in range(len(ranks[0].chunks)):
        for pp in range(sizes["pp"]):
            stage = _Stage.of([rank for rank in ranks if rank.coordinate.pp == pp], chunk, first)
            names = dict.fromkeys(name for rank in stage.ranks for name in rank.chunks[chunk])
            for name in names:
                yield from _tensor(name, stage, settings)
            first += stage.ranks[0].layers(chunk)


class _Stage(NamedTuple):
    """The ranks of a pipeline stage, and one of their chunks.

    Attributes:
        ranks: the ranks.
        by_ep: EP index -> the ranks with that index.
        experts: the name of a block of experts in the chunk -> the number of its experts on one rank.
        chunk: the index of the chunk.
        first: the number of layers in earlier chunks and stages.
    """

    ranks: list[Rank]
    by_ep: dict[int, list[Rank]]
    experts: dict[str, int]
    chunk: int
    first: int

    @classmethod
    def of(cls, ranks: list[Rank], chunk: int, first: int) -> _Stage:
        """The record for the ranks of one stage; see the attributes."""
        by_ep: dict[int, list[Rank]] = defaultdict(list)
        for rank in ranks:
            by_ep[rank.coordinate.ep].append(rank)
        numbers: dict[str, set[str]] = defaultdict(set)
        for name in ranks[0].chunks[chunk]:
            if match := _EXPERT.match(numbered(name)):
                numbers[match[1]].add(match[2])
        experts = {block: len(found) for block, found in numbers.items()}
        return cls(ranks, dict(sorted(by_ep.items())), experts, chunk, first)

    def held(self, name: str, ranks: list[Rank]) -> list[tuple[int, View]]:
        """(TP index, part) of each of these ranks.

        Raises:
            CkptconvError: one of them lacks the tensor.
        """
        found = [(rank, rank.chunks[self.chunk].get(name)) for rank in ranks]
        for rank, view in found:
            if view is None:
                at = rank.coordinate
                raise CkptconvError(
                    f"one rank lacks {name}, which other ranks of its pipeline stage hold",
                    found=f"not on TP rank {at.tp}, PP rank {at.pp}, EP rank {at.ep}",
                    hint="the file is of another save or damaged: copy it again from the node where that rank ran",
                )
        return [(rank.coordinate.tp, view) for rank, view in found if view is not None]


def _once(found: Iterator[tuple[str, StoredTensor]]) -> dict[str, StoredTensor]:
    """The tensors by name. An embedding that a later stage repeats is a replica; any other repetition is refused."""
    tensors: dict[str, StoredTensor] = {}
    for name, again in found:
        first = tensors.setdefault(name, again)
        if first is again:
            continue
        alike = first.view.shape == again.view.shape and first.view.dtype == again.view.dtype
        if not (alike and _REPEATED.search(name)):
            raise CkptconvError(f"{name} is stored twice, as if it were two tensors")
        copy = ((0,) * len(again.view.shape), again.view)
        tensors[name] = StoredTensor(first.view, first.placement, (*first.replicas, copy, *again.replicas))
    return tensors


def _has_gate(settings: Mapping[str, Any]) -> bool:
    """Return whether MLPs have a gate by the trainer's settings; True if no setting says so."""
    stated = [settings[key] for key in _GATE_SETTINGS if isinstance(settings.get(key), bool)]
    return any(stated) or not stated


def _tensor(name: str, stage: _Stage, settings: Mapping[str, Any]) -> Iterator[tuple[str, StoredTensor]]:
    """Join a tensor's TP parts, and give its layer and expert the numbers that they have in the whole model.

    Args:
        name: the name in the chunk.
        stage: the stage and its chunk.
        settings: the trainer's settings.

    Returns:
        (name in the whole model, tensor); for an expert's name, one for each EP index.
    """
    number = _LAYER.search(name)
    whole = name
    if number and DECODER.match(name):
        whole = name[: number.start()] + str(int(number[1]) + stage.first) + name[number.end() :]
    in_model = numbered(whole)
    expert = _EXPERT.match(in_model)
    if expert is None:
        yield whole, over_tp(name, stage.held(name, stage.ranks), _has_gate(settings))
        return
    here = _EXPERT.match(numbered(name))
    local = stage.experts.get(here[1], 0) if here else 0
    for ep, ranks in stage.by_ep.items():
        held = stage.held(name, ranks)
        full = f"{expert[1]}{int(expert[2]) + ep * local}{expert[3]}"
        stated = settings.get("expert_tensor_parallel_size")
        etp = stated if type(stated) is int and stated > 0 else len(held)
        yield full, over_tp(in_model, [(tp % etp, view) for tp, view in held], _has_gate(settings))
