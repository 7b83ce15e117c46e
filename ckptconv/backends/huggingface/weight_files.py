"""Which files of a folder are its model: one name, an index, or a whole numbered set; and what lies beside them.

Names: transformers/utils/__init__.py (WEIGHTS_NAME ...), in the order of modeling_utils.py's
_get_resolved_checkpoint_files; peft/utils/constants.py; accelerate/utils/fsdp_utils.py, save_fsdp_model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckptconv.errors import CkptconvError, Incomplete, Kind, listed
from ckptconv.formats.bounds import check_name, check_ranks, is_file_name
from ckptconv.formats.json import read_table
from ckptconv.formats.torch_zip import SUFFIXES as TORCH_SUFFIXES
from ckptconv.tensors.checkpoint import Skipped

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
_SINGLE = "model.safetensors"
_INDEX = f"{_SINGLE}.index.json"
_MODELS = (_SINGLE, _INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
INDEXES = tuple(name for name in _MODELS if name.endswith(".json"))
SMALL = (CONFIG, ADAPTER_CONFIG, *INDEXES)  # what `choose` and `read` look into, beside the weights
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_FULL = ("pytorch_model_fsdp.bin", "pytorch_model_fsdp_0.bin")  # accelerate's FULL_STATE_DICT
RANK_SHARD = re.compile(r"^shard-(\d+)-model-(\d+)-of-(\d+)\.safetensors$")  # one rank's part: hf_shards.py
_NUMBERED = re.compile(r"^(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.(?:safetensors|bin)$")
_WEIGHTS = (".safetensors", *TORCH_SUFFIXES, ".pkl")

# What trainers leave beside a model: transformers/trainer.py, accelerate/utils/constants.py.
_STATE = re.compile(
    r"^(?:optimizer|scheduler|scaler|sampler|dl_state_dict|rng_state|random_states|training_args|"
    r"custom_checkpoint)(?:_\d+)*\.(?:pt|pth|bin|pkl)$"
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """names: the files, in order. expected: what an index says, tensor -> file. is_adapter: PEFT's."""

    names: tuple[str, ...]
    expected: dict[str, str] | None = None
    is_adapter: bool = False


def choose(folder: Path, names: Collection[str] | None = None) -> Chosen | None:
    """The model's files, or None where none are known. Safetensors come before torch's files.

    names: the files to choose from, where the folder itself holds only the indexes among them.
    Raises CkptconvError for an index that is none, for a set with a gap, and where two models are equally likely.
    """
    names = set(names) if names is not None else {path.name for path in folder.iterdir() if path.is_file()}
    has_config = CONFIG in names
    for name in _MODELS:
        if name in names:
            return _indexed(folder, name) if name.endswith(".json") else _one(folder, name, names)
    if {CONFIG, ADAPTER_CONFIG} & names:
        for name in _ADAPTERS:
            if name in names:
                return Chosen((name,), is_adapter=True)
    for name in _FULL:
        if name in names:
            return Chosen((name,))
    weights = sorted(name for name in names if name.endswith(".safetensors") and not RANK_SHARD.match(name))
    if weights and has_config:
        return Chosen(_whole_sets(folder, weights))
    shards = sorted(name for name in names if name.startswith("pytorch_model-") and _NUMBERED.match(name))
    return Chosen(_whole_sets(folder, shards)) if shards else None


def sizes_of(folder: Path) -> dict[str, int]:
    """The bytes of every file of a folder."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


def beside(sizes: Mapping[str, int], chosen: Chosen) -> tuple[list[Skipped], list[str]]:
    """What else lies in the folder: a trainer's state and other weights, by size, and the notes on the latter."""
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
    taken = chosen.names[0] if len(chosen.names) == 1 else f"{chosen.names[0]} and its like"
    return skipped, [f"{taken} is read; also in the folder but not read: {listed(list(others), 4)}"]


def one_file(path: Path) -> Chosen:
    """A file that a user named itself. Raises CkptconvError for one of a numbered set, and for an index."""
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
    return Chosen((path.name,))


def _one(folder: Path, name: str, names: Collection[str]) -> Chosen:
    if name == _SINGLE and _INDEX in names:
        indexed = _indexed(folder, _INDEX)
        if set(indexed.names) != {name}:
            raise CkptconvError(
                f"the folder has both {name} and {_INDEX}, and the index names other files",
                where=folder,
                found=", ".join(indexed.names[:4]),
                hint=f"move the older one away, or name the file: {folder / name}",
            )
        return indexed
    return Chosen((name,))


def _indexed(folder: Path, index: str) -> Chosen:
    weight_map = read_table(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CkptconvError("the index has no weight_map", where=folder / index)
    expected = {check_name(name, folder / index): str(file) for name, file in weight_map.items()}
    for file in set(expected.values()):
        if not is_file_name(file):
            raise CkptconvError("the index names a file outside its folder", where=folder / index, found=file)
    return Chosen(tuple(sorted(set(expected.values()))), expected)


def _whole_sets(folder: Path, names: list[str]) -> tuple[str, ...]:
    """Names that stand without an index: every numbered set must be whole."""
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
                f"{len(missing)} of the {count} files {stem}-…-of-{count:05} are missing, and so is their index",
                where=folder,
                found=", ".join(f"{number:05}" for number in sorted(numbers)[:8]),
                wanted=f"number {missing[0]:05}",
                hint="the save or the copy did not finish: copy it again, or take an earlier step",
            )
    return tuple(names)
