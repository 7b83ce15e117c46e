"""Reads a whole state dict of torch.save: `pytorch_model.bin`, accelerate's `pytorch_model_fsdp.bin`, or a `model.pt`.

Only the pickle is read, and its classes become stand-ins. Several names may share a storage (tied weights), a tensor may
be a strided part of a larger one, and the file may hold the state dict under a key, together with an optimizer and
counters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ckptconv.backends import composer
from ckptconv.errors import CkptconvError, Kind, brief, listed
from ckptconv.formats.bounds import check_name
from ckptconv.formats.inert import Inert
from ckptconv.formats.stand_ins import Storage, TensorRecord, WrapperRecord
from ckptconv.formats.torch_zip import TorchZip, open_torch_zip
from ckptconv.tensors.checkpoint import Skipped, TrainerSettings
from ckptconv.tensors.view import View

# The keys under which trainers store a model's state dict in a file that holds more.
_KEYS = ("state_dict", "model", "module", "model_state_dict", "model_state", "state")
_DEEPEST = 3  # dicts in dicts that are searched


class StateDict(NamedTuple):
    """A file's state dict.

    Args:
        tensors: the tensors by name.
        skipped: what else the file holds.
        notes: findings for the user.
        trainer: what the trainer wrote about the model.
        writer: the trainer's name, or "".
    """

    tensors: dict[str, View]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    trainer: tuple[TrainerSettings, ...] = ()
    writer: str = ""


def read_state_dict(path: Path) -> StateDict:
    """Read the metadata of a torch.save file.

    Args:
        path: the file.

    Raises:
        CkptconvError: the file holds sharded tensors, objects that are not tensors, or several state dicts.
    """
    file = open_torch_zip(str(path))
    entries, keys, rest = _find(file.root, path)
    tensors: dict[str, View] = {}
    used: dict[str, set[View]] = {}  # storage -> the distinct windows on it
    others = []
    for name, value in entries.items():
        check_name(name, path)
        if not isinstance(value, TensorRecord):
            _check_other(name, value, path)
            others.append(name)
            continue
        try:
            tensors[name] = file.view(value)
        except CkptconvError as error:
            raise error.within(inside=name, where=path) from error
        used.setdefault(value.storage.key, set()).add(tensors[name])
    notes = [f"in {path.name}, the model is taken from {'.'.join(keys)!r}"] if keys else []
    unread = [brief(name) for name in (*rest, *others)]
    if unread:
        notes.append(f"{path.name} has other entries that are not read: {listed(unread, 8)}")
    kept = composer.settings(composer.config_in(file.root), str(path))
    writer = "Composer" if kept else ""
    return StateDict(tensors, tuple(_skipped(file, used, path.name)), tuple(notes), kept, writer)


def _find(root: Any, path: Path) -> tuple[dict[Any, Any], list[str], list[str]]:
    """Find the dict of tensors in an unpickled object.

    Returns:
        The dict, the keys that lead to it, and the keys next to those, which are not read.
    """
    keys: list[str] = []
    rest: list[str] = []
    while isinstance(root, dict) and not any(map(_is_tensor, root.values())):
        found = [key for key in _KEYS if _holds_tensors(root.get(key))]
        if len(found) != 1:
            raise CkptconvError(
                "the file holds several state dicts" if len(found) > 1 else "the file holds no state dict",
                where=path,
                found=listed([brief(key) for key in root], 8) or "an empty dict",
                wanted=f"tensors by name, or one dict of them under {', '.join(_KEYS)}",
                hint="save only the model's state dict: torch.save(model.state_dict(), FILE)",
                kind=Kind.UNSUPPORTED,
            )
        rest += [brief(key) for key in root if key != found[0]]
        keys.append(found[0])
        root = root[found[0]]
    if not isinstance(root, dict):
        kind = getattr(root, "kind", type(root).__name__)
        raise CkptconvError(
            "the file holds no state dict",
            where=path,
            found=f"an object of {kind}",
            hint="save only the model's state dict: torch.save(model.state_dict(), FILE)",
            kind=Kind.UNSUPPORTED,
        )
    return root, keys, rest


def _is_tensor(value: Any) -> bool:
    return isinstance(value, TensorRecord | WrapperRecord)


def _holds_tensors(value: Any, depth: int = 0) -> bool:
    """True for a dict of tensors, or one that holds such a dict under a known key."""
    if not isinstance(value, dict) or depth > _DEEPEST:
        return False
    return any(map(_is_tensor, value.values())) or any(
        _holds_tensors(value.get(key), depth + 1) for key in _KEYS
    )


def _check_other(name: str, value: Any, path: Path) -> None:
    """Refuse a value among the tensors that may hold weights; numbers, strings and a module's extra state may not."""
    where = f"{name} in {path}"
    if isinstance(value, WrapperRecord) and value.kind in ("DTensor", "ShardedTensor"):
        raise CkptconvError(
            f"holds one rank's part of a sharded tensor ({value.kind}), not a whole tensor",
            where=where,
            hint="name the folder with all ranks' files, not one of them",
            kind=Kind.UNSUPPORTED,
        )
    if name.endswith("_extra_state") or value is None or isinstance(value, int | float | str):
        return
    if (
        isinstance(value, dict | list | tuple)
        and not isinstance(value, Storage | WrapperRecord)
        and not value
    ):
        return
    kind = value.kind if isinstance(value, WrapperRecord | Inert) else type(value).__name__
    raise CkptconvError(
        f"holds an object of {kind}, not a tensor",
        where=where,
        hint="only plain tensors are read, nothing that a pickle names is run",
        kind=Kind.UNSUPPORTED,
    )


def _skipped(file: TorchZip, used: dict[str, set[View]], name: str) -> list[Skipped]:
    """The bytes that are not read: storages without a tensor of the model, and parts of storages that no tensor covers."""
    rest = sum(entry.nbytes for key, entry in file.entries.items() if key not in used)
    padding = sum(
        max(file.entries[key].nbytes - sum(view.nbytes for view in views), 0) for key, views in used.items()
    )
    found = [
        Skipped(f"other entries of {name}", rest, "not part of the model"),
        Skipped(f"unused parts of storages in {name}", padding, "belongs to no tensor"),
    ]
    return [item for item in found if item.nbytes]
