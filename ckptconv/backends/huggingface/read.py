"""Reads whole models: a Hugging Face folder of safetensors or torch.save files, a PEFT adapter, or one file of weights.

The checkpoint-N/ folders of transformers' Trainer are such folders, and also hold the trainer's state
(transformers/trainer.py, _save_checkpoint). A folder without config.json is a trainer's state (accelerate's save_state):
its tensors have the module's names, and may be float32 master weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ckptconv.backends.base import unknown_writer
from ckptconv.backends.dcp.homes import assets_of
from ckptconv.backends.huggingface.layout import IS_SHARDED, NAME
from ckptconv.backends.huggingface.torch_bin import read_state_dict
from ckptconv.backends.huggingface.weight_files import (
    ADAPTER_CONFIG,
    ADAPTERS,
    CONFIG,
    Chosen,
    choose,
    left_over,
    one_file,
    sizes_of,
)
from ckptconv.backends.registry import is_one_file
from ckptconv.backends.runs import Place, step_of
from ckptconv.errors import CkptconvError, Incomplete, Kind
from ckptconv.formats.in_order import in_order
from ckptconv.formats.json import read_table
from ckptconv.formats.safetensors import read_header
from ckptconv.tensors.checkpoint import Checkpoint, Lora, RankFile, Skipped, StoredTensor, TrainerSettings
from ckptconv.tensors.look import is_file, matching, size_of
from ckptconv.tensors.view import View

saved_by = unknown_writer
_TRAINER_STATE = "trainer_state.json"


def read(place: Place, also: Sequence[Path] = ()) -> Checkpoint:
    """Read every file's header.

    Args:
        place: the model's folder.
        also: must be empty; a whole model has no rank files.

    Raises:
        Incomplete: a file is missing.
        CkptconvError: the index and the files disagree, or a file violates its format.
    """
    folder = place.folder
    if is_file(folder):
        return read_file(folder, place)
    if also:
        raise CkptconvError(
            "--also is only for rank files, and this is a model folder", where=also[0], kind=Kind.USAGE
        )
    chosen = choose(folder)
    if chosen is None:
        raise CkptconvError("no model weights found here", where=folder, kind=Kind.NOT_A_CHECKPOINT)
    return read_chosen(place, chosen)


def read_chosen(place: Place, chosen: Chosen) -> Checkpoint:
    """Read the headers of the files that `choose` found in a folder; see `read`."""
    folder = place.folder
    chosen, gathered = _gathered(folder, chosen)
    sizes = sizes_of(folder)
    if gathered:
        del sizes[ADAPTERS[0]]  # nothing is in it
    skipped, notes = left_over(sizes, chosen)
    files = list(in_order(lambda name: _opened(folder / name, folder), chosen.names))
    return _assembled(
        folder, chosen, files, place, tuple(skipped), (*place.notes(), *gathered, *notes, *_unfinished(place))
    )


def _gathered(folder: Path, chosen: Chosen) -> tuple[Chosen, list[str]]:
    """The adapter that ZeRO 3 gathered, where `save_pretrained` wrote every tensor empty; with a note on it.

    Trainers that save under ZeRO 3 by `save_pretrained` and then by torch.save leave both files. Source: open-instruct,
    open_instruct/grpo_fast.py, save_model.
    """
    safe, other = ADAPTERS
    if not chosen.is_adapter or chosen.names != (safe,) or not is_file(folder / safe):
        return chosen, []
    tensors = read_header(folder / safe)[0]
    if not tensors or any(view.numel for view in tensors.values()) or not is_file(folder / other):
        return chosen, []
    note = f"{other} is read, since every tensor in {safe} is empty: DeepSpeed ZeRO 3 had not gathered them"
    return chosen._replace(names=(other,)), [note]


def read_file(path: Path, place: Place | None = None) -> Checkpoint:
    """Read one file of weights. The model's config.json is expected in the same folder, or for a state dict above it.

    Args:
        path: the file.
        place: the step that its name says; None if the user named the file.

    Raises:
        CkptconvError: the file is one of a set, or violates its format.
    """
    chosen, folder = one_file(path), path.parent
    own = step_of(path) if is_one_file(path.name) else None
    place = place or Place(folder, own.number if own else None, None)
    found = _assembled(folder, chosen, [_opened(path, folder)], place, notes=tuple(place.notes()))
    return replace(found, one_file=path)


class _Opened(NamedTuple):
    """The header of one file of weights.

    Args:
        path: the file that the views refer to.
        nbytes: its size.
        tensors: its tensors.
        skipped: what else it holds.
        notes: findings for the user.
        trainer: what the trainer wrote about the model.
        writer: the trainer's name, or "".
    """

    path: Path
    nbytes: int
    tensors: Mapping[str, View]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    trainer: tuple[TrainerSettings, ...] = ()
    writer: str = ""


def _assembled(
    root: Path,
    chosen: Chosen,
    opened: Sequence[_Opened],
    place: Place,
    skipped: tuple[Skipped, ...] = (),
    notes: tuple[str, ...] = (),
) -> Checkpoint:
    """Join files of weights to one checkpoint.

    Args:
        root: the model's folder.
        chosen: which files they are, and what the index says.
        opened: their headers, in the order of `chosen`.
        place: the step and role of the folder.
        skipped: what else the folder holds.
        notes: findings for the user.

    Raises:
        CkptconvError: two files hold the same tensor, or the index and the files disagree.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in opened:
        skipped, notes = skipped + file.skipped, notes + file.notes
        for tensor, view in file.tensors.items():
            if tensor in tensors:
                raise CkptconvError(
                    f"two shards hold {tensor}", where=f"{tensors[tensor].view.files} and {file.path}"
                )
            tensors[tensor] = StoredTensor(view)
    files = [RankFile(number, str(file.path), file.nbytes) for number, file in enumerate(opened)]
    if chosen.expected is not None:
        _check_index(root, chosen.expected, tensors)
    has_config = is_file(root / CONFIG)
    return Checkpoint(
        backend=NAME,
        layout=_layout(chosen, has_config and not chosen.is_state) + _saved_by(opened),
        root=root,
        world_size=len(files),
        files=tuple(files),
        tensors=tensors,
        step=place.step,
        role=place.role,
        assets=root if has_config else _config_above(root, chosen),
        skipped=skipped,
        lora=Lora(read_table(root / ADAPTER_CONFIG), True) if chosen.is_adapter else Lora(),
        notes=notes,
        trainer=tuple(settings for file in opened for settings in file.trainer),
        is_sharded=IS_SHARDED,
        naming="hub" if chosen.is_adapter or (has_config and not chosen.is_state) else "transformers",
    )


def _opened(path: Path, folder: Path) -> _Opened:
    """Read one file's header."""
    if not is_file(path):
        raise Incomplete("a shard named in the index is missing", where=folder, wanted=path.name)
    nbytes = size_of(path)
    if path.suffix == ".safetensors":
        return _Opened(path, nbytes, read_header(path)[0])
    found = read_state_dict(path)
    return _Opened(path, nbytes, found.tensors, found.skipped, found.notes, found.trainer, found.writer)


def _config_above(root: Path, chosen: Chosen) -> Path | None:
    """The folder with the config.json of a trainer's state dict, which may be above the step's folder."""
    return None if chosen.is_adapter else assets_of(root)


def _layout(chosen: Chosen, has_config: bool) -> str:
    """The format in words."""
    if chosen.is_adapter:
        return "PEFT adapter"
    safe = chosen.names[0].endswith(".safetensors")
    if not has_config:
        return f"whole state dict, {'safetensors' if safe else 'torch.save'}"
    return "Hugging Face model folder" if safe else "Hugging Face model folder, torch.save files"


def _saved_by(opened: Sequence[_Opened]) -> str:
    """The trainer's name, for the format in words."""
    return next((f", saved by {file.writer}" for file in opened if file.writer), "")


def _unfinished(place: Place) -> tuple[str, ...]:
    """A note on a step without trainer_state.json, which transformers writes last (trainer.py, _save_checkpoint)."""
    folder = place.folder
    if not folder.name.startswith("checkpoint-") or is_file(folder / _TRAINER_STATE):
        return ()
    if not any(is_file(path) for path in matching(folder.parent, f"checkpoint-*/{_TRAINER_STATE}")):
        return ()
    return (
        f"{folder.name} has no {_TRAINER_STATE}, which is written last: the save was interrupted after the weights",
    )


def _check_index(folder: Path, expected: dict[str, str], tensors: dict[str, StoredTensor]) -> None:
    """Require that every tensor is in the file that the index names, and that the index names every tensor."""
    for name, file in expected.items():
        held = tensors.get(name)
        if held is None or (held.view.files and held.view.files != (str(folder / file),)):
            raise CkptconvError(
                f"the index places {name} in {file}, but it is not there", where=folder, kind=Kind.INCOMPLETE
            )
    extra = sorted(set(tensors) - set(expected))
    if extra:
        raise CkptconvError(f"the shards hold {extra[0]}, which the index does not name", where=folder)
