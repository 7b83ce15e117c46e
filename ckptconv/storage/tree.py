"""The listing of a folder in a bucket as a tree, which takes few requests and is kept.

The folder that the user names is listed alone, since a run may hold many steps. Its subfolders are listed with all that is
below them at the first look, so that neither names nor sizes in them need a request. A folder outside of the named one (the
run above a step) is listed alone too, and counts as empty if the store does not list it for us.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from ckptconv.errors import CkptconvError
from ckptconv.storage.base import Object, Storage
from ckptconv.storage.file import ObjectFile, state_of
from ckptconv.storage.segments import Segments
from ckptconv.tensors.far import FarFile, FarGroup
from ckptconv.tensors.file_state import FileState

_FEW = 4  # objects that are looked up one by one; more are listed again

Folder = dict[str, Object | None]  # a name -> the object, or None for a folder


class Tree(FarGroup):
    """What is known of a folder and its surroundings.

    Args:
        storage: the bucket.
        root: the key of the folder, or object, that the user named.
    """

    def __init__(self, storage: Storage, root: str) -> None:
        self.storage, self.root = storage, root
        self.segments = Segments(storage.fetch, storage.least)
        self._folders: dict[str, Folder] = {}
        self._whole: list[str] = []
        self._files: dict[str, ObjectFile] = {}
        self._lock = threading.RLock()
        self._named: list[Object | None] = []

    def find(self, key: str) -> Object | None:
        """The object of that name, or None."""
        if key == self.root:
            with self._lock:
                if not self._named:
                    self._named.append(None if not key or self.children(key) else self.storage.look(key))
                return self._named[0]
        parent, _, name = key.rpartition("/")
        return self.children(parent).get(name) if name else None

    def is_listed(self, key: str) -> bool:
        """True if the folder of this name was listed, or is below the named folder, where it will be."""
        return is_below(key, self.root) or key.rpartition("/")[0] in self._folders

    def is_folder(self, key: str) -> bool:
        """True if objects are below this name."""
        if key != self.root and is_below(key, self.root):
            parent, _, name = key.rpartition("/")
            return (
                self.children(parent).get(name, key) is None
            )  # known by the listing of the folder that holds it
        return bool(self.children(key))

    def children(self, key: str) -> Folder:
        """What is in a folder; {} if there is no such folder."""
        found = self._folders.get(key)
        if found is not None:
            return found
        with self._lock:
            if key in self._folders:
                return self._folders[key]
            if any(is_below(key, whole) for whole in self._whole):
                return {}
            if key == self.root:
                self._list_alone(key)
            elif is_below(key, self.root):
                top = "/".join(key.split("/")[: 1 + len(self.root.split("/")) * bool(self.root)])
                if (name := top.rpartition("/")[2]) in self.children(self.root) and (
                    self.children(self.root)[name] is None
                ):
                    self._list_whole(top)
            else:
                try:
                    self._list_alone(key)
                except CkptconvError:
                    self._folders[key] = {}
            return self._folders.get(key, {})

    def file(self, key: str) -> ObjectFile | None:
        """The object of that name to read from, or None. It is the same one for every call."""
        found = self.find(key)
        if found is None:
            return None
        with self._lock:
            if key not in self._files:
                self._files[key] = ObjectFile(self, found)
            return self._files[key]

    def states_now(self, files: Sequence[FarFile]) -> list[FileState | None]:
        """See `FarGroup`."""
        keys = [file.key for file in files if isinstance(file, ObjectFile)]
        if len(keys) <= _FEW:
            found = {key: item for key in keys if (item := self.storage.look(key)) is not None}
        else:
            found = {item.key: item for folder in _tops(keys) for item in self.storage.below(folder)}
        return [state_of(found[key]) if key in found else None for key in keys]

    @property
    def budget(self) -> int:  # type: ignore[override]
        """See `FarGroup`."""
        return self.segments.budget

    @budget.setter
    def budget(self, nbytes: int) -> None:
        self.segments.budget = nbytes

    def _list_alone(self, key: str) -> None:
        listed = self.storage.inside(key)
        folder: Folder = {item.key.rpartition("/")[2]: item for item in listed.objects if item.key != key}
        folder.update(dict.fromkeys((name.rpartition("/")[2] for name in listed.folders), None))
        self._folders[key] = folder

    def _list_whole(self, key: str) -> None:
        folders: dict[str, Folder] = {}
        for item in self.storage.below(key):
            parent, _, name = item.key.rpartition("/")
            if item.key in folders or item.key == key:
                continue  # the marker of a folder, which some tools store as an empty object
            folders.setdefault(parent, {})[name] = item
            while parent != key:
                parent, _, name = parent.rpartition("/")
                folder = folders.setdefault(parent, {})
                if name in folder and folder[name] is None:
                    break
                folder[name] = None
        self._folders.update(folders)
        self._whole.append(key)


def is_below(key: str, folder: str) -> bool:
    """True if a key is a folder's own or below it."""
    return not folder or key == folder or key.startswith(f"{folder}/")


def _tops(keys: Sequence[str]) -> list[str]:
    """The folders of some objects, without those that are in another one."""
    folders = sorted({key.rpartition("/")[0] for key in keys})
    return [one for one in folders if not any(one != other and is_below(one, other) for other in folders)]
