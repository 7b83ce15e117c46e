"""What small files next to a checkpoint say of who saved it: the trainer, its version, and the step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ckptconv.backends.base import backend_of
from ckptconv.commands.inspect.records import Evidence
from ckptconv.errors import CkptconvError
from ckptconv.formats.json import read_table
from ckptconv.formats.torch_zip import SUFFIXES as ZIP_SUFFIXES
from ckptconv.formats.zip_directory import NotAZip, Window, read_directory
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.look import opened
from ckptconv.tensors.stored_file import path_of

_HEAD = 1 << 13  # of a .distcp, which holds an archive for each tensor: the first one
_SHOWN = 60  # letters of a value


def evidence_of(checkpoint: Checkpoint, config: dict[str, Any]) -> tuple[Evidence, ...]:
    """Collect facts about who saved a checkpoint. Each fact comes from the nearest file; broken files are ignored.

    Args:
        checkpoint: the checkpoint.
        config: the model's config.json.
    """
    root = checkpoint.root
    homes = [path for path in (root, checkpoint.assets, root.parent) if path is not None]
    found: dict[str, Evidence] = {}
    for source in (
        _saved_by(checkpoint),
        _beside(homes, root),
        _config(config),
        _torch(checkpoint),
    ):
        for item in source:
            if item.value:
                found.setdefault(item.what, item)
    return tuple(found.values())


def step_of(evidence: tuple[Evidence, ...]) -> int | None:
    """The step that a file names, for checkpoints whose folder does not name it; None if there is none."""
    for item in evidence:
        match = re.match(r"(?:step|iteration) (\d+)", item.value)
        if match:
            return int(match[1])
    return None


def _saved_by(checkpoint: Checkpoint) -> Iterator[Evidence]:
    for fact in backend_of(checkpoint).saved_by(checkpoint):
        yield Evidence(fact.what, _short(fact.value), fact.file)


def _beside(homes: list[Path], root: Path) -> Iterator[Evidence]:
    """What the files next to the tensors tell. A receipt in another folder is about a merge that was written there."""
    for home in homes:
        receipt = _table(home / "ckptconv.json") if home == root else {}
        source = receipt.get("source")
        if isinstance(source, dict):
            step = f", step {source['step']}" if source.get("step") is not None else ""
            yield Evidence(
                "converted from", f"{_short(source.get('layout') or 'a checkpoint')}{step}", "ckptconv.json"
            )
            yield Evidence("ckptconv", _short(receipt.get("ckptconv")), "ckptconv.json")
        state = _table(home / "trainer_state.json")
        if type(state.get("global_step")) is int:
            whole = f" of {state['max_steps']}" if type(state.get("max_steps")) is int else ""
            epoch = f", epoch {state['epoch']:g}" if isinstance(state.get("epoch"), int | float) else ""
            yield Evidence(
                "transformers Trainer", f"step {state['global_step']}{whole}{epoch}", "trainer_state.json"
            )
        version = _table(home / "adapter_config.json").get("peft_version")
        yield Evidence("peft", _short(version), "adapter_config.json")


def _config(config: dict[str, Any]) -> Iterator[Evidence]:
    yield Evidence("transformers", _short(config.get("transformers_version")), "config.json")


def _torch(checkpoint: Checkpoint) -> Iterator[Evidence]:
    """The version of torch: 2.8 writes `.format_version` into its archives, and 2.4 and 2.6 did not (measured)."""
    path = path_of(checkpoint.files[0].path) if checkpoint.files else None
    if path is None or path.suffix not in (*ZIP_SUFFIXES, ".distcp"):
        return
    try:
        with opened(str(path)) as file:
            if path.suffix == ".distcp":
                names = file.read(0, _HEAD)
            else:
                whole = Window(str(path), file, 0, file.nbytes)
                names = b" ".join(entry.name.encode() for entry in read_directory(whole).entries)
    except (CkptconvError, NotAZip):
        return
    if b"/.format_version" in names or b"/byteorder" in names:
        yield Evidence("torch", "> 2.6" if b"/.format_version" in names else "<= 2.6", path.name)


def _table(path: Path) -> dict[str, Any]:
    try:
        return read_table(path)
    except CkptconvError:
        return {}


def _short(value: Any) -> str:
    """A value as text of limited length; "" for a value that is not plain."""
    text = str(value) if isinstance(value, str | int | float) else ""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
