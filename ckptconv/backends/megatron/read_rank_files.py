"""Reads Megatron's rank files: mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt (Megatron-LM) or model.pt (verl v0).

Each file holds the state dict of one rank's module (megatron/training/checkpointing.py, get_checkpoint_name and
generate_state_dict). `stages` joins them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ckptconv.backends.copied_files import refuse_copies
from ckptconv.backends.megatron.evidence import saved_by as saved_by
from ckptconv.backends.megatron.experts import expert_ranks
from ckptconv.backends.megatron.glu import uninterleaved
from ckptconv.backends.megatron.lora import lora_settings
from ckptconv.backends.megatron.mamba import taken_apart, with_whole_adapters
from ckptconv.backends.megatron.names import canonical, not_a_weight
from ckptconv.backends.megatron.one_save import check_one_save
from ckptconv.backends.megatron.rank_files import FOLDER
from ckptconv.backends.megatron.rank_files import home as home_of
from ckptconv.backends.megatron.settings import rank_file_settings
from ckptconv.backends.megatron.stages import DECODER, Coordinate, Rank, assembled, expert_rows
from ckptconv.backends.runs import Place, with_config
from ckptconv.backends.saved_at import apart
from ckptconv.errors import CkptconvError, Incomplete, Kind
from ckptconv.formats.bounds import check_name, check_ranks
from ckptconv.formats.same import same_bytes
from ckptconv.formats.stand_ins import TensorRecord
from ckptconv.formats.torch_zip import TorchZip, open_torch_zips
from ckptconv.tensors.checkpoint import Checkpoint, Lora, Mesh, RankFile, Skipped
from ckptconv.tensors.look import is_file, paths_in, size_of
from ckptconv.tensors.view import View

_FILES = ("model_optim_rng.pt", "model.pt")
_CHUNK = re.compile(r"^model(\d*)$")
_FINAL_NORM = re.compile(DECODER.pattern + r"final_(layer)?norm\.weight$")
# Parts of names whose layout depends on the trainer, and why.
_NOT_RECORDED = {
    ".self_attention.in_proj.": "each trainer has the rows of a gated delta net in its own order",
    "vision_model.merger.patch_norm.": "mbridge's tower of Qwen3-VL has an MLP without a gate",
}


def read(place: Place, also: Sequence[Path] = ()) -> Checkpoint:
    """Read every rank's metadata, and join pipeline stages, experts and TP parts.

    Args:
        place: the step's folder.
        also: further folders with mp_rank_* folders.

    Raises:
        Incomplete: a rank is missing.
        CkptconvError: the rank files do not fit together.
    """
    home = home_of(place.folder)
    if home is None:
        raise CkptconvError("no mp_rank_* folders here", where=place.folder, kind=Kind.NOT_A_CHECKPOINT)
    found = _paths([home, *(home_of(path) or path for path in also)])
    ordered = {numbers: str(path) for numbers, path in sorted(found.items())}
    opened = dict(zip(ordered, open_torch_zips(list(ordered.values())), strict=True))
    refuse_copies((file, None) for file in opened.values())
    ranks = _ranks_with_coordinates(opened)
    sizes = {axis: 1 + max(getattr(r.coordinate, axis) for r in ranks) for axis in ("tp", "pp", "ep")}
    check_one_save([(rank.coordinate, file) for rank, file in zip(ranks, opened.values(), strict=True)], home)
    stated = rank_file_settings(place.folder, ((file.path, file.root) for file in opened.values()))
    settings = stated.merged()
    _check_complete(ranks, sizes, settings, home)
    assets = with_config(place.folder / "huggingface", place.folder / "model" / "huggingface", place.folder)
    if "expert_tensor_parallel_size" not in settings:
        settings |= expert_ranks(expert_rows(ranks), place.folder, assets)
    tensors, interleaved = uninterleaved(
        canonical(with_whole_adapters(assembled(ranks, sizes, settings))), settings
    )
    held = sum(size_of(path) for path in found.values())
    used = sum(t.view.nbytes + t.replica_bytes for t in tensors.values())
    return Checkpoint(
        backend="megatron",
        layout="Megatron rank files (mp_rank_*)",
        root=place.folder,
        world_size=len(ranks),
        files=tuple(
            RankFile(n, file.path, size_of(file.path), _coordinates(rank.coordinate, sizes))
            for n, (file, rank) in enumerate(zip(opened.values(), ranks, strict=True))
        ),
        tensors=tensors,
        meshes=(Mesh((sizes["tp"], sizes["pp"], sizes["ep"]), ("tp", "pp", "ep")),),
        step=place.step,
        role=place.role,
        assets=assets,
        skipped=(Skipped("optimizer and trainer state", max(held - used, 0), "not part of the model"),),
        lora=Lora(lora_settings(place.folder)),
        notes=(*place.notes(), *stated.notes, *interleaved, *apart(list(found.values()), inside=1)),
        naming="megatron",
        trainer=stated.settings,
    )


def _coordinates(coordinate: Coordinate, sizes: dict[str, int]) -> tuple[tuple[str, int], ...]:
    """A coordinate along the axes that have more than one rank, stages first."""
    return tuple((axis, getattr(coordinate, axis)) for axis in ("pp", "tp", "ep") if sizes[axis] > 1)


def _paths(homes: Sequence[Path]) -> dict[tuple[int, ...], Path]:
    """The numbers in the name of an mp_rank_* folder -> the rank file in it."""
    found: dict[tuple[int, ...], Path] = {}
    for home in homes:
        for folder in paths_in(home):
            match = FOLDER.match(folder.name)
            if not match:
                continue
            path = next((folder / name for name in _FILES if is_file(folder / name)), None)
            if path is None:
                raise CkptconvError(
                    "a rank's folder has no model file",
                    where=folder,
                    wanted=" or ".join(_FILES),
                    kind=Kind.INCOMPLETE,
                )
            numbers = tuple(int(n) for n in match.groups() if n is not None)
            first = found.setdefault(numbers, path)
            if first is not path and not same_bytes(first, path):
                raise CkptconvError(
                    "two files of one rank have different bytes",
                    where=f"{first} and {path}",
                    hint="they are from different saves, or one is damaged; remove or omit one of the folders",
                )
    if len({len(numbers) for numbers in found}) > 1:
        raise CkptconvError("rank folders of different naming schemes are mixed", where=homes[0])
    return found


def _ranks_with_coordinates(opened: dict[tuple[int, ...], TorchZip]) -> list[Rank]:
    """The ranks with their coordinates.

    A folder's name has the numbers (TP), (TP, PP), (TP, EP) or (TP, PP, EP). Two numbers are (TP, EP) if every rank has the
    final norm, since there are no pipeline stages then.
    """
    loaded = {numbers: _chunks(file) for numbers, file in opened.items()}
    staged = not all(
        any(_FINAL_NORM.match(name) for chunk in chunks for name in chunk) for chunks in loaded.values()
    )
    ranks = []
    for numbers, chunks in sorted(loaded.items()):
        tp, second, third = (*numbers, 0, 0)[:3]
        coordinate = (
            Coordinate(tp, second, third) if len(numbers) == 3 or staged else Coordinate(tp, 0, second)
        )
        ranks.append(Rank(coordinate, chunks))
    return ranks


def _chunks(file: TorchZip) -> tuple[dict[str, View], ...]:
    """The model chunks of a rank file: name -> view for each.

    Megatron-LM's keys are "model", or "model0", "model1", … with virtual pipeline stages. verl saves a list.
    """
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
            "the rank file has no model",
            where=file.path,
            wanted="'model', 'model0' or a list",
            kind=Kind.UNSUPPORTED,
        )
    chunks = []
    for part in parts:
        views: dict[str, View] = {}
        for name, value in part.items():
            if not_a_weight(check_name(name, file.path)) or value is None:
                continue
            if not isinstance(value, TensorRecord):
                raise CkptconvError(f"{name} is not a tensor", where=file.path, found=value)
            bare = name.removeprefix("module.")
            if reason := next((why for mark, why in _NOT_RECORDED.items() if mark in bare), None):
                raise CkptconvError(
                    f"{reason}, and rank files do not record that",
                    where=f"{bare} in {file.path}",
                    hint="save the checkpoint as torch_dist",
                    kind=Kind.UNSUPPORTED,
                )
            views[bare] = file.view(value)
        chunks.append(taken_apart(views, file.path))
    return tuple(chunks)


def _check_complete(ranks: list[Rank], sizes: dict[str, int], settings: dict[str, Any], home: Path) -> None:
    """Require every PP index, and every TP and EP index of every stage. Not every combination of them has a folder.

    Args:
        ranks: the ranks that are here.
        sizes: axis -> its number of ranks; raised to the number that the settings state.
        settings: the trainer's settings.
        home: the folder with the mp_rank_* folders.
    """
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
            there = {getattr(rank.coordinate, axis) for rank in ranks if rank.coordinate.pp == pp}
            absent = sorted(set(range(sizes[axis])) - there)
            if absent:
                raise Incomplete(
                    f"{axis} rank {absent[0]} of {sizes[axis]} is missing in pipeline stage {pp}",
                    where=home,
                    found=f"{axis} ranks {sorted(there)}",
                    hint="copy its mp_rank_ folder from the node where it ran, or name that folder's parent with --also",
                )
