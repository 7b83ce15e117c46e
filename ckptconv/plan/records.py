"""The records of a plan: outputs, parts, what is left out, and the plan itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptconv.plan import shards
from ckptconv.tensors.checkpoint import Checkpoint, starred
from ckptconv.tensors.dtypes import itemsize
from ckptconv.tensors.view import Shape, View

if TYPE_CHECKING:
    from ckptconv.compute.sources import Source

ADAPTER_FOLDER = "lora_adapter"


class Fill(NamedTuple):
    """One tensor of the model while it is planned: its source, its final shape, and the trained names it comes from."""

    source: Source
    shape: Shape
    trained: tuple[str, ...]


Filled = Mapping[str, Fill]  # the tensor's name in the output -> what fills it
Left = tuple[str, View, str]  # a trained name, its elements, and why no output holds them


class Output(NamedTuple):
    """One tensor to write.

    Args:
        name: its name in the output.
        shape: its final shape.
        dtype: its final dtype.
        source: what fills it; it has as many elements as `shape`.
        origins: the stored tensors that it was made from.
        repeats: the output that this one is a copy of; the ledger counts only that one.
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


class Dropped(NamedTuple):
    """Stored bytes that no output holds.

    Args:
        name: the tensor's name in the checkpoint.
        nbytes: its size in bytes.
        reason: why it is not written, for the user.
        view: the elements; None for replicas, which the ledger does not count.
    """

    name: str
    nbytes: int
    reason: str
    view: View | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the output, planned: the model, or the adapter.

    Args:
        outputs: by name.
        files: the safetensors files that hold them.
        used: the stored elements that the outputs are made of, for the ledger.
        left: the stored elements that this part leaves out.
        config: the model's config.json as it will be written.
        texts: small JSON files by name.
        notes: what the user must know.
        dtype_summary: the sentence about dtypes.
        config_summary: the sentence about what config.json gets besides the trainer's keys; "" if that is nothing.
        rules: the layout changes that were applied, as text.
    """

    outputs: dict[str, Output]
    files: tuple[shards.OutFile, ...]
    used: tuple[View, ...]
    left: tuple[Left, ...] = ()
    config: dict[str, Any] | None = None
    texts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    dtype_summary: str = ""
    config_summary: str = ""
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a merge will write.

    Args:
        checkpoint: what is read.
        outputs: the tensors to write, by key.
        files: the safetensors files; together they have the same keys as `outputs`.
        dropped: the stored bytes that no output holds, with reasons.
        config: the model's config.json as it will be written; None if it is not known.
        texts: small JSON files by name.
        notes: what the user must know.
        dtype_summary: the sentence about dtypes.
        config_summary: the sentence about what config.json gets besides the trainer's keys; "" if that is nothing.
        rules: the layout changes that were applied, as text.
        balanced: the bytes over which the ledger balanced.
        is_adapter: True if only an adapter is written.
    """

    checkpoint: Checkpoint
    outputs: dict[
        str, Output
    ]  # by tensor name; an adapter beside the model has "lora_adapter/" before its names
    files: tuple[shards.OutFile, ...]
    dropped: tuple[Dropped, ...]
    config: dict[str, Any] | None
    texts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    dtype_summary: str = ""
    config_summary: str = ""
    rules: tuple[str, ...] = ()
    balanced: int = 0
    is_adapter: bool = False

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def left_out(self) -> list[tuple[str, int, str]]:
        """What is dropped, as (names, bytes, reason). Names that differ only in numbers share a line per reason."""
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
        """The dtype changes as (stored dtype, output dtype, number of tensors, output bytes), the largest first."""
        count: Counter[tuple[str, str]] = Counter()
        size: Counter[tuple[str, str]] = Counter()
        for output in self.outputs.values():
            count[output.source.dtype, output.dtype] += 1
            size[output.source.dtype, output.dtype] += output.nbytes
        return [(a, b, count[a, b], n) for (a, b), n in size.most_common()]
