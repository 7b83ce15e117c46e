"""What a plan is made of: choices, outputs, what is left out, and the whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import Any

from ckptconv.compute import Source
from ckptconv.plan import shards
from ckptconv.tensors.checkpoint import Checkpoint, starred
from ckptconv.tensors.dtypes import itemsize
from ckptconv.tensors.view import Shape, View

ADAPTER_FOLDER = "lora_adapter"


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may choose. None and "auto" mean: found from the files, and said.

    dtype: "auto", "keep" or a float dtype. lora: "merge", "adapter" or "both". layout: "hub" or "module". mtp: "keep"
    or "drop".
    """

    dtype: str = "auto"
    lora: str | None = None
    lora_alpha: float | None = None
    layout: str = "hub"
    max_shard_size: int | str = "5GB"
    mtp: str = "keep"


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of the model: its label shape and dtype, what fills it, and the stored names that is.

    repeats: the output that this is a copy of; the ledger counts that one alone.
    """

    name: str
    shape: Shape
    dtype: str
    source: Source
    origins: tuple[str, ...]
    repeats: str = ""

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * itemsize(self.dtype)


@dataclass(frozen=True, slots=True)
class Dropped:
    """Stored bytes that no output holds, and why. view: which; None for copies, which the ledger does not count."""

    name: str
    nbytes: int
    reason: str
    view: View | None = None


Filled = dict[str, tuple[Source, Shape, tuple[str, ...]]]  # what fills a tensor, its label, trained names


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a merge will write. files and outputs are keyed alike; texts: small files by name."""

    checkpoint: Checkpoint
    outputs: dict[
        str, Output
    ]  # by tensor name; an adapter beside the model has "lora_adapter/" before its names
    files: tuple[shards.OutFile, ...]
    dropped: tuple[Dropped, ...]
    config: dict[str, Any] | None
    texts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    dtype_said: str = ""
    rules: tuple[str, ...] = ()
    balanced: int = 0
    is_adapter: bool = False

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def left_out(self) -> list[tuple[str, int, str]]:
        """What is dropped, as (names, bytes, reason): those that differ by numbers alone, for one reason, in one line."""
        groups: dict[tuple[str, str], list[Dropped]] = {}
        for item in self.dropped:
            groups.setdefault((starred(item.name), item.reason), []).append(item)
        return [
            (
                f"{names} ({len(items)})" if len(items) > 1 else items[0].name,
                sum(i.nbytes for i in items),
                reason,
            )
            for (names, reason), items in groups.items()
        ]

    @property
    def casts(self) -> list[tuple[str, str, int, int]]:
        """(stored dtype, output dtype, tensors, output bytes), largest first."""
        count: Counter[tuple[str, str]] = Counter()
        size: Counter[tuple[str, str]] = Counter()
        for output in self.outputs.values():
            count[output.source.dtype, output.dtype] += 1
            size[output.source.dtype, output.dtype] += output.nbytes
        return [(a, b, count[a, b], n) for (a, b), n in size.most_common()]
