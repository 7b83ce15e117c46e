"""Takes the local paths out of the JSON files of a push. The folder itself stays as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptconv.errors import CkptconvError
from ckptconv.formats.json import read_table
from ckptconv.hub.names import model_name, public_name
from ckptconv.publish.private import local_paths, without_local_paths, without_paths
from ckptconv.publish.receipt import RECEIPT, SMALL_FILES, as_text, hash_of

# Where transformers, PEFT and tokenizers write the path that a model was loaded from.
_CHECKED = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
_NAMES = ("_name_or_path", "name_or_path", "base_model_name_or_path")


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A file that is sent with another content than it has here.

    Args:
        text: what is sent.
        removed: the keys of what was taken out, such as `_name_or_path`.
    """

    text: str
    removed: tuple[str, ...]


def cleaned(root: Path, names: Iterable[str]) -> dict[str, Cleaned]:
    """The files of a push that name a path of this machine, without it.

    Args:
        root: the model folder.
        names: the files of the push, relative to it.
    """
    found: dict[str, Cleaned] = {}
    for name in sorted(names, key=lambda name: name == RECEIPT):  # the receipt has the hashes of the others
        last = name.rpartition("/")[2]
        if last not in (RECEIPT, *_CHECKED) and not last.endswith(
            ("processor_config.json", "adapter_config.json")
        ):
            continue
        try:
            table = read_table(root / name)
        except CkptconvError:
            continue
        new, removed = _receipt(table, found) if last == RECEIPT else _config(table)
        if removed or new != table:
            text = as_text(new) if last == RECEIPT else json.dumps(new, indent=2, ensure_ascii=False) + "\n"
            found[name] = Cleaned(text, tuple(removed))
    return found


def _config(table: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    removed = [key for key, _ in local_paths(dict(table))]
    new = without_local_paths(dict(table))
    for key in _NAMES:
        value = table.get(key)
        if not isinstance(value, str) or not value:
            continue
        public = public_name(value)
        local = Path(value).is_dir() or value.startswith(".") or value.count("/") > 1
        if public is not None and public != value:
            new[key] = public
        elif public is None and local:
            new.pop(key, None)
            removed += [key] * (key not in removed)
    if "base_model_name_or_path" in removed and "peft_type" in table:
        new.setdefault("base_model_name_or_path", None)  # PEFT reads the key
    return new, removed


def _receipt(table: Mapping[str, Any], others: Mapping[str, Cleaned]) -> tuple[dict[str, Any], list[str]]:
    """The receipt, with the hashes of the other files as they are sent. Its tensors name no path."""
    removed = []
    new = dict(table)
    hashes = table.get(SMALL_FILES)
    if isinstance(hashes, dict):
        sent = {
            name: others[name].text.encode("utf-8", "backslashreplace") for name in hashes if name in others
        }
        new[SMALL_FILES] = {**hashes, **{name: hash_of(data) for name, data in sent.items()}}
    source = table.get("source")
    if isinstance(source, dict) and source.get("folder") and not _is_steps(source):
        new["source"] = {key: value for key, value in source.items() if key != "folder"}
        removed.append("source.folder")
    base = table.get("base_model")
    if isinstance(base, str) and model_name(base) != base:
        new["base_model"] = model_name(base)
        removed.append("base_model")
    notes = table.get("notes")
    if isinstance(notes, list):
        new["notes"] = [without_paths(note) if isinstance(note, str) else note for note in notes]
        if new["notes"] != notes:
            removed.append("notes")
    return new, removed


def _is_steps(source: Mapping[str, Any]) -> bool:
    """True for the folders from the step on, which is what a receipt names since 0.1.0: no folder of a user is above."""
    from ckptconv.publish.receipt import within_run

    return within_run(Path(str(source["folder"]))) == source["folder"]
