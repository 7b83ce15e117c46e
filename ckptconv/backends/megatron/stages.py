"""The rank files' parts put together: stages and chunks in the order of the layers, TP parts, experts by their numbers.

Layers count from 0 in each pipeline stage and model chunk, experts from 0 on each EP rank
(megatron/training/checkpointing.py, generate_state_dict). How a tensor is cut over TP is not in the files: `cuts` has it.
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

DECODER = re.compile(r"^(thinker\.)?(language_model\.)?decoder\.")  # whose layers go on from stage to stage
_LAYER = re.compile(r"(?<=layers\.)(\d+)(?=\.)")
_EXPERT = re.compile(r"^(.*\.experts\.)(\d+)(\.linear_fc[12]\..+)$")
# megatron/core/transformer/transformer_config.py, and --swiglu of megatron/training/arguments.py
_GATE_SETTINGS = ("gated_linear_unit", "swiglu", "quick_geglu")
_REPEATED = re.compile(r"(^|\.)embedding\.")  # for MTP layers, the last stage has the first one's too


class Coordinate(NamedTuple):
    """A rank's coordinates."""

    tp: int
    pp: int
    ep: int


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank's chunks: name -> view, layers numbered within the chunk."""

    coordinate: Coordinate
    chunks: tuple[dict[str, View], ...]

    def layers(self, chunk: int) -> int:
        """Transformer layers in a chunk."""
        found = [
            int(m[1]) for name in self.chunks[chunk] if DECODER.match(name) and (m := _LAYER.search(name))
        ]
        return max(found, default=-1) + 1


def expert_rows(ranks: list[Rank]) -> Iterator[tuple[tuple[int, int, str], int, int]]:
    """Of every expert's fc1: (stage, EP rank and name), TP rank, rows."""
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
    """Every tensor of the model by its name in the whole model.

    Args:
        ranks: all ranks, in the order of their coordinates.
        sizes: ranks along "pp".
        settings: the trainer's; `expert_tensor_parallel_size` is used.

    Raises CkptconvError for ranks that do not fit together.
    """
    return _once(_assembled(ranks, sizes, settings))


def _assembled(
    ranks: list[Rank], sizes: dict[str, int], settings: Mapping[str, Any]
) -> Iterator[tuple[str, StoredTensor]]:
    """Chunk 0 of every stage, then chunk 1, …"""
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
    """A pipeline stage's ranks and one of their chunks. first: the layers before it.

    by_ep: its ranks by their EP index. experts: how many a rank holds, by the block's name in the chunk.
    """

    ranks: list[Rank]
    by_ep: dict[int, list[Rank]]
    experts: dict[str, int]
    chunk: int
    first: int

    @classmethod
    def of(cls, ranks: list[Rank], chunk: int, first: int) -> _Stage:
        """Of the ranks of one stage."""
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
        """(TP index, what that rank holds) for those of some ranks that have the tensor."""
        return [
            (rank.coordinate.tp, view)
            for rank in ranks
            if (view := rank.chunks[self.chunk].get(name)) is not None
        ]


def _once(found: Iterator[tuple[str, StoredTensor]]) -> dict[str, StoredTensor]:
    """By name; the embedding that a later stage has again is a copy, anything else is an error."""
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
    """One name of a stage: over TP; an expert's over EP too, with its number in the whole model."""
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
