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
    from ckptconv.commands.inspect import inspect
    from ckptconv.commands.merge.run import merge
    from ckptconv.commands.push.run import push
    from ckptconv.commands.verify import verify
    from ckptconv.lazy import open

__all__ = ["CkptconvError", "ExitCode", "__version__", "inspect", "merge", "open", "push", "verify"]

_HOMES = {
    "open": "ckptconv.lazy",
    "inspect": "ckptconv.commands.inspect",
    "merge": "ckptconv.commands.merge.run",
    "verify": "ckptconv.commands.verify",
    "push": "ckptconv.commands.push.run",
}


def __getattr__(name: str) -> Any:
    """The public functions, imported on first use."""
    if name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'ckptconv' has no attribute {name!r}")
