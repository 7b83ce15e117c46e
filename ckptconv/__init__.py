"""ckptconv: sharded trainer checkpoints to Hugging Face models.

Example:
    >>> import ckptconv
    >>> tensors = ckptconv.open("checkpoints/run")       # lazy: name -> tensor with .numpy() and .torch()
    >>> found = ckptconv.inspect("checkpoints/run")      # what is in it, and which rank stores what
    >>> merged = ckptconv.merge("checkpoints/run", "model")
    >>> checked = ckptconv.verify("model", against="checkpoints/run")
    >>> pushed = ckptconv.push("model", "org/name")

All functions return records, and raise CkptconvError for what is wrong with the input. Names that are listed here are
the public interface (docs/api.md); everything else may change with any release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptconv.commands.display import Displayed
from ckptconv.errors import CkptconvError, ExitCode, Incomplete, Kind

__version__ = "0.1.0"  # the one place that says which version this is

if TYPE_CHECKING:
    from ckptconv.commands.inspect import Inspection, inspect
    from ckptconv.commands.merge.run import Merged, merge
    from ckptconv.commands.open import LazyCheckpoint, LazyTensor, open
    from ckptconv.commands.progress import Progress
    from ckptconv.commands.push.run import Pushed, push
    from ckptconv.commands.verify import Difference, Layer, Problem, Verified, verify
    from ckptconv.plan import Options, Plan
    from ckptconv.tensors.source_spec import SourceSpec

__all__ = [
    "CkptconvError",
    "Difference",
    "ExitCode",
    "Incomplete",
    "Inspection",
    "Kind",
    "Layer",
    "LazyCheckpoint",
    "LazyTensor",
    "Merged",
    "Options",
    "Plan",
    "Problem",
    "Progress",
    "Pushed",
    "SourceSpec",
    "Verified",
    "__version__",
    "inspect",
    "merge",
    "open",
    "push",
    "verify",
]

# Imported on first use: `import ckptconv` itself imports no numpy.
_HOMES = {
    "Difference": "ckptconv.commands.verify",
    "Inspection": "ckptconv.commands.inspect",
    "Layer": "ckptconv.commands.verify",
    "LazyCheckpoint": "ckptconv.commands.open",
    "LazyTensor": "ckptconv.commands.open",
    "Merged": "ckptconv.commands.merge.run",
    "Options": "ckptconv.plan",
    "Plan": "ckptconv.plan",
    "Problem": "ckptconv.commands.verify",
    "Progress": "ckptconv.commands.progress",
    "Pushed": "ckptconv.commands.push.run",
    "SourceSpec": "ckptconv.tensors.source_spec",
    "Verified": "ckptconv.commands.verify",
    "inspect": "ckptconv.commands.inspect",
    "merge": "ckptconv.commands.merge.run",
    "open": "ckptconv.commands.open",
    "push": "ckptconv.commands.push.run",
    "verify": "ckptconv.commands.verify",
}


def _draw(result: object) -> str:
    from ckptconv.show.notebook import html

    return html(result)


Displayed.draw = _draw


def __getattr__(name: str) -> Any:
    """The public functions and records, imported on first use."""
    if name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'ckptconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names and no others, for tab completion; some are imported on first use."""
    return sorted(__all__)
