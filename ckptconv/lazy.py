"""ckptconv.open: a checkpoint as a lazy mapping from name to tensor; nothing is read until it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptconv.backends import open_checkpoint
from ckptconv.read.reader import read_numpy
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.view import View

if TYPE_CHECKING:
    import numpy as np
    import torch


class LazyTensor:
    """A tensor that knows where its bytes lie. shape, dtype (a name such as "bfloat16"), view."""

    __slots__ = ("name", "view")

    def __init__(self, name: str, view: View) -> None:
        self.name, self.view = name, view

    @property
    def shape(self) -> tuple[int, ...]:
        return self.view.shape

    @property
    def dtype(self) -> str:
        return self.view.dtype

    def numpy(self) -> np.ndarray[Any, np.dtype[Any]]:
        """Read it whole, as numpy (bfloat16 and float8 in ml_dtypes' dtypes)."""
        return read_numpy(self.view)

    def torch(self) -> torch.Tensor:
        """Read it whole, as a torch tensor of its own dtype; imports torch."""
        import numpy as np
        import torch

        raw = read_numpy(self.view)
        return (
            torch.from_numpy(raw.reshape(-1).view(np.uint8))
            .view(getattr(torch, self.dtype))
            .reshape(self.shape)
        )

    def __repr__(self) -> str:
        return f"LazyTensor({self.name!r}, {self.dtype}, {list(self.shape)})"


class LazyCheckpoint(Mapping[str, LazyTensor]):
    """Name -> LazyTensor, under the names that the trainer stored. `checkpoint` has the rest: mesh, steps, files."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def __getitem__(self, name: str) -> LazyTensor:
        return LazyTensor(name, self.checkpoint.tensors[name].view)

    def __iter__(self) -> Iterator[str]:
        return iter(self.checkpoint.tensors)

    def __len__(self) -> int:
        return len(self.checkpoint.tensors)


def open(
    path: str | Path, *, backend: str | None = None, step: int | None = None, also: Sequence[str | Path] = ()
) -> LazyCheckpoint:
    """Open whatever lies in a folder: a trainer's run, step or role folder, or a Hugging Face folder."""
    return LazyCheckpoint(open_checkpoint(path, backend=backend, step=step, also=also))
