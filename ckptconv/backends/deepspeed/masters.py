"""Find the master weights of one model parallel rank: in its ranks' partitions, or in a universal checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptconv.backends.deepspeed.experts import parameters, partitioned, sharing
from ckptconv.backends.deepspeed.files import Files, check_ranks
from ckptconv.backends.deepspeed.flat import Partition, Shapes, by_parameter, check_counts, partition
from ckptconv.backends.deepspeed.model import ModelFiles
from ckptconv.backends.deepspeed.one_save import steps_of
from ckptconv.backends.deepspeed.universal import Universal, universal
from ckptconv.backends.fsdp.shared_pickles import remembering
from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.inert import Inert
from ckptconv.formats.torch_zip import Load, TorchZip, open_torch_zips
from ckptconv.tensors.view import View

_OTHER_SAVES = "copy all of one step again"


@dataclass(frozen=True, slots=True)
class Masters:
    """The master weights, and the files that hold them: `partitions` or `universal`.

    Args:
        layout: the format in words.
        world: the number of data parallel ranks.
        stage: of ZeRO; 0 if there are no partitions here.
        views: the weights, by name.
        placement: how the weights are cut, as text.
        partitions: each rank's optimizer file and its vectors, in rank order.
        steps: optimizer file -> its step counters.
        universal: the universal checkpoint that holds the weights.
        expert_ranks: for each expert parallel index, the first rank that holds its experts; () if there are no partitions.
        notes: what the user must know.
    """

    layout: str
    world: int
    stage: int
    views: dict[str, View]
    placement: str = ""
    partitions: tuple[tuple[TorchZip, Partition], ...] = ()
    steps: tuple[tuple[str, dict[str, int]], ...] = ()
    universal: Universal | None = None
    expert_ranks: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def masters_of(files: Files, mp: int, model: ModelFiles, whole: Shapes) -> Masters:
    """Return the master weights of a model parallel rank.

    Args:
        files: the files of the checkpoint.
        mp: the model parallel rank.
        model: its model files.
        whole: name -> shape of parameters that are cut over tensor parallel ranks; a universal checkpoint joins them.

    Raises:
        Incomplete: a rank's file is missing.
        CkptconvError: the files are of different saves.
    """
    shapes = model.shapes
    stated = model.root.get("dp_world_size")
    world = stated if type(stated) is int else len(model.files)
    optim = files.optim.get(mp, {})
    joined = universal(files.universal)
    if joined:
        if shapes is None:
            raise CkptconvError(
                "the model file of the universal checkpoint lists no parameters", where=files.folder
            )
        if files.partitioned:
            check_ranks(model.files, world, "model", files.folder, mp)
        wanted = [{name: whole.get(name, shape) for name, shape in group.items()} for group in shapes]
        return Masters("universal checkpoint", world, 0, joined.masters(wanted), universal=joined)
    if optim and shapes is None and not model.has_module:
        # BF16_Optimizer at stage 0 saves masters, but the model file does not say where (deepspeed/runtime/engine.py).
        note = "the module's copy of the weights is read: the model file does not list the fp32 masters (stage 0)"
        return Masters("checkpoint of stage 0", world, 0, {}, notes=(note,))
    if optim:
        return _partitioned(files, mp, model, world)
    if files.partitioned or files.optim:
        check_ranks((), world, "optim", files.folder, mp)
    if shapes is None:
        return Masters("checkpoint without partitions (stage 0)", world, 0, {})
    note = "the ranks' optimizer files are not here: the module's copy of the weights is read, not the fp32 masters"
    return Masters("ZeRO checkpoint without its optimizer files", world, 0, {}, notes=(note,))


def _partitioned(files: Files, mp: int, model: ModelFiles, world: int) -> Masters:
    load: Load = remembering()
    paths = files.optim[mp]
    ordered = {rank: str(path) for rank, path in sorted(paths.items())}
    opened = dict(zip(ordered, open_torch_zips(list(ordered.values()), load), strict=True))
    states = {rank: _state(file) for rank, file in opened.items()}
    first = next(iter(opened))
    for rank, state in states.items():
        if _facts(state) != _facts(states[first]):
            raise CkptconvError(
                "the optimizer files are of different saves",
                where=opened[rank].path,
                found=f"stage {_facts(state)[0]}, {_facts(state)[1]} partitions",
                wanted=f"stage {_facts(states[first])[0]}, {_facts(states[first])[1]} partitions",
                hint=_OTHER_SAVES,
            )
    stage, counts = _facts(states[first])
    if not _agree(counts, world, stage, model) or (stage == 3) != files.partitioned or stage not in (1, 2, 3):
        raise CkptconvError(
            "the model file and the optimizer files are of different saves",
            where=files.folder,
            found=f"stage {stage} in {', '.join(map(str, counts))} partitions",
            wanted=f"{world} partitions, as in {Path(model.main.path).name}",
            hint=_OTHER_SAVES,
        )
    check_ranks(opened, world, "optim", files.folder, mp)
    if files.partitioned:
        check_ranks(model.files, world, "model", files.folder, mp)
    shapes = model.shapes
    if shapes is None:
        raise CkptconvError("the model file lists no partitioned parameters", where=model.main.path)
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    held = [partition(opened[rank], states[rank], key) for rank in range(world)]
    where = model.main.path
    check_counts(held, len(shapes), where)
    shared = [states[rank].get("ds_zero_partition_groups") for rank in range(world)]
    if stage == 3 and any(shared):
        views = partitioned(held, shapes, shared, model)
    elif stage == 3:
        views = by_parameter(held, shapes, where)
    else:
        each = counts if len(counts) == len(shapes) else (world,) * len(shapes)
        gaps = states[first].get("param_alignment_paddings")
        views = parameters(held, shapes, each, gaps, model)
    return Masters(
        f"ZeRO-{stage} checkpoint",
        world,
        stage,
        views,
        f"stage {stage}, flat",
        tuple((opened[rank], held[rank]) for rank in range(world)),
        tuple((file.path, steps_of(file, states[rank])) for rank, file in opened.items()),
        expert_ranks=tuple(ranks[0] for ranks in sharing(world, min(counts), model)) if stage != 3 else (),
    )


def _agree(counts: tuple[int, ...], world: int, stage: int, model: ModelFiles) -> bool:
    """True if every group is cut over all ranks, or, in a model with experts, over the ranks that share its experts."""
    if set(counts) == {world}:
        return True
    divides = all(0 < count <= world and not world % count for count in counts)
    return model.has_experts and stage != 3 and divides and max(counts) == world


def _state(file: TorchZip) -> dict[str, Any]:
    state = file.root.get("optimizer_state_dict") if isinstance(file.root, dict) else None
    if not isinstance(state, dict):
        raise CkptconvError("not an optimizer file of DeepSpeed", where=file.path, kind=Kind.UNSUPPORTED)
    return state


def _facts(state: dict[str, Any]) -> tuple[int, tuple[int, ...]]:
    """Return (stage, number of partitions of each group). BF16_Optimizer records no stage; it cuts as stage 1 does."""
    stage, count = state.get("zero_stage", 1), state.get("partition_count")
    if isinstance(stage, Inert):
        stage = stage.args[0] if stage.args else 0
    counts = count if isinstance(count, list | tuple) else [count]
    return (stage if type(stage) is int else 0), tuple(n if type(n) is int else 0 for n in counts)
