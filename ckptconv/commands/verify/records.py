"""The result of a verification, as plain records."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ckptconv.commands.display import Displayed
from ckptconv.errors import ExitCode
from ckptconv.tensors.boxes import Slice
from ckptconv.tensors.view import Shape

PROMPT = "The capital of France is"
LAYER = re.compile(r"(.*?\.\d+)\.(.+)")  # a tensor's layer (its name up to the first number), and the rest


def span(word: str, first: int, last: int) -> str:
    """("row", 3, 1200) -> "rows 3–1,200"; one of them is "row 3"."""
    return f"{word} {first:,}" if first == last else f"{word}s {first:,}–{last:,}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Args:
        name: the tensor or file.
        what: what is wrong.
        where: its rows, rank or file; "" if that is not known.
        hint: what to do; "" if there is no advice.
    """

    name: str
    what: str
    where: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Layer:
    """The result of one kind of check.

    Args:
        name: the layer's name, such as "values".
        ok: True for a pass; None if the check could not be made, for the reason in `found`.
        proves: what a pass means.
        found: one line on what was checked.
        problems: what is wrong.
        notes: findings that are not wrong.
    """

    name: str
    ok: bool | None
    proves: str
    found: str
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """How one tensor differs from the reference.

    Args:
        name: the tensor.
        shape: its shape.
        dtype: the dtype in which both sides were compared.
        count: the number of elements that differ.
        nonfinite: how many of them are NaN or Inf on a side; the other numbers are over the finite ones.
        max_abs: the largest |target - reference|.
        mean_abs: the mean of |target - reference| over all elements.
        max_rel: the largest |target - reference| / |reference|.
        at: the index of max_abs.
        first_row: the first index along dim 0 with a difference.
        last_row: the last one.
        rows: for each of at most 32 equal parts of dim 0, whether it has a difference.
        slices: boxes of the ranks that store elements that differ, if a side is a trainer's checkpoint or its receipt
            tells how it was sharded.
        first_column: the first index along the last dim with a difference, for tensors of at least two dims.
        last_column: the last one.
        columns: as `rows`, along the last dim.
        looks_like: the likely cause, such as another tensor's values or rows in another order; "" if there is none.
        equals: the tensor of the reference that has the same values; "" if there is none.
    """

    name: str
    shape: Shape
    dtype: str
    count: int
    nonfinite: int
    max_abs: float
    mean_abs: float
    max_rel: float
    at: Shape
    first_row: int
    last_row: int
    rows: tuple[bool, ...]
    slices: tuple[Slice, ...] = ()
    first_column: int = 0
    last_column: int = 0
    columns: tuple[bool, ...] = ()
    looks_like: str = ""
    equals: str = ""

    @property
    def where(self) -> str:
        """The rows that differ; and the columns, where not all of them do."""
        text = span("row", self.first_row, self.last_row)
        if self.columns and (self.first_column, self.last_column) != (0, self.shape[-1] - 1):
            text += ", " + span("column", self.first_column, self.last_column)
        return text

    @property
    def moved(self) -> tuple[str, str] | None:
        """The tensor's layer, and the layer of the reference that has these values under the same name; else None."""
        here, there = LAYER.match(self.name), LAYER.match(self.equals)
        return (here[1], there[1]) if here and there and here[2] == there[2] else None

    @property
    def stored_rank(self) -> tuple[int, ...]:
        """The ranks that store elements that differ."""
        return tuple(part.rank for part in self.slices)


@dataclass(frozen=True, slots=True, repr=False)
class Verified(Displayed):
    """The result of a verification.

    Args:
        target: what was checked.
        against: the reference; None if there was none.
        layers: the layers, in the order of checking.
        differences: every tensor that differs.
        tensors: the number of tensors of the target.
        compared: the number of tensors whose values were read on both sides.
        equal: the number of those without a difference.
        read: bytes that were read.
        seconds: the time of the whole verification.
        misread_by: readers that would take other values from the folder and say nothing, such as "transformers 4.57.6".
        is_edited: whether files next to the weights are not those that the merge wrote.
    """

    target: Path
    against: Path | None
    layers: tuple[Layer, ...]
    differences: tuple[Difference, ...] = ()
    tensors: int = 0
    compared: int = 0
    equal: int = 0
    read: int = 0
    seconds: float = 0.0
    misread_by: tuple[str, ...] = ()
    is_edited: bool = False

    @property
    def summary(self) -> str:
        """The result in one line, with the layers that failed."""
        wrong = ", ".join(layer.name for layer in self.layers if layer.ok is False)
        values = f", {self.equal:,} of {self.compared:,} tensors equal" if self.compared else ""
        others = f", misread by {', '.join(self.misread_by)}" if self.misread_by else ""
        return f"{self.target}: {'ok' if self.ok else f'not ok ({wrong})'}{values}{others}"

    @property
    def ok(self) -> bool:
        """True if a layer passed and none failed. A layer that could not be checked counts as neither."""
        states = {layer.ok for layer in self.layers}
        return True in states and False not in states

    @property
    def code(self) -> ExitCode:
        """The exit code of a command with this result; FAILED if nothing could be checked."""
        if self.ok:
            return ExitCode.OK
        return ExitCode.NO if any(layer.ok is False for layer in self.layers) else ExitCode.FAILED

    def layer(self, name: str) -> Layer | None:
        """The layer of that name, or None if it was not part of this verification."""
        return next((layer for layer in self.layers if layer.name == name), None)
