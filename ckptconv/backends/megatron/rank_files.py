"""Megatron's rank files: mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt (Megatron-LM) or model.pt (verl v0).

Each holds one rank's module state dict, with layers numbered from 0 in each pipeline stage and model chunk
(megatron/training/checkpointing.py, get_checkpoint_name and generate_state_dict). How a tensor is cut over TP is
not in the files: `megatron_cuts` has it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ckptconv.backends.megatron.cuts import over_tp
from ckptconv.backends.megatron.experts import expert_ranks
from ckptconv.backends.megatron.glu import uninterleaved
from ckptconv.backends.megatron.lora import lora_settings
from ckptconv.backends.megatron.names import canonical
from ckptconv.backends.runs import Place
from ckptconv.errors import CkptconvError, Incomplete
from ckptconv.formats.bounds import check_name, check_ranks
from ckptconv.formats.json import read_table
from ckptconv.formats.stand_ins import Inert, TensorRecord
from ckptconv.formats.torch_zip import TorchZip, open_torch_zip
from ckptconv.tensors.checkpoint import Checkpoint, Mesh, RankFile, Skipped, StoredTensor
from ckptconv.tensors.view import View

NAME = "megatron_legacy"
_FOLDER = re.compile(r"^mp_rank_(\d+)(?:_(\d+))?(?:_(\d+))?$")
_FILES = ("model_optim_rng.pt", "model.pt")
_CHUNK = re.compile(r"^model(\d*)$")
_LAYER = re.compile(r"(?<=layers\.)(\d+)(?=\.)")
_GROUPED = re.compile(r"^(.*\.experts)\.(linear_fc[12])\.(weight|bias)(\d+)$")
_EXPERT = re.compile(r"^(.*\.experts\.)(\d+)(\.linear_fc[12]\..+)$")
_DECODER = re.compile(r"^(language_model\.)?decoder\.")  # whose layers go on from stage to stage
_REPEATED = re.compile(r"(^|\.)embedding\.")  # for MTP layers, the last stage has the first one's too
_FINAL_NORM = re.compile(_DECODER.pattern + r"final_layernorm\.weight$")
# Parts of a name that Megatron's own rules do not decide.
_UNTOLD = {
    ".self_attention.in_proj.": "each trainer has the rows of a gated delta net in its own order",
    "vision_model.merger.patch_norm.": "mbridge's tower of Qwen3-VL has an MLP without a gate",
}


class _Seat(NamedTuple):
    tp: int
    pp: int
    ep: int


@dataclass(frozen=True, slots=True)
class _Rank:
    """One rank's chunks: name -> view, layers numbered within the chunk."""

    seat: _Seat
    chunks: tuple[dict[str, View], ...]

    def layers(self, chunk: int) -> int:
        """Transformer layers in a chunk."""
        found = [
            int(m[1]) for name in self.chunks[chunk] if _DECODER.match(name) and (m := _LAYER.search(name))
        ]
        return max(found, default=-1) + 1


def is_mine(folder: Path) -> bool:
    """True for a folder with mp_rank_* folders, itself or in model/ as verl has it."""
    return _home(folder) is not None


def read(place: Place, also: Sequence[Path] = ()) -> Checkpoint:
    """Read every rank's metadata and put stages, experts and TP parts together.

    Raises CkptconvError for ranks that are missing or do not fit together.
    """
    home = _home(place.folder)
    if home is None:
        raise CkptconvError("no mp_rank_* folders here", where=place.folder)
    found = _paths([home, *(_home(path) or path for path in also)])
    opened = {seat: open_torch_zip(str(path)) for seat, path in found.items()}
    stated = _settings(place.folder, opened)
    ranks = _seated(opened)
    sizes = {axis: 1 + max(getattr(r.seat, axis) for r in ranks) for axis in ("tp", "pp", "ep")}
    _check_complete(ranks, sizes, stated, home)
    if "expert_tensor_parallel_size" not in stated:
        stated = {**stated, **expert_ranks(_expert_rows(ranks), place.folder)}
    tensors, said = uninterleaved(canonical(_once(_assembled(ranks, sizes, stated))), stated)
    held = sum(path.stat().st_size for path in found.values())
    used = sum(t.view.nbytes + t.replica_bytes for t in tensors.values())
    folders = (place.folder / "huggingface", place.folder / "model" / "huggingface", place.folder)
    return Checkpoint(
        backend="megatron",
        layout="Megatron rank files (mp_rank_*)",
        root=place.folder,
        world_size=len(ranks),
        files=tuple(
            RankFile(n, str(path), path.stat().st_size, _said(rank.seat, sizes))
            for n, ((_, path), rank) in enumerate(zip(sorted(found.items()), ranks, strict=True))
        ),
        tensors=tensors,
        meshes=(Mesh((sizes["tp"], sizes["pp"], sizes["ep"]), ("tp", "pp", "ep")),),
        step=place.step,
        role=place.role,
        assets=next((path for path in folders if (path / "config.json").is_file()), None),
        skipped=(Skipped("optimizer and trainer state", max(held - used, 0), "not part of the model"),),
        extras={"lora": lora_settings(place.folder)},
        notes=tuple(said),
        naming="megatron",
    )


def _said(seat: _Seat, sizes: dict[str, int]) -> tuple[tuple[str, int], ...]:
    """A seat along the axes that have more than one rank, stages first."""
    return tuple((axis, getattr(seat, axis)) for axis in ("pp", "tp", "ep") if sizes[axis] > 1)


def _home(folder: Path) -> Path | None:
    for path in (folder, folder / "model"):
        if path.is_dir() and any(_FOLDER.match(child.name) and child.is_dir() for child in path.iterdir()):
            return path
    return None


def _paths(homes: Sequence[Path]) -> dict[tuple[int, ...], Path]:
    """Folder numbers -> rank file."""
    found: dict[tuple[int, ...], Path] = {}
    for home in homes:
        for folder in sorted(home.iterdir()):
            match = _FOLDER.match(folder.name)
            if not match:
                continue
            path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
            if path is None:
                raise CkptconvError(
                    "a rank's folder without its file", where=folder, wanted=" or ".join(_FILES)
                )
            found.setdefault(tuple(int(n) for n in match.groups() if n is not None), path)
    if len({len(numbers) for numbers in found}) > 1:
        raise CkptconvError("rank folders of different forms lie together", where=homes[0])
    return found


def _seated(opened: dict[tuple[int, ...], TorchZip]) -> list[_Rank]:
    """Two numbers are (TP, PP), or (TP, EP) without pipeline stages: then every rank has the final norm."""
    loaded = {numbers: _chunks(file) for numbers, file in opened.items()}
    staged = not all(
        any(_FINAL_NORM.match(name) for chunk in chunks for name in chunk) for chunks in loaded.values()
    )
    ranks = []
    for numbers, chunks in sorted(loaded.items()):
        tp, second, third = (*numbers, 0, 0)[:3]
        seat = _Seat(tp, second, third) if len(numbers) == 3 or staged else _Seat(tp, 0, second)
        ranks.append(_Rank(seat, chunks))
    return ranks


def _chunks(file: TorchZip) -> tuple[dict[str, View], ...]:
    """The model chunks of a rank file: "model", or "model0", "model1", … with virtual stages; verl keeps a list."""
    root = file.root
    parts = root if isinstance(root, list) else None
    if isinstance(root, dict):
        named = {
            int(m[1] or 0): value
            for key, value in root.items()
            if isinstance(key, str) and (m := _CHUNK.match(key))
        }
        parts = [named[number] for number in sorted(named)]
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise CkptconvError(
            "a rank file without a model", where=file.path, wanted="'model', 'model0' or a list"
        )
    chunks = []
    for part in parts:
        views: dict[str, View] = {}
        for name, value in part.items():
            if "_extra_state" in check_name(name, file.path) or value is None:
                continue
            if not isinstance(value, TensorRecord):
                raise CkptconvError(f"{name} is no tensor", where=file.path, found=value)
            bare = name.removeprefix("module.")
            if untold := next((why for mark, why in _UNTOLD.items() if mark in bare), None):
                raise CkptconvError(
                    f"{untold}, which rank files do not say",
                    where=f"{bare} in {file.path}",
                    hint="save the checkpoint as torch_dist",
                )
            views[bare] = file.view(value)
        chunks.append(views)
    return tuple(chunks)


def _settings(folder: Path, opened: dict[tuple[int, ...], TorchZip]) -> dict[str, Any]:
    """The trainer's own settings, where they lie beside the weights: Megatron-LM's args, verl's transformer_config."""
    for file in opened.values():
        args = file.root.get("args") if isinstance(file.root, dict) else None
        if isinstance(args, Inert) and isinstance(args.state, dict):
            return args.state
    return read_table(folder / "transformer_config.json")


def _check_complete(ranks: list[_Rank], sizes: dict[str, int], settings: dict[str, Any], home: Path) -> None:
    """Every TP and PP index, and every EP index of every stage, must be there; with folders not a cross product."""
    stated = {
        "tp": settings.get("tensor_model_parallel_size"),
        "pp": settings.get("pipeline_model_parallel_size"),
        "ep": settings.get("expert_model_parallel_size"),
    }
    for axis, size in stated.items():
        if type(size) is int and size > sizes[axis]:
            sizes[axis] = size
        check_ranks(sizes[axis], home)
    for pp in range(sizes["pp"]):
        for axis in ("tp", "ep"):
            there = {getattr(rank.seat, axis) for rank in ranks if rank.seat.pp == pp}
            absent = sorted(set(range(sizes[axis])) - there)
            if absent:
                raise Incomplete(
                    f"{axis} rank {absent[0]} of {sizes[axis]} is missing in pipeline stage {pp}",
                    where=home,
                    found=f"{axis} ranks {sorted(there)}",
                    hint="copy its mp_rank_ folder from the node where it ran, or name that folder's parent with --also",
                )


def _expert_rows(ranks: list[_Rank]) -> Iterator[tuple[tuple[int, int, str], int, int]]:
    """Of every expert's fc1: (stage, EP rank and name), TP rank, rows."""
    for rank in ranks:
        for name, view in ((name, view) for chunk in rank.chunks for name, view in chunk.items()):
            if (match := _EXPERT.match(_numbered(name))) and match[3] == ".linear_fc1.weight":
                yield (rank.seat.pp, rank.seat.ep, name), rank.seat.tp, view.shape[0] if view.shape else 0


def _assembled(
    ranks: list[_Rank], sizes: dict[str, int], settings: dict[str, Any]
) -> Iterator[tuple[str, StoredTensor]]:
    """Stages and chunks in the order of the layers: chunk 0 of every stage, then chunk 1, …"""
    first = 0
    if len({len(rank.chunks) for rank in ranks}) > 1:
        raise CkptconvError("the rank files hold different numbers of model chunks")
    for chunk in range(len(ranks[0].chunks)):
        for pp in range(sizes["pp"]):
            stage = _Stage.of([rank for rank in ranks if rank.seat.pp == pp], chunk, first)
            names = dict.fromkeys(name for rank in stage.ranks for name in rank.chunks[chunk])
            for name in names:
                yield from _tensor(name, stage, settings)
            first += stage.ranks[0].layers(chunk)


class _Stage(NamedTuple):
    """A pipeline stage's ranks and one of their chunks. first: the layers before it.

    by_ep: its ranks by their EP index. experts: how many a rank holds, by the block's name in the chunk.
    """

    ranks: list[_Rank]
    by_ep: dict[int, list[_Rank]]
    experts: dict[str, int]
    chunk: int
    first: int

    @classmethod
    def of(cls, ranks: list[_Rank], chunk: int, first: int) -> _Stage:
        """Of the ranks of one stage."""
        by_ep: dict[int, list[_Rank]] = defaultdict(list)
        for rank in ranks:
            by_ep[rank.seat.ep].append(rank)
        numbers: dict[str, set[str]] = defaultdict(set)
        for name in ranks[0].chunks[chunk]:
            if match := _EXPERT.match(_numbered(name)):
                numbers[match[1]].add(match[2])
        experts = {block: len(found) for block, found in numbers.items()}
        return cls(ranks, dict(sorted(by_ep.items())), experts, chunk, first)

    def held(self, name: str, ranks: list[_Rank]) -> list[tuple[int, View]]:
        """(TP index, what that rank holds) for those of some ranks that have the tensor."""
        return [
            (rank.seat.tp, view) for rank in ranks if (view := rank.chunks[self.chunk].get(name)) is not None
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


def _tensor(name: str, stage: _Stage, settings: dict[str, Any]) -> Iterator[tuple[str, StoredTensor]]:
    """One name of a stage: over TP; an expert's over EP too, with its number in the whole model."""
    number = _LAYER.search(name)
    whole = name
    if number and _DECODER.match(name):
        whole = name[: number.start()] + str(int(number[1]) + stage.first) + name[number.end() :]
    numbered = _numbered(whole)
    expert = _EXPERT.match(numbered)
    if expert is None:
        yield whole, over_tp(name, stage.held(name, stage.ranks))
        return
    here = _EXPERT.match(_numbered(name))
    local = stage.experts.get(here[1], 0) if here else 0
    for ep, ranks in stage.by_ep.items():
        held = stage.held(name, ranks)
        full = f"{expert[1]}{int(expert[2]) + ep * local}{expert[3]}"
        stated = settings.get("expert_tensor_parallel_size")
        etp = stated if type(stated) is int and stated > 0 else len(held)
        yield full, over_tp(numbered, [(tp % etp, view) for tp, view in held])


def _numbered(name: str) -> str:
    """`experts.linear_fc1.weight3` (grouped GEMM) and `experts.local_experts.3.…` as `experts.3.linear_fc1.weight`."""
    grouped = _GROUPED.match(name)
    if grouped:
        return f"{grouped[1]}.{grouped[4]}.{grouped[2]}.{grouped[3]}"
    return name.replace(".experts.local_experts.", ".experts.")
