"""What a verification found, as plain data. Nothing here reads or shows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ckptconv.display import Displayed
from ckptconv.errors import ExitCode
from ckptconv.tensors.boxes import Slice
from ckptconv.tensors.view import Shape

PROMPT = "The capital of France is"
LAYER = re.compile(r"(.*?\.\d+)\.(.+)")  # a tensor's layer, up to the first number, and the rest


def span(word: str, first: int, last: int) -> str:
    """("row", 3, 1200) -> "rows 3–1,200"; one of them is "row 3"."""
    return f"{word} {first:,}" if first == last else f"{word}s {first:,}–{last:,}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. name: the tensor or file. where: its rows, rank or file. hint: what to do."""

    name: str
    what: str
    where: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Layer:
    """One kind of check. ok None: it could not be made, and `found` says why.

    proves: what a yes means. found: what was looked at, in a line. notes: worth saying, but not wrong.
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

    dtype: what both were compared in. count: elements that differ, `nonfinite` of them NaN or Inf on a side;
    the numbers are over the finite ones. max_abs, mean_abs: of |target - reference|, the mean over all
    elements. max_rel: the largest |target - reference| / |reference|. at: where max_abs is. first_row,
    last_row, rows: along dim 0; rows has at most 32 even parts of it and says which differ. first_column,
    last_column, columns: the same along the last dim, of tensors with two dims or more. slices: of the ranks that
    store the elements that differ, where a side is a trainer's checkpoint or its receipt says how it was cut.
    looks_like: what the difference is, where it has a form: another tensor's values, rows in another order.
    equals: the tensor of the reference that has these very values.
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
        """The layer that it is in, and the layer of the reference in which these values stand under the same name."""
        here, there = LAYER.match(self.name), LAYER.match(self.equals)
        return (here[1], there[1]) if here and there and here[2] == there[2] else None

    @property
    def stored_rank(self) -> tuple[int, ...]:
        """The ranks that store elements that differ."""
        return tuple(part.rank for part in self.slices)


@dataclass(frozen=True, slots=True, repr=False)
class Verified(Displayed):
    """The layers in the order in which they were checked, and every tensor that differs.

    compared, equal: tensors whose values were read on both sides, and those without a difference.
    read: bytes read. seconds: the whole of it.
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

    @property
    def summary(self) -> str:
        """The answer in one line, with the layers that say no."""
        wrong = ", ".join(layer.name for layer in self.layers if layer.ok is False)
        values = f", {self.equal:,} of {self.compared:,} tensors equal" if self.compared else ""
        return f"{self.target}: {'ok' if self.ok else f'not ok ({wrong})'}{values}"

    @property
    def ok(self) -> bool:
        """True when a layer says yes and none says no. A layer that could not be checked says neither."""
        states = {layer.ok for layer in self.layers}
        return True in states and False not in states

    @property
    def code(self) -> ExitCode:
        """The exit code that a command makes of it: FAILED where nothing could be checked."""
        if self.ok:
            return ExitCode.OK
        return ExitCode.NO if any(layer.ok is False for layer in self.layers) else ExitCode.FAILED

    def layer(self, name: str) -> Layer | None:
        """The layer of that name, or None where it was not part of this verification."""
        return next((layer for layer in self.layers if layer.name == name), None)
