"""Describes what a checkpoint holds and which rank stores what, from metadata only; see `run.inspect`."""

from ckptconv.commands.inspect.parts import part_of
from ckptconv.commands.inspect.records import (
    Evidence,
    Inspection,
    Match,
    Next,
    Node,
    Part,
    RankMap,
    Row,
    Slice,
)
from ckptconv.commands.inspect.run import describe, inspect

__all__ = [
    "Evidence",
    "Inspection",
    "Match",
    "Next",
    "Node",
    "Part",
    "RankMap",
    "Row",
    "Slice",
    "describe",
    "inspect",
    "part_of",
]
