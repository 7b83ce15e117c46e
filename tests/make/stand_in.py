"""Stand-ins for packages that verl imports and a save never uses: ray and web servers, where they are not installed.

Every name of a stand-in exists, and nothing of it does anything. verl_fsdp.py installs them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any, ClassVar
from unittest.mock import MagicMock

PACKAGES = ("ray", "uvicorn", "fastapi", "starlette", "aiohttp")


class Empty(ModuleType):
    """A module of which every name is a mock."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = MagicMock if name[:1].isupper() else MagicMock(name=name)
        setattr(self, name, made)
        return made


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the packages that are absent, and all below them."""

    def __init__(self, absent: set[str]) -> None:
        self.absent = absent

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.partition(".")[0] in self.absent:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> ModuleType:
        return Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: an Empty is complete."""


def install() -> None:
    """Puts stand-ins where packages are missing."""
    sys.meta_path.append(Finder({name for name in PACKAGES if not importlib.util.find_spec(name)}))
