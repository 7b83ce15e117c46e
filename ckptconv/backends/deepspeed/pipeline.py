"""Read a pipeline: each stage's masters, and one file per layer with the module's copy.

Names (deepspeed/runtime/pipe/module.py): a layer's parameters are `LAYER.name`, those of a module that several layers share
`tied_modules.KEY.name`, on every stage that has one of these layers. `layer_LL-model_states.pt`, or with tensor parallel
ranks `layer_LL-model_TT-model_states.pt`, has the layer's own names; a shared module is in the file of the first of its
layers. Here every tensor is `LAYER.name`; `models/layered.py` finds out which layer of the class each is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ckptconv.backends.deepspeed.files import Files, table
from ckptconv.backends.deepspeed.slices import Slices
from ckptconv.errors import CkptconvError, Incomplete
from ckptconv.formats.stand_ins import TensorRecord
from ckptconv.formats.torch_zip import TorchZip, open_torch_zip
from ckptconv.tensors.checkpoint import StoredTensor
from ckptconv.tensors.view import View

_TIED = re.compile(r"^tied_modules\.([^.]+)\.(.+)$", re.DOTALL)
_LAYER = re.compile(r"^(\d+)\.(.+)$", re.DOTALL)
Copies = dict[str, View]


def layer_copies(files: Files, tp: int) -> tuple[list[Copies], list[TorchZip]]:
    """Return the module's copies of every tensor, for each tensor parallel rank, and the files that hold them.

    Raises:
        Incomplete: a layer lacks the file of a tensor parallel rank.
        CkptconvError: a file holds something else than a layer.
    """
    copies: list[Copies] = [{} for _ in range(tp)]
    opened = []
    layers = sorted({layer for layer, _ in files.layers})
    for layer in layers:
        for rank in range(tp):
            path = files.layers.get((layer, rank))
            if path is None:
                raise Incomplete(
                    f"the file of layer {layer} of tensor parallel rank {rank} is missing",
                    where=files.folder,
                    wanted=f"layer_{layer:02d}-model_{rank:02d}-model_states.pt",
                    hint="copy it from the node where that rank ran, or name its folder with --also",
                )
            file = open_torch_zip(str(path))
            opened.append(file)
            for name, record in table(file.root, "the file", file).items():
                if isinstance(record, TensorRecord):
                    copies[rank][f"{layer}.{name}"] = file.view(record)
                elif record is not None:
                    raise CkptconvError(f"{name} is stored, but not as a tensor", where=path)
    extra = [path for (_, rank), path in files.layers.items() if rank >= tp]
    if extra:
        raise CkptconvError(
            "there are layer files of more tensor parallel ranks than wrote the checkpoint",
            where=extra[0],
            wanted=f"model_00 to model_{tp - 1:02d}",
            hint="they are from different saves; move one set away",
        )
    return copies, opened


def masters_by_layer(
    slices: Slices, copies: list[Copies], where: Path
) -> tuple[list[dict[str, StoredTensor]], dict[str, str]]:
    """Return the masters, for each tensor parallel rank under `LAYER.name`, and `LAYER.name` -> the parameter's name.

    The copies of further stages become replicas.

    Raises:
        CkptconvError: a master has no layer file, or another shape than the module's copy.
    """
    tp = slices.degrees.tp
    found: list[dict[str, StoredTensor]] = [{} for _ in range(tp)]
    origins: dict[str, str] = {}
    for each in slices.ranks:
        rank = each.mp % tp
        names = _names(each.masters.views, copies[rank], where)
        for name, view in each.masters.views.items():
            layer = names[name]
            origins[layer] = name
            copy = copies[rank].get(layer)
            if copy is None or copy.shape != view.shape:
                raise _no_copy(name, layer, view, copy, where)
            first = found[rank].get(layer)
            if first is None:
                found[rank][layer] = StoredTensor(view, each.masters.placement)
            else:
                zero = (0,) * len(view.shape)
                found[rank][layer] = StoredTensor(
                    first.view, first.placement, (*first.replicas, (zero, view))
                )
    return found, origins


def _names(masters: Mapping[str, View], copies: Copies, where: Path) -> dict[str, str]:
    """Return the name of each master under `LAYER.name`."""
    owned = {match[1] for name in masters if (match := _LAYER.match(name))}
    names, tied = {}, dict[str, dict[str, str]]()
    for name in masters:
        if match := _TIED.match(name):
            tied.setdefault(match[1], {})[match[2]] = name
        elif _LAYER.match(name):
            names[name] = name
        else:
            raise CkptconvError(f"{name} is not the name of a parameter in a pipeline", where=where)
    for key, members in tied.items():
        shapes = {rest: masters[name].shape for rest, name in members.items()}
        layers = [
            layer
            for layer, held in _by_layer(copies).items()
            if layer not in owned and all(held.get(rest) == shape for rest, shape in shapes.items())
        ]
        if not layers:
            raise Incomplete(
                f"the layer file with the shared module {key!r} is missing from the checkpoint",
                where=where,
                wanted=f"a file layer_…-model_states.pt with {', '.join(shapes)}",
                hint="copy it from the node where its stage ran, or name its folder with --also",
            )
        names |= {name: f"{layers[0]}.{rest}" for rest, name in members.items()}
    return names


def _by_layer(copies: Copies) -> dict[str, dict[str, tuple[int, ...]]]:
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, view in copies.items():
        layer, _, rest = name.partition(".")
        found.setdefault(layer, {})[rest] = view.shape
    return found


def _no_copy(name: str, layer: str, view: View, copy: View | None, where: Path) -> CkptconvError:
    if copy is not None:
        return CkptconvError(
            f"{name} has another shape in its layer's file than in the partitions",
            where=copy.files[0] if copy.files else where,
            found=list(copy.shape),
            wanted=list(view.shape),
            hint="the files are of different saves: copy all of one step again",
        )
    number = int(layer.partition(".")[0])
    return Incomplete(
        f"the file of layer {number} is missing from the checkpoint, or lacks {name}",
        where=where,
        wanted=f"layer_{number:02d}-…model_states.pt",
        hint="copy it from the node where its stage ran, or name its folder with --also",
    )
