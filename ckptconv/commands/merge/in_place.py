"""A merge into the checkpoint's own folder of config and tokenizer: its weights are added, all other files stay.

verl writes `actor/huggingface/` next to its rank files, and its users name that folder as the target of their merge.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ckptconv.commands.merge.small_files import SmallFiles
from ckptconv.plan import Plan
from ckptconv.publish.receipt import RECEIPT
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.look import is_file, resolved

_WEIGHTS = (".safetensors", ".bin", ".pt", ".index.json")


def may_be_added_to(target: Path, given: Sequence[Path]) -> bool:
    """True for a folder inside the given ones that holds a config, no weights and no links."""
    there = resolved(target)
    inside = any(resolved(folder) in there.parents for folder in given)
    if not inside or not is_file(target / "config.json"):
        return False
    return not any(name.endswith(_WEIGHTS) or (target / name).is_symlink() for name in _files(target))


def is_own_folder(target: Path, checkpoint: Checkpoint) -> bool:
    """True if the target is the folder from which the checkpoint's config and tokenizer are taken."""
    home = checkpoint.assets
    return home is not None and home != checkpoint.root and resolved(target) == resolved(home)


def all_files(plan: Plan, folder: Path) -> SmallFiles:
    """Every file of the folder as a file to copy, but for config.json, which is corrected, and what the merge writes.

    Args:
        plan: what is written.
        folder: the target, which is also the model's folder of small files.
    """
    written = {file.name for file in plan.files} | {*plan.texts, "config.json", RECEIPT}
    names = [
        n for n in _files(folder) if n not in written and not n.endswith((".safetensors", ".index.json"))
    ]
    note = f"OUT is the checkpoint's own {folder.name}/: weights are added there, and its other files stay as they are"
    return SmallFiles(folder, tuple((folder, name, name) for name in sorted(names)), (note,))


def _files(folder: Path) -> Iterator[str]:
    for here, _, names in os.walk(folder):
        for name in names:
            yield Path(here, name).relative_to(folder).as_posix()
