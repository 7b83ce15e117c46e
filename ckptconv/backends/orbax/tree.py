"""`_METADATA`: the arrays of an Orbax checkpoint, by the keys that lead to each.

Source: orbax/checkpoint/_src/metadata/tree.py (InternalTreeMetadata, ValueMetadataEntry).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.bounds import check_name
from ckptconv.formats.json import read_json

_NO_ARRAYS = ("None", "Dict", "List", "NamedTuple", "Tuple", "string", "")  # values without an array


class Tree(NamedTuple):
    """What `_METADATA` states.

    Attributes:
        arrays: the keys that lead to an array -> its name in the database, which is the keys joined with dots.
        ocdbt: the arrays are in an OCDBT database.
        zarr3: they are Zarr 3 arrays; else Zarr 2.
    """

    arrays: dict[tuple[str, ...], str]
    ocdbt: bool
    zarr3: bool


def read_tree(path: Path) -> Tree:
    """Read `_METADATA`.

    Args:
        path: the file.

    Raises:
        CkptconvError: it cannot be read, or does not describe a tree of arrays.
    """
    stated = read_json(path)
    tree = stated.get("tree_metadata") if isinstance(stated, dict) else None
    if not isinstance(tree, dict):
        raise _damaged(path, "no tree_metadata")
    arrays: dict[tuple[str, ...], str] = {}
    for entry in tree.values():
        keys, kind = _keys(entry, path), _of(entry, "value_metadata", path).get("value_type")
        if kind in _NO_ARRAYS:
            continue
        if not keys or keys in arrays:
            raise _damaged(path, f"no keys, or the same twice: {'.'.join(keys)}")
        arrays[keys] = check_name(".".join(keys), path)
    return Tree(arrays, stated.get("use_ocdbt", True) is True, stated.get("use_zarr3", False) is True)


def _keys(entry: Any, path: Path) -> tuple[str, ...]:
    found = _of(entry, "key_metadata", path, list)
    if not all(isinstance(key, dict) and isinstance(key.get("key"), str | int) for key in found):
        raise _damaged(path, "a key that is not text")
    keys = tuple(str(key["key"]) for key in found)
    if any("/" in key or key in ("", ".", "..") for key in keys):
        raise _damaged(path, f"a key that is not a name: {keys}")
    return keys


def _of(entry: Any, key: str, path: Path, kind: type = dict) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind):
        raise _damaged(path, f"an entry without {key}")
    return value


def _damaged(path: Path, found: str) -> CkptconvError:
    return CkptconvError(
        "the file does not describe the arrays of an Orbax checkpoint",
        where=path,
        found=found,
        kind=Kind.DAMAGED,
    )
