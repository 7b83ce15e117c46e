"""From what the user names to a folder: a path on a disk, or a place in a store."""

from __future__ import annotations

import os
from pathlib import Path

from ckptconv.errors import CkptconvError, Kind
from ckptconv.storage.address import address_of, command_for, is_address
from ckptconv.storage.base import Store
from ckptconv.tensors.look import is_far

_COPY = {
    "s3": "aws s3 cp --recursive MODEL {address}",
    "gs": "gcloud storage cp -r MODEL/* {address}",
    "az": "az storage blob upload-batch -s MODEL -d {bucket} --destination-path {key}",
    "hf": "hf buckets sync MODEL {address}",
}
_COPY_HERE = {
    "s3": "aws s3 cp --recursive {address} MODEL",
    "gs": "gcloud storage cp -r {address}/* MODEL",
    "az": "az storage blob download-batch -d MODEL -s {bucket} --pattern {below}",
    "hf": "hf buckets sync {address} MODEL",
}


def on_disk(target: str | Path) -> Path:
    """The folder that a command writes to.

    Raises:
        CkptconvError: it is an address. A model is published by one rename, which stores do not have.
    """
    target = target if isinstance(target, Path) else Path(target)
    if str(target).startswith("hf:/") and not is_address(target) and not target.exists():
        raise CkptconvError(
            "OUT must be a folder on a disk",
            where=str(target).replace("hf:/", "hf://", 1),
            hint="write to a disk, then upload it: ckptconv push OUT ORG/NAME",
            kind=Kind.TARGET,
        )
    if is_address(target) and not target.exists():
        raise CkptconvError(
            "OUT must be a folder on a disk",
            where=address_of(target),
            hint=f"merge into a folder MODEL on a disk, then: {command_for(_COPY, address_of(target))}",
            kind=Kind.TARGET,
        )
    return target


def pushed(folder: str | os.PathLike[str]) -> Path:
    """The folder that `push` uploads.

    Raises:
        CkptconvError: it is an address: huggingface_hub uploads files of a disk.
    """
    path = Path(folder).expanduser()
    if is_address(path) and not path.exists():
        raise CkptconvError(
            "only a folder on a disk can be pushed",
            where=address_of(path),
            hint=f"copy it to a disk first: {command_for(_COPY_HERE, address_of(path))}",
            kind=Kind.USAGE,
        )
    return path


def located(path: str | Path) -> Path:
    """The folder or file that a text names. For an address of a store its content is listed, with one request.

    `hub.source.located` knows the buckets of the Hub as well.

    Args:
        path: a path, or an address such as `s3://bucket/run`. A path that exists on this disk wins, as for repositories on
            the Hub.

    Raises:
        CkptconvError: the address is not one, or the store refuses to list the folder.
    """
    if isinstance(path, Path) and is_far(path):
        return path
    path = path if isinstance(path, Path) else Path(str(path))
    if not is_address(path) or path.exists():
        return path
    address = address_of(path)
    from ckptconv.storage.objects import bucket_of

    return place_in(bucket_of(address), address.key)


def place_in(store: Store, key: str) -> Path:
    """A folder or file of a store, whose content is listed with one request.

    Args:
        store: the store.
        key: the name of the folder or file in it, without slashes at its ends.

    Raises:
        CkptconvError: the store refuses to list the folder.
    """
    from ckptconv.storage.path import StorePath
    from ckptconv.storage.tree import Tree

    tree = Tree(store, key)
    tree.children(key)
    return StorePath(tree, key)
