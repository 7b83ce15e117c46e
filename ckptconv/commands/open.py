"""ckptconv.open: a checkpoint as a lazy mapping from name to tensor; nothing is read until it is asked for."""

from __future__ import annotations

import html
import operator
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ckptconv.backends import open_checkpoint
from ckptconv.commands.packages import require_packages
from ckptconv.commands.planning import plan_for, require_base
from ckptconv.errors import CkptconvError, Kind
from ckptconv.hub.source import fetched, local_or_hub
from ckptconv.plan import Options, Plan
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.dtypes import itemsize, to_numpy
from ckptconv.tensors.source_spec import Step, Where, spec_of
from ckptconv.tensors.view import Shape, View, narrow, squeeze

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ckptconv.compute.sources import Source

    Array = np.ndarray[Any, np.dtype[Any]]

_SHOWN = 20  # tensors that a repr lists


class LazyTensor:
    """A tensor that knows where its bytes are, and reads them when asked.

    Slicing gives another lazy tensor: `t["w"][0:128]` reads only those rows. Indices and slices with step 1 are
    accepted, along any dim; along the first dim only, where the tensor is computed (LoRA) or stored in another shape.

    Example:
        >>> w = ckptconv.open("checkpoints/run")["lm_head.weight"]
        >>> w[:2, 5].numpy()
        array([0.0123, -0.0456], dtype=float32)
    """

    __slots__ = ("_first", "dtype", "name", "shape", "source")

    name: str
    source: Source
    shape: tuple[int, ...]
    dtype: str

    def __init__(
        self,
        name: str,
        source: Source,
        shape: Shape | None = None,
        dtype: str | None = None,
        first: int = 0,
    ) -> None:
        """A tensor of `shape` and `dtype`, which `source` fills from its element number `first` on, in C order."""
        self.name, self.source, self._first = name, source, first
        self.shape = source.shape if shape is None else shape
        self.dtype = source.dtype if dtype is None else dtype

    @property
    def view(self) -> View:
        """Where the stored bytes are; of a computed tensor, those of its base."""
        return self.source if isinstance(self.source, View) else self.source.base

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Their size in bytes."""
        return self.numel * itemsize(self.dtype)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a tensor without dims")
        return self.shape[0]

    def __getitem__(self, key: Any) -> LazyTensor:
        """A part of it, still unread.

        Args:
            key: an index, a slice with step 1, `...`, or a tuple of these.

        Raises:
            IndexError: for too many indices, and for an index outside its dim.
            CkptconvError: for a slice with a step, and along other dims than the first where these cannot be sliced.
        """
        ranges = [
            _range(item, size) for item, size in zip(_per_dim(key, self.shape), self.shape, strict=True)
        ]
        shape = tuple(stop - start for start, stop, keeps in ranges if keeps)
        if isinstance(self.source, View) and self.source.shape == self.shape:
            view = self.source
            for dim, (start, stop, _) in enumerate(ranges):
                view = narrow(view, dim, start, stop - start)
            for dim in reversed(range(len(ranges))):
                view = view if ranges[dim][2] else squeeze(view, dim)
            return LazyTensor(self.name, view, shape, self.dtype)
        if any(
            (start, stop) != (0, size)
            for (start, stop, _), size in zip(ranges[1:], self.shape[1:], strict=True)
        ):
            raise CkptconvError(
                f"{self.name} is computed, or stored in another shape: only its first dim can be sliced unread",
                hint="read it first: .numpy()",
                kind=Kind.UNSUPPORTED,
            )
        first = ranges[0][0] * prod(self.shape[1:]) if ranges else 0
        return LazyTensor(self.name, self.source, shape, self.dtype, self._first + first)

    def numpy(self) -> Array:
        """Read it, as numpy (bfloat16 and float8 in the dtypes of ml_dtypes).

        Raises:
            CkptconvError: where a file is gone or shorter than its header says, and for values that the dtype cannot
                hold.
        """
        import numpy as np

        from ckptconv.compute.block import CAST_BLOCK, Block
        from ckptconv.read.reader import Reader

        out = np.empty(self.nbytes, np.uint8)
        if self.numel:
            block, scratch = Block(self.source, self.dtype), np.empty(8 * CAST_BLOCK, np.uint8)
            with Reader() as reader:
                block.fill(reader, self._first, self._first + self.numel, out, scratch)
        return out.view(to_numpy(self.dtype)).reshape(self.shape)

    def torch(self) -> torch.Tensor:
        """Read it, as a torch tensor of its own dtype. This imports torch."""
        require_packages("LazyTensor.torch()", "torch")
        import numpy as np
        import torch

        raw = self.numpy().reshape(-1).view(np.uint8)
        return torch.from_numpy(raw).view(getattr(torch, self.dtype)).reshape(self.shape)

    def __repr__(self) -> str:
        return f"LazyTensor({self.name!r}, {self.dtype}, {list(self.shape)})"


class LazyCheckpoint(Mapping[str, LazyTensor]):
    """Name -> LazyTensor.

    Args:
        checkpoint: the rest of what is known: mesh, step, files.
        plan: what `merge` would write, for names="hub"; None for the trainer's names.
    """

    def __init__(self, checkpoint: Checkpoint, plan: Plan | None = None) -> None:
        self.checkpoint, self.plan = checkpoint, plan

    def __getitem__(self, name: str) -> LazyTensor:
        if self.plan is not None:
            output = self.plan.outputs[name]
            return LazyTensor(name, output.source, output.shape, output.dtype)
        return LazyTensor(name, self.checkpoint.tensors[name].view)

    def __iter__(self) -> Iterator[str]:
        return iter(self.checkpoint.tensors if self.plan is None else self.plan.outputs)

    def __len__(self) -> int:
        return len(self.checkpoint.tensors if self.plan is None else self.plan.outputs)

    def _head(self) -> str:
        nbytes = sum(tensor.nbytes for tensor in self.values())
        return f"{self.checkpoint.layout}: {len(self)} tensors, {nbytes:,} bytes"

    def __repr__(self) -> str:
        lines = [f"  {tensor!r}" for _, tensor in zip(range(_SHOWN), self.values(), strict=False)]
        if len(self) > _SHOWN:
            lines.append(f"  and {len(self) - _SHOWN:,} more")
        return "\n".join([f"LazyCheckpoint({self._head()})", *lines])

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><td>{html.escape(name)}</td><td>{tensor.dtype}</td><td>{list(tensor.shape)}</td></tr>"
            for _, (name, tensor) in zip(range(_SHOWN), self.items(), strict=False)
        ]
        more = f"<p>and {len(self) - _SHOWN:,} more</p>" if len(self) > _SHOWN else ""
        head = "<tr><th>tensor</th><th>dtype</th><th>shape</th></tr>"
        return f"<p>{html.escape(self._head())}</p><table>{head}{''.join(rows)}</table>{more}"


def open(
    source: Where,
    *,
    names: Literal["stored", "hub"] = "stored",
    options: Options | None = None,
    backend: str | None = None,
    step: Step | None = None,
    also: Sequence[str | Path] = (),
    revision: str | None = None,
    config: str | Path | None = None,
    base: str | Path | None = None,
) -> LazyCheckpoint:
    """Open a checkpoint as a mapping from name to tensor. No weights are read before a tensor is asked for.

    Args:
        source: a run, step, role or model folder, a file of weights, a repository ("org/name"), which is downloaded
            into huggingface_hub's cache, or a SourceSpec.
        names: "stored" for the trainer's names and dtypes; "hub" for the tensors that `merge` would write.
        options: with names="hub": the choices of that merge.
        backend, step, also, revision: see `SourceSpec`.
        config, base: with names="hub": as `merge` takes them.

    Returns:
        The tensors by name.

    Raises:
        CkptconvError: where there is no whole checkpoint; with names="hub" also where it cannot be planned. A head
            that the config ties and that is stored apart is then compared with its embedding, which reads both.

    Example:
        >>> tensors = ckptconv.open("checkpoints/run", names="hub")
        >>> tensors["model.norm.weight"].numpy().shape
        (896,)
    """
    if names not in ("stored", "hub"):
        raise CkptconvError(f"names does not accept {names!r}", wanted="stored, hub", kind=Kind.USAGE)
    unused = [name for name, value in (("options", options), ("config", config), ("base", base)) if value]
    if names == "stored" and unused:
        raise CkptconvError(f"{', '.join(unused)} goes with names='hub' only", kind=Kind.USAGE)
    checkpoint = open_checkpoint(fetched(spec_of(source, backend, step, also, revision)))
    if names == "stored":
        return LazyCheckpoint(checkpoint)
    options = options or Options()
    config = None if config is None else local_or_hub(config, weights=False)
    if base is None:
        require_base(checkpoint, options)
    else:
        base = local_or_hub(base)
    return LazyCheckpoint(checkpoint, plan_for(checkpoint, options, config, base))


def _per_dim(key: Any, shape: Shape) -> list[Any]:
    """One item per dim of the tensor: `...` and what is not given become whole dims."""
    items = list(key) if isinstance(key, tuple) else [key]
    dots = [at for at, item in enumerate(items) if item is Ellipsis]
    count = len(items) - len(dots)
    if count > len(shape) or len(dots) > 1:
        raise IndexError(f"{len(items)} indices for a tensor of {len(shape)} dims")
    at = dots[0] if dots else len(items)
    rest = [item for item in items if item is not Ellipsis]
    return [*rest[:at], *[slice(None)] * (len(shape) - count), *rest[at:]]


def _range(item: Any, size: int) -> tuple[int, int, bool]:
    """The first element along a dim, the one after the last, and whether the dim stays."""
    if isinstance(item, slice):
        start, stop, step = item.indices(size)
        if step != 1:
            raise CkptconvError("a lazy tensor is sliced with step 1", found=item, kind=Kind.USAGE)
        return start, max(start, stop), True
    index = operator.index(item)
    if not -size <= index < size:
        raise IndexError(f"index {index} is outside a dim of {size} elements")
    return index % size, index % size + 1, False
