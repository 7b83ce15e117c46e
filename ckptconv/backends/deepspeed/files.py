"""Find the files of a DeepSpeed checkpoint by rank, and check that none is missing.

Names: deepspeed/runtime/engine.py (`_get_ckpt_name`, `_get_rank_zero_ckpt_name`, `_get_expert_ckpt_name`),
deepspeed/runtime/pipe/module.py (`ckpt_layer_path`); `latest` holds the tag, the folder's name. `mp_rank_NN` counts model
parallel ranks: stages of a pipeline, and tensor parallel ranks within each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ckptconv.backends.runs import steps_of
from ckptconv.errors import CkptconvError, Incomplete, Kind, listed
from ckptconv.formats.bounds import check_name, is_file_name, whole_numbers
from ckptconv.formats.bounds import check_ranks as check_most
from ckptconv.formats.json import settings_text
from ckptconv.formats.torch_zip import TorchZip
from ckptconv.tensors.look import is_dir, is_file, names_in, paths_in, size_of

_MODEL = re.compile(r"^(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt$")
_OPTIM = re.compile(r"^(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt$")
_EXPERT = re.compile(r"^layer_(\d+)_expert_(\d+)_mp_rank_(\d+)_model_states\.pt$")
_LAYER = re.compile(r"^layer_(\d+)-(?:model_(\d+)-)?model_states\.pt$")
_EXPERT_OPTIM = re.compile(r"^expp_rank_\d+_mp_rank_\d+_optim_states\.pt$")
_OLD_EXPERT = re.compile(r"^expert_\d+_mp_rank_\d+_model_states\.pt$")
_UNIVERSAL = "zero"  # the folder of a universal checkpoint that has one folder per parameter


Key = TypeVar("Key")


@dataclass(slots=True)
class Files:
    """The files of a checkpoint.

    model, optim: model parallel rank -> data parallel rank -> file.
    layers: (layer of a pipeline, tensor parallel rank) -> file.
    experts: (MoE layer, expert, model parallel rank) -> file.
    expert_optim: optimizer states of experts without ZeRO, of which nothing is read.
    universal: the folders that hold one folder per parameter.
    """

    folder: Path
    model: dict[int, dict[int, Path]] = field(default_factory=dict)
    optim: dict[int, dict[int, Path]] = field(default_factory=dict)
    layers: dict[tuple[int, int], Path] = field(default_factory=dict)
    experts: dict[tuple[int, int, int], Path] = field(default_factory=dict)
    expert_optim: list[Path] = field(default_factory=list)
    universal: list[Path] = field(default_factory=list)

    @property
    def partitioned(self) -> bool:
        """True at stage 3, where every rank writes a model file."""
        return any(
            path.name.startswith("zero_pp_rank_") for each in self.model.values() for path in each.values()
        )


def home(folder: Path) -> Path | None:
    """Return the folder with the files: this folder, or the one that its `latest` names; None if there is none.

    For the folder of a run with several steps the result is None, because the search for steps handles it.
    """
    if _has_files(folder):
        return folder
    steps = steps_of(folder)
    for name in ("latest", "latest_universal"):
        tag = _tag(folder / name)
        if tag is None or not is_dir(folder / tag) or not _has_files(folder / tag):
            continue
        if len(steps) == (name == "latest") or (name == "latest" and folder / tag not in steps.values()):
            return folder / tag
    return None


def find(folders: Sequence[Path]) -> Files:
    """Return the files of all folders, by rank.

    Raises:
        CkptconvError: the checkpoint has a layout that ckptconv does not read.
    """
    found = Files(folders[0])
    for folder in folders:
        for name in sorted(_states(folder)):
            path = folder / name
            if _OLD_EXPERT.match(name):
                raise _unread("experts that old versions of DeepSpeed saved", path)
            if match := _MODEL.match(name):
                _add(found.model.setdefault(int(match[2]), {}), int(match[1] or 0), path)
            elif match := _OPTIM.match(name):
                _add(found.optim.setdefault(int(match[2]), {}), int(match[1]), path)
            elif match := _LAYER.match(name):
                _add(found.layers, (int(match[1]), int(match[2] or 0)), path)
            elif match := _EXPERT.match(name):
                _add(found.experts, (int(match[1]), int(match[2]), int(match[3])), path)
            elif _EXPERT_OPTIM.match(name):
                found.expert_optim.append(path)
        if _is_universal(folder):
            found.universal.append(folder / _UNIVERSAL)
    return found


def check_ranks(ranks: Iterable[int], world: int, kind: str, folder: Path, mp: int = 0) -> None:
    """Check that there is exactly one file for every data parallel rank.

    Args:
        ranks: that have a file.
        world: the number of data parallel ranks.
        kind: "model" or "optim".
        folder: the folder of the checkpoint, for error messages.
        mp: the model parallel rank of the files, for error messages.

    Raises:
        CkptconvError: a rank has no file, or a file's rank is not below `world`.
    """
    held = set(ranks)
    check_most(world, folder)
    missing = sorted(set(range(world)) - held)
    if missing:
        one = len(missing) == 1
        raise Incomplete(
            f"the {kind} file{'' if one else 's'} of rank {listed(missing, 8)} of {world} {'is' if one else 'are'} missing",
            where=folder,
            found=f"{len(held)} of {world} files",
            wanted=f"…zero_pp_rank_{missing[0]}_mp_rank_{mp:02d}_{kind}_states.pt",
            hint=f"copy it from the node where rank {missing[0]} ran, or name its folder with --also",
        )
    if len(held) > world:
        raise CkptconvError(
            f"there are {kind} files of more ranks than wrote the checkpoint",
            where=folder,
            found=f"a file of rank {max(held)}",
            wanted=f"ranks 0 to {world - 1}",
            hint="they are from different saves; move one set away",
        )


def table(value: Any, what: str, file: TorchZip) -> dict[str, Any]:
    """Return a part of a pickle that must be a dict with strings as keys; {} if it is None.

    Args:
        value: the part.
        what: its name, for the error message.
        file: that holds it.

    Raises:
        CkptconvError: the part is not such a dict.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CkptconvError(
            f"{what} is not a dict with string keys", where=file.path, found=type(value).__name__
        )
    for name in value:
        check_name(name, f"{what} in {file.path}")
    return value


def shapes_of(value: Any, what: str, file: TorchZip) -> dict[str, tuple[int, ...]]:
    """Return name -> shape, in the pickle's order; the arguments are those of `table`."""
    shapes = table(value, what, file)
    return {name: whole_numbers(shape, f"{what} of {name}", file.path) for name, shape in shapes.items()}


def _states(folder: Path) -> list[str]:
    """The names of the files that may be DeepSpeed's; the folder may hold very many others."""
    return [name for name in names_in(folder) if name.endswith("_states.pt")]


def _has_files(folder: Path) -> bool:
    signs = (_MODEL, _OPTIM, _EXPERT, _LAYER, _OLD_EXPERT)
    return _is_universal(folder) or any(sign.match(name) for name in _states(folder) for sign in signs)


def _is_universal(folder: Path) -> bool:
    parameters = folder / _UNIVERSAL
    return is_dir(parameters) and any(is_file(path / "fp32.pt") for path in paths_in(parameters))


def _tag(latest: Path) -> str | None:
    text = settings_text(latest).strip()
    return text if is_file_name(text) else None


def _add(files: dict[Key, Path], key: Key, path: Path) -> None:
    first = files.setdefault(key, path)
    if first == path:
        return
    if first.name != path.name or size_of(first) != size_of(path):
        raise CkptconvError(
            "there are two different files of one rank", where=f"{first} and {path}", hint="move one away"
        )


def _unread(what: str, path: Path) -> CkptconvError:
    return CkptconvError(
        f"{what} are not read",
        where=path.parent,
        found=path.name,
        hint="save the model whole from the training script (docs/deepspeed.md says what is read)",
        kind=Kind.UNSUPPORTED,
    )
