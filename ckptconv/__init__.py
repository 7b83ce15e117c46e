"""ckptconv: sharded trainer checkpoints to Hugging Face models.

import ckptconv
tensors = ckptconv.open("checkpoints/run")      # lazy: name -> tensor with .numpy() and .torch()
ckptconv.merge("checkpoints/run", "model")      # the records that the command line shows
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptconv.errors import CkptconvError, ExitCode
from ckptconv.version import __version__

if TYPE_CHECKING:
    from ckptconv.inspect import inspect
    from ckptconv.lazy import open
    from ckptconv.merge import merge
    from ckptconv.push import push
    from ckptconv.verify import verify

__all__ = ["CkptconvError", "ExitCode", "__version__", "inspect", "merge", "open", "push", "verify"]

_HOMES = {"open": "lazy", "inspect": "inspect", "merge": "merge", "verify": "verify", "push": "push"}


def __getattr__(name: str) -> Any:
    """The public functions, imported on first use. A command's module has its function's name and is callable."""
    if name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f"ckptconv.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'ckptconv' has no attribute {name!r}")
