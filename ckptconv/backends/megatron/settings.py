"""Reads a Megatron trainer's settings: the model's sizes, and how it was sharded.

The files: verl's `transformer_config.json`, a TransformerConfig (verl/utils/checkpoint/megatron_checkpoint_manager.py);
Megatron-LM's `args`, an argparse.Namespace in common.pt or in every rank file (megatron/training/checkpointing.py,
generate_state_dict); the `model:` section of Megatron-Bridge's run_config.yaml (megatron/bridge/training/config.py);
the `config:` section of NeMo 2's context/model.yaml, which has the same names (nemo/lightning/io/mixin.py, io_dump).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ckptconv.backends.megatron.nemo import MODEL
from ckptconv.errors import CkptconvError
from ckptconv.formats.inert import Inert
from ckptconv.formats.json import read_table, settings_text
from ckptconv.formats.torch_zip import open_torch_zip
from ckptconv.tensors.checkpoint import TrainerSettings
from ckptconv.tensors.look import is_file

TRANSFORMER_CONFIG, COMMON, RUN_CONFIG = "transformer_config.json", "common.pt", "run_config.yaml"
_STEP = re.compile(r"^iter_(\d{1,18})$")
_LARGEST = 1 << 63
_SECTION = r"^{name}:[ \t]*\n((?:[ \t-].*\n?|\n)+)"
_SCALAR = re.compile(r"^  (\w+):[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_LIST = re.compile(r"^  (\w+):[ \t]*\n((?:  - [^\n:]*(?:\n|$))+)", re.MULTILINE)
_FUNCTION = re.compile(r"^  (\w+):[ \t]*\n(?:    _\w+: [^\n]*\n)*?    _target_: (\S+)[ \t]*$", re.MULTILINE)
_NUMBER = re.compile(r"^[+-]?(?:[0-9]{1,20}(\.[0-9]{0,20})?|(\.[0-9]{1,20}))([eE][+-]?[0-9]{1,2})?$")
_WORDS = {"null": None, "true": True, "false": False}


class Stated(NamedTuple):
    """The settings that were found.

    Args:
        settings: one record per file; the first file that has a setting counts.
        notes: which files could not be read, for the user.
    """

    settings: tuple[TrainerSettings, ...]
    notes: tuple[str, ...] = ()

    def merged(self) -> dict[str, Any]:
        """All settings in one dict; the first file that has a setting counts."""
        return {name: value for one in reversed(self.settings) for name, value in one.values.items()}


def read_settings(folder: Path, shards: Path, context: Path | None = None) -> Stated:
    """The settings next to a torch_dist checkpoint.

    Args:
        folder: the step's or role's folder.
        shards: the folder with common.pt, which may be the same.
        context: NeMo's folder with the model's settings; None if there is none.

    Raises:
        CkptconvError: common.pt is of another iteration than its folder's name.
    """
    found = list(_tables(folder, folder / "model"))
    notes: list[str] = []
    common = shards / COMMON
    if is_file(common):
        try:
            root = open_torch_zip(str(common)).root
        except CkptconvError as error:
            notes.append(f"common.pt cannot be read, so no setting in it is compared: {error.what}")
        else:
            check_iteration(root, common, shards)
            found += args_of(root, common)
    if values := run_config(shards, "model"):
        found.append(TrainerSettings(values, str(shards / RUN_CONFIG)))
    if context is not None and (values := yaml_section(context / MODEL, "config")):
        found.append(TrainerSettings(values, str(context / MODEL)))
    return Stated(tuple(found), tuple(notes))


def rank_file_settings(folder: Path, roots: Iterable[tuple[str, Any]]) -> Stated:
    """The settings in rank files, and next to them.

    Args:
        folder: the step's folder.
        roots: (path, contents) of each rank file; the first one with settings counts.
    """
    own = next((found for path, root in roots if (found := args_of(root, path))), [])
    return Stated((*own, *_tables(folder)))


def args_of(root: Any, where: str | Path) -> list[TrainerSettings]:
    """Megatron-LM's arguments in the contents of a file; [] if there are none."""
    args = root.get("args") if isinstance(root, dict) else None
    return namespace(args, where)


def namespace(args: Any, where: str | Path) -> list[TrainerSettings]:
    """An argparse.Namespace's values, by the arguments' names."""
    is_namespace = isinstance(args, Inert) and isinstance(args.state, dict) and bool(args.state)
    return [TrainerSettings(args.state, str(where))] if is_namespace else []


def check_iteration(root: Any, where: str | Path, folder: Path) -> None:
    """Refuse a file whose `iteration` is not the N of its folder iter_N.

    Args:
        root: the file's contents.
        where: the file.
        folder: the step's folder.

    Raises:
        CkptconvError: names both iterations.
    """
    named, found = _STEP.match(folder.name), iteration_of(root)
    if named and found is not None and found != int(named[1]):
        raise CkptconvError(
            "a file was saved at another iteration than its folder's name says",
            where=where,
            found=f"iteration {found:,}",
            wanted=f"iteration {int(named[1]):,}, as in {folder.name}",
            hint=f"copy the step's files again, or rename the folder to iter_{found:07d} if it was renamed",
        )


def iteration_of(root: Any) -> int | None:
    """The iteration that Megatron-LM and Megatron-Bridge write into a file; None if there is none."""
    return number(root.get("iteration")) if isinstance(root, dict) else None


def number(value: Any) -> int | None:
    """The value if it is an integer of 0 to 2**63 - 1; None for everything else."""
    return value if type(value) is int and 0 <= value < _LARGEST else None


def _tables(*folders: Path) -> Iterable[TrainerSettings]:
    """verl's transformer_config.json in the first of the folders that has it."""
    for folder in folders:
        path = folder / TRANSFORMER_CONFIG
        if values := read_table(path):
            return [TrainerSettings(values, str(path))]
    return []


def run_config(folder: Path, section: str) -> dict[str, Any]:
    """The settings in a section of Megatron-Bridge's run_config.yaml; see `yaml_section`."""
    return yaml_section(folder / RUN_CONFIG, section)


def yaml_section(path: Path, section: str) -> dict[str, Any]:
    """The settings in a section of a YAML file; {} if there is none.

    Only scalars, lists and the names of functions one level below the section are read, where all settings of the model are.

    Args:
        path: the file.
        section: the section, such as "model".
    """
    found = re.search(_SECTION.format(name=section), settings_text(path), re.MULTILINE)
    if found is None:
        return {}
    values: dict[str, Any] = {name: _value(text) for name, text in _SCALAR.findall(found[1])}
    for name, lines in _LIST.findall(found[1]):
        values[name] = [_value(line.strip()[2:].strip()) for line in lines.splitlines()]
    values |= dict(_FUNCTION.findall(found[1]))
    return values


def _value(text: str) -> Any:
    """The value of a YAML scalar: a number, None, a bool, or else the text itself."""
    found = _NUMBER.match(text)
    if found:
        return float(text) if any(found.groups()) else int(text)
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else _WORDS.get(text, text)
