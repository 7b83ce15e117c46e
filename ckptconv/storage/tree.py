"""The listing of a folder in a bucket as a tree, which takes few requests and is kept.

`Tree` is the `Storage` of all places in a store, which may be a bucket or a repository of the Hub.

The folder that the user names is listed alone, since a run may hold many steps. Its subfolders are listed with all that is
below them at the first look, so that neither names nor sizes in them need a request. A folder outside of the named one (the
run above a step) is listed alone too, and counts as empty if the store does not list it for us; not if the store fails.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ckptconv.errors import CkptconvError
from ckptconv.storage.base import Object, Store
from ckptconv.storage.errors import Unavailable
from ckptconv.storage.file import ObjectFile, state_of
from ckptconv.storage.segments import Segments
from ckptconv.tensors.storage import Entry, FarFile, FarGroup, FileState, Storage

_FEW = 4  # objects that are looked up one by one; more are listed again

Folder = dict[str, Object | None]  # a name -> the object, or None for a folder


class Tree(Storage, FarGroup):
    """What is known of a folder and its surroundings.

    Args:
        store: the bucket.
        root: the key of the folder, or object, that the user named.
    """

    def __init__(self, store: Store, root: str) -> None:
        self.store, self.root = store, root
        self.segments = Segments(self._fetch, store.least)
        self._failed: Unavailable | None = None
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
                    self._named.append(None if not key or self.children(key) else self.store.look(key))
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
                except Unavailable:
                    raise  # whether the run has marked the step is not known
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

    # what `Storage` has, for paths

    def names(self, folder: Path) -> list[str]:
        """See `Storage`. A folder of a store exists if something is in it."""
        found = self.children(_key(folder))
        if not found:
            raise _no_such(folder)
        return sorted(found)

    def entries(self, folder: Path) -> Iterator[Entry]:
        """See `Storage`."""
        found = self.children(_key(folder))
        return iter(
            [Entry(folder, name, found[name] is None, found[name] is not None) for name in self.names(folder)]
        )

    def files_below(self, folder: Path, leave: Callable[[Path], bool]) -> Iterator[str]:
        """See `Storage`."""
        for name, item in sorted(self.children(_key(folder)).items()):
            if item is not None:
                yield str(folder / name)
            elif not leave(folder / name):
                yield from self.files_below(folder / name, leave)

    def is_file(self, path: Path) -> bool:
        """See `Storage`."""
        return bool(_key(path)) and self.find(_key(path)) is not None

    def is_dir(self, path: Path) -> bool:
        """See `Storage`."""
        return self.is_folder(_key(path))

    def exists(self, path: Path) -> bool:
        """See `Storage`."""
        return self.is_file(path) or self.is_dir(path)

    def state(self, path: Path) -> FileState:
        """See `Storage`. A folder has no state of its own."""
        item = self.find(_key(path))
        if item is None and not self.is_dir(path):
            raise _no_such(path)
        return FileState(0, 0, 0) if item is None else state_of(item)

    def open(self, path: Path) -> ObjectFile:
        """See `Storage`."""
        file = self.file(_key(path))
        if file is None:
            raise _no_such(path)
        return file

    def states_now(self, files: Sequence[FarFile]) -> list[FileState | None]:
        """See `FarGroup`. A failed read counts here too, as some readers go on without a file that cannot be read."""
        if self._failed is not None:
            raise self._failed
        listed = [file.item for file in files if isinstance(file, ObjectFile)]
        if len(listed) <= _FEW:
            found = {item.key: now for item in listed if (now := self.store.look(item.key)) is not None}
        else:
            tops = _tops([item.key for item in listed])
            found = {now.key: now for folder in tops for now in self.store.below(folder)}
        return [_state(item, found.get(item.key)) for item in listed]

    def _fetch(self, item: Object, start: int, end: int) -> memoryview:
        try:
            return self.store.fetch(item, start, end)
        except Unavailable as error:
            self._failed = error
            raise

    @property
    def budget(self) -> int:  # type: ignore[override]
        """See `FarGroup`."""
        return self.segments.budget

    @budget.setter
    def budget(self, nbytes: int) -> None:
        self.segments.budget = nbytes

    def _list_alone(self, key: str) -> None:
        listed = self.store.inside(key)
        folder: Folder = {item.key.rpartition("/")[2]: item for item in listed.objects if item.key != key}
        folder.update(dict.fromkeys((name.rpartition("/")[2] for name in listed.folders), None))
        self._folders[key] = folder

    def _list_whole(self, key: str) -> None:
        folders: dict[str, Folder] = {}
        for item in self.store.below(key):
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


def _state(listed: Object, now: Object | None) -> FileState | None:
    if now is None:
        return None
    return state_of(listed if listed.is_same(now) else now)


def is_below(key: str, folder: str) -> bool:
    """True if a key is a folder's own or below it."""
    return not folder or key == folder or key.startswith(f"{folder}/")


def _key(path: Path) -> str:
    return path.key  # type: ignore[attr-defined, no-any-return]


def _no_such(path: Path) -> FileNotFoundError:
    return FileNotFoundError(2, os.strerror(2), str(path))


def _tops(keys: Sequence[str]) -> list[str]:
    """The folders of some objects, without those that are in another one."""
    folders = sorted({key.rpartition("/")[0] for key in keys})
    return [one for one in folders if not any(one != other and is_below(one, other) for other in folders)]
