"""Read experts that expert parallel ranks hold: DeepSpeed's own MoE layers, and those that AutoEP makes.

A rank's optimizer has its own experts under local numbers, in parameter groups that only the ranks with the same experts
share (deepspeed/moe/utils.py; deepspeed/utils/groups.py, `_create_expert_and_data_parallel`): rank r holds the experts of
index r % ep, or of r // (ranks / ep) under `use_data_before_expert_parallelism`. The model file lists the parameters of its
own rank. `layer_L_expert_E_…` has the module's copy of one expert under its number in the whole layer
(deepspeed/runtime/engine.py, `_save_moe_checkpoint`); L counts the MoE layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptconv.backends.deepspeed.files import Files, table
from ckptconv.backends.deepspeed.flat import Partition, Shapes, by_parameter, one_group
from ckptconv.backends.deepspeed.model import ModelFiles
from ckptconv.errors import CkptconvError, Incomplete, Kind
from ckptconv.formats.inert import items
from ckptconv.formats.stand_ins import TensorRecord
from ckptconv.formats.torch_zip import TorchZip, open_torch_zip
from ckptconv.tensors.view import View, cat, unflatten

_NATIVE = re.compile(r"^(.*\bdeepspeed_moe\.experts\.deepspeed_experts\.)(\d+)(\..+)$", re.DOTALL)
_FUSED = re.compile(r"^(.*\bexperts\.w[123])\.(\d+)$", re.DOTALL)  # of AutoEP, in an expert's file


def parameters(
    held: Sequence[Partition], shapes: Sequence[Shapes], counts: Sequence[int], gaps: Any, model: ModelFiles
) -> dict[str, View]:
    """Return the parameters of stages 1 and 2, each expert under its number in the whole layer.

    Args:
        held: the partitions of all data parallel ranks, in rank order.
        shapes: name -> shape of each group, as the model file's own rank has it.
        counts: the number of ranks that share each group.
        gaps: see `flat.one_group`.
        model: the model files.

    Raises:
        CkptconvError: a group is cut over fewer ranks, and it holds other parameters than experts.
    """
    where, found = model.main.path, dict[str, View]()
    for number, (group, count) in enumerate(zip(shapes, counts, strict=True)):
        if count == len(held):
            found |= one_group(held, number, group, gaps, where)
            continue
        parts = [
            one_group([held[rank] for rank in ranks], number, group, gaps, where)
            for ranks in sharing(len(held), count, model)
        ]
        found |= whole_layer(parts, group, model)
    return found


def whole_layer(
    parts: Sequence[Mapping[str, View]], names: Iterable[str], model: ModelFiles
) -> dict[str, View]:
    """Return the experts of all expert parallel ranks.

    Args:
        parts: the experts of each expert parallel rank, by the names of rank 0.
        names: the names of the parameters.
        model: the model files.

    Raises:
        CkptconvError: a parameter is not an expert's.
    """
    names = list(names)
    local: dict[str, int] = {}
    for name in names:
        if match := _NATIVE.match(name):
            local[match[1]] = max(local.get(match[1], 0), int(match[2]) + 1)
    found: dict[str, View] = {}
    for name in names:
        views = [part[name] for part in parts]
        if match := _NATIVE.match(name):
            for index, view in enumerate(views):
                found[f"{match[1]}{index * local[match[1]] + int(match[2])}{match[3]}"] = view
        elif name in model.fused_experts:
            _check_placement(name, len(views), model)
            found[name] = cat(views, 0)
        else:
            raise CkptconvError(
                f"{name} is cut over fewer ranks than the checkpoint has, and it is not an expert's",
                where=model.main.path,
                found=f"{len(views)} parts",
                kind=Kind.UNSUPPORTED,
            )
    return found


def _check_placement(name: str, ep: int, model: ModelFiles) -> None:
    """Refuse an AutoEP layer whose ranks do not hold consecutive experts."""
    for layer in model.autoep_layers:
        if not name.startswith(f"{layer.get('expert_key_prefix')}."):
            continue
        placement = table(layer.get("expert_placement"), "expert_placement", model.main)
        ranks = [each.get("experts") for each in items(placement.get("ranks")) if isinstance(each, dict)]
        held = [expert for experts in ranks for expert in items(experts)]
        if placement and (len(ranks) != ep or held != list(range(len(held)))):
            raise CkptconvError(
                f"the expert parallel ranks do not hold consecutive experts of {name}",
                where=model.main.path,
                found=ranks,
                kind=Kind.UNSUPPORTED,
            )


def partitioned(
    held: Sequence[Partition], shapes: Sequence[Shapes], groups: Sequence[Any], model: ModelFiles
) -> dict[str, View]:
    """Return the parameters of stage 3 in a model of AutoEP: each sub group is cut over the ranks that it names.

    Args:
        held: the partitions of all data parallel ranks, in rank order.
        shapes: name -> shape of each sub group.
        groups: each rank's `ds_zero_partition_groups` (deepspeed/runtime/zero/stage3.py).
        model: the model files.

    Raises:
        CkptconvError: the ranks disagree on who shares a sub group.
    """
    where, found = model.main.path, dict[str, View]()
    for number, group in enumerate(shapes):
        sets = {_ranks_of(each, number, held[rank].path): rank for rank, each in enumerate(groups)}
        if sorted(rank for ranks in sets for rank in ranks) != list(range(len(held))):
            raise CkptconvError(
                "the ranks disagree on who shares a parameter group", where=where, found=sorted(sets)
            )
        parts = [
            by_parameter([Partition(held[r].path, (held[r].groups[number],)) for r in ranks], [group], where)
            for ranks in sorted(sets)
        ]
        found |= parts[0] if len(parts) == 1 else whole_layer(parts, group, model)
    return found


def _ranks_of(groups: Any, number: int, where: str) -> tuple[int, ...]:
    listed = items(groups)
    group = listed[number] if number < len(listed) else None
    ranks = items(group.get("partition_ranks") if isinstance(group, dict) else None)
    if not ranks or not all(type(rank) is int for rank in ranks):
        raise CkptconvError("a parameter group does not name its ranks", where=where, kind=Kind.DAMAGED)
    return tuple(ranks)


def copies(files: Files, model: ModelFiles) -> tuple[dict[str, View], list[TorchZip]]:
    """Return the module's copies of all experts, and the files that hold them.

    Raises:
        Incomplete: an expert's file is missing.
        CkptconvError: a file holds another expert than its name says.
    """
    if not files.experts and (files.partitioned or not model.has_experts):
        return {}, []
    if any(mp for _, _, mp in files.experts):
        raise CkptconvError(
            "experts over tensor parallel ranks are not read",
            where=files.folder,
            found=next(path.name for (_, _, mp), path in files.experts.items() if mp),
            kind=Kind.UNSUPPORTED,
        )
    _check_complete(files, model)
    opened, fused, found = [], dict[str, dict[int, View]](), dict[str, View]()
    for (_, expert, _), path in sorted(files.experts.items()):
        file = open_torch_zip(str(path))
        opened.append(file)
        for name, record in table(file.root, "the file", file).items():
            match = _NATIVE.match(name) or _FUSED.match(name)
            if match is None or int(match[2]) != expert or not isinstance(record, TensorRecord):
                raise CkptconvError(
                    f"the file of expert {expert} holds something else", where=path, found=name
                )
            if match.re is _FUSED:
                fused.setdefault(match[1], {})[expert] = file.view(record)
            elif name in found:
                raise CkptconvError(f"{name} is in two files", where=path)
            else:
                found[name] = file.view(record)
    for name, parts in fused.items():
        rows = [unflatten(parts[n], 0, (1, parts[n].shape[0])) for n in sorted(parts)]
        found[name] = cat(rows, 0)
    return found, opened


def _check_complete(files: Files, model: ModelFiles) -> None:
    stated = model.expert_counts
    for layer in range(max(len(stated), *(layer + 1 for layer, _, _ in files.experts), 0)):
        here = {expert for each, expert, _ in files.experts if each == layer}
        count = stated[layer] if layer < len(stated) else max(here, default=0) + 1
        missing = sorted(set(range(count)) - here)
        if missing:
            name = f"layer_{layer}_expert_{missing[0]}_mp_rank_00_model_states.pt"
            raise Incomplete(
                f"expert {missing[0]} of MoE layer {layer} is missing from the checkpoint",
                where=files.folder,
                found=f"{len(here)} of {count} experts",
                wanted=name,
                hint="copy it from the node that saved it, or name its folder with --also",
            )
        if len(here) > count:
            raise CkptconvError(
                f"there are files of more experts than MoE layer {layer} has",
                where=files.folder,
                found=f"expert {max(here)}",
                wanted=f"{count} experts, as in {Path(model.main.path).name}",
                hint="they are from different saves; move one set away",
            )


def sharing(world: int, count: int, model: ModelFiles) -> list[list[int]]:
    """Return the ranks that hold the same experts, for each expert parallel index.

    Args:
        world: the number of data parallel ranks.
        count: how many of them share the same experts.
        model: the model files.
    """
    ep, settings = world // count, model.root.get("ds_config")
    if isinstance(settings, dict) and settings.get("use_data_before_expert_parallelism") is True:
        return [list(range(index * count, (index + 1) * count)) for index in range(ep)]
    return [list(range(index, world, ep)) for index in range(ep)]
