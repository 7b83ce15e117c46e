"""Classes that pickle under another project's name, so that its files can be written without it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock


def named(module: str, name: str) -> Any:
    """A plain class that pickles as module.name, inside `importable`; its keyword arguments are its state."""

    def init(self: Any, **fields: Any) -> None:
        self.__dict__.update(fields)

    return type(name, (), {"__module__": module, "__qualname__": name, "__init__": init})


@contextmanager
def importable(*classes: Any) -> Iterator[None]:
    """While it lasts, the classes are found where they say they are, as pickle wants it."""
    modules: dict[str, ModuleType] = {}
    for each in classes:
        parts = each.__module__.split(".")
        for depth in range(len(parts)):
            path = ".".join(parts[: depth + 1])
            modules.setdefault(path, ModuleType(path))
        setattr(modules[each.__module__], each.__qualname__, each)
    with mock.patch.dict(sys.modules, modules):
        yield
