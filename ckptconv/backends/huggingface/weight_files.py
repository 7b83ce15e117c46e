"""Finds the files of a folder that are its model: one file, the files of an index, or a complete numbered set.

Sources of the names: transformers/utils/__init__.py (WEIGHTS_NAME and others), in the order of modeling_utils.py,
_get_resolved_checkpoint_files; peft/utils/constants.py; accelerate/utils/fsdp_utils.py, save_fsdp_model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from ckptconv.backends.registry import is_one_file
from ckptconv.errors import CkptconvError, Incomplete, Kind, listed
from ckptconv.formats.bounds import check_name, check_ranks, is_file_name
from ckptconv.formats.json import read_table
from ckptconv.formats.torch_zip import SUFFIXES as TORCH_SUFFIXES
from ckptconv.tensors.checkpoint import Skipped
from ckptconv.tensors.look import entries, size_of

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
_SINGLE = "model.safetensors"
_INDEX = f"{_SINGLE}.index.json"
_MODELS = (_SINGLE, _INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
INDEXES = tuple(name for name in _MODELS if name.endswith(".json"))
SMALL = (CONFIG, ADAPTER_CONFIG, *INDEXES)  # the small files that `choose` and `read` open
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_FULL = ("pytorch_model_fsdp.bin", "pytorch_model_fsdp_0.bin")  # accelerate's FULL_STATE_DICT
# accelerate's LOCAL_STATE_DICT, and its SHARDED_STATE_DICT with use_dcp=False: one file per rank.
_LOCAL = re.compile(r"^pytorch_model_fsdp(?:_\d+)?_rank\d+\.bin$")
RANK_SHARD = re.compile(r"^shard-(\d+)-model-(\d+)-of-(\d+)\.safetensors$")  # one rank's part: hf_shards.py
_NUMBERED = re.compile(r"^(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.(?:safetensors|bin)$")
_WEIGHTS = (".safetensors", *TORCH_SUFFIXES, ".pkl")

# Files that trainers write next to a model (transformers/trainer.py, accelerate/utils/constants.py).
_STATE = re.compile(
    r"^(?:optimizer|scheduler|scaler|sampler|dl_state_dict|rng_state|random_states|training_args|"
    r"custom_checkpoint)(?:_\d+)*\.(?:pt|pth|bin|pkl)$"
)


class Chosen(NamedTuple):
    """The files of a model.

    Args:
        names: the files, in order.
        expected: tensor -> file, as the index states; None without an index.
        is_adapter: they are a PEFT adapter.
        is_state: they are a trainer's state dict, under the module's names, also where a config.json is next to them.
    """

    names: tuple[str, ...]
    expected: dict[str, str] | None = None
    is_adapter: bool = False
    is_state: bool = False


def choose(folder: Path, names: Collection[str] | None = None) -> Chosen | None:
    """Choose the model's files; safetensors files are preferred to torch.save files.

    Args:
        folder: the folder.
        names: the files to choose from; None for all in the folder. With names, the folder needs to hold only the indexes.

    Returns:
        The files; None if the folder has no weights under known names.

    Raises:
        Incomplete: a numbered set has a gap.
        CkptconvError: an index is not valid, or two models are equally likely to be meant.
    """
    names = set(names) if names is not None else _files_in(folder)
    has_config = CONFIG in names
    for name in _MODELS:
        if name in names:
            return _indexed(folder, name) if name.endswith(".json") else _one(folder, name, names)
    if {CONFIG, ADAPTER_CONFIG} & names:
        for name in ADAPTERS:
            if name in names:
                return Chosen((name,), is_adapter=True)
    for name in _FULL:
        if name in names:
            return Chosen((name,), is_state=True)
    if local := sorted(name for name in names if _LOCAL.match(name)):
        raise CkptconvError(
            "accelerate saved every rank's part by itself, which is not supported yet",
            where=folder,
            found=listed(local, 4),
            hint="load the checkpoint with accelerate and save it with SHARDED_STATE_DICT or FULL_STATE_DICT",
            kind=Kind.UNSUPPORTED,
        )
    weights = sorted(name for name in names if name.endswith(".safetensors") and not RANK_SHARD.match(name))
    if weights and has_config:
        return Chosen(_whole_sets(folder, weights))
    shards = sorted(name for name in names if name.startswith("pytorch_model-") and _NUMBERED.match(name))
    return Chosen(_whole_sets(folder, shards)) if shards else None


def sizes_of(folder: Path) -> dict[str, int]:
    """File name -> bytes, for every file of a folder."""
    return {name: size_of(folder / name) for name in sorted(_files_in(folder))}


def _files_in(folder: Path) -> set[str]:
    return {entry.name for entry in entries(folder) if entry.is_regular}


def left_over(sizes: Mapping[str, int], chosen: Chosen) -> tuple[list[Skipped], list[str]]:
    """The files of a folder that are not read.

    Args:
        sizes: file name -> bytes.
        chosen: the model's files.

    Returns:
        The trainer's state and other weights, and a note for the user if there are other weights.
    """
    state, others = 0, dict[str, int]()
    for name, nbytes in sorted(sizes.items()):
        if name in chosen.names:
            continue
        if _STATE.match(name):
            state += nbytes
        elif name.endswith(_WEIGHTS):
            others[name] = nbytes
    skipped = [Skipped("optimizer and trainer state", state, "not part of the model")] if state else []
    skipped += [Skipped(name, nbytes, "not part of the model") for name, nbytes in others.items()]
    if not others:
        return skipped, []
    taken = chosen.names[0] if len(chosen.names) == 1 else f"the set of {chosen.names[0]}"
    return skipped, [f"{taken} is read; also in the folder but not read: {listed(list(others), 4)}"]


def one_file(path: Path) -> Chosen:
    """The record for one file that the user named.

    Raises:
        CkptconvError: it is one of a numbered set, or not a file of weights.
    """
    match = _NUMBERED.match(path.name)
    if match and int(match["count"]) > 1:
        raise CkptconvError(
            "this is one file of a set",
            where=path,
            hint=f"name the folder that holds all {int(match['count'])}",
            kind=Kind.USAGE,
        )
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise CkptconvError(
            "not a known weight file name",
            where=path,
            wanted="*.safetensors, *.bin, *.pt, *.pth or *.ckpt",
            hint="name the checkpoint's folder",
            kind=Kind.NOT_A_CHECKPOINT,
        )
    return Chosen((path.name,), is_state=path.name in _FULL or is_one_file(path.name))


def _one(folder: Path, name: str, names: Collection[str]) -> Chosen:
    """The record for a single file; if there is an index too, it must name the same file."""
    if name == _SINGLE and _INDEX in names:
        indexed = _indexed(folder, _INDEX)
        if set(indexed.names) != {name}:
            raise CkptconvError(
                f"the folder has both {name} and {_INDEX}, and the index names other files",
                where=folder,
                found=", ".join(indexed.names[:4]),
                hint=f"move the older of the two away, or pass the file: {folder / name}",
            )
        return indexed
    return Chosen((name,))


def _indexed(folder: Path, index: str) -> Chosen:
    """The record for the files that an index names."""
    weight_map = read_table(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CkptconvError("the index has no weight_map", where=folder / index)
    expected = {check_name(name, folder / index): str(file) for name, file in weight_map.items()}
    for file in set(expected.values()):
        if not is_file_name(file):
            raise CkptconvError("the index names a file outside its folder", where=folder / index, found=file)
    return Chosen(tuple(sorted(set(expected.values()))), expected)


def _whole_sets(folder: Path, names: list[str]) -> tuple[str, ...]:
    """The names, if every numbered set among them is complete. There is no index."""
    sets: dict[tuple[str, int], set[int]] = {}
    for name in names:
        match = _NUMBERED.match(name)
        if match:
            sets.setdefault((match["stem"], int(match["count"])), set()).add(int(match["number"]))
    for (stem, count), numbers in sets.items():
        check_ranks(count, folder)
        missing = sorted({*range(1, count + 1)} - numbers)
        if missing:
            raise Incomplete(
                f"{len(missing)} of the {count} files {stem}-…-of-{count:05} are missing, and the index is missing too",
                where=folder,
                found=", ".join(f"{number:05}" for number in sorted(numbers)[:8]),
                wanted=f"number {missing[0]:05}",
                hint="the save or the copy did not finish: copy it again, or take an earlier step",
            )
    return tuple(names)
