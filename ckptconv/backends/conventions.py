"""The names that trainers use, one record per trainer. Each backend's package declares those of its trainers (`TRAINERS`).

All code that interprets names in a run reads these records: the search for steps and roles (`runs`), the list of files that
do not belong to a model (`publish.assets`), `merge --all-steps`, and the model card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import IntEnum
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

_HOLE = re.compile(r"\{(\w+)\}|\*")


class Rank(IntEnum):
    """How likely a role is the trained model of its step; lower is more likely. A folder without a known name is OTHER."""

    TRAINED = 0
    OTHER = 1
    VALUE = 2
    REFERENCE = 3


class Trainer(NamedTuple):
    """The names that one trainer uses. All are names of files and folders, without a path.

    Args:
        name: the trainer's name, as its checkpoints' `layout` and a model card spell it.
        steps: names of step folders. `{step}` is the number of the step, `{epoch}` and `{version}` are further numbers
            that order folders of the same step, and `*` is any text: "epoch={epoch}-step={step}*".
        newest: names of step folders that hold the latest step, with or without `{step}`: "last.ckpt".
        marks: files in a run's folder that hold the latest step: its number, or its folder's name.
        inside: files in a step's folder that prove that its bare number is a step, where a run has no mark.
        below: folders of a run that hold its steps: paths relative to it, in which `*` is any text of one name.
        roles: names of role folders inside a step, and which of them is the trained model.
        not_assets: files and folders that lie next to a model and are not part of it, as shell patterns (`fnmatch`).
        one_file: steps that are one file of torch.save instead of a folder, as shell patterns.
        counters: (file of torch.save, key) in a step folder that hold its step, for names without a number.
        saving: files that are there only while a step is written, as shell patterns; `{folder}` is the step's name.
    """

    name: str
    steps: tuple[str, ...] = ()
    newest: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    below: tuple[str, ...] = ()
    roles: Mapping[str, Rank] = MappingProxyType({})
    not_assets: tuple[str, ...] = ()
    one_file: tuple[str, ...] = ()
    counters: tuple[tuple[str, str], ...] = ()
    saving: tuple[str, ...] = ()


class StepName(NamedTuple):
    """What a step folder's name says.

    Args:
        number: the step; None for a name without one, such as "last.ckpt".
        order: (step, epoch, version), which order the folders of a run; -1 for each that the name lacks.
        is_newest: the name always means the latest step.
        needs_mark: the name is a bare number, which is a step only in a run that has a mark of its latest step, or with a
            file in it that proves it.
    """

    number: int | None
    order: tuple[int, ...]
    is_newest: bool = False
    needs_mark: bool = False


def step_name(name: str, trainers: tuple[Trainer, ...]) -> StepName | None:
    """Parse the name of a step's folder by the trainers' patterns; None if none matches.

    The patterns for the latest step (`Trainer.newest`) of all trainers are tried before the others.
    """
    for is_newest in (True, False):
        for trainer in trainers:
            for pattern in trainer.newest if is_newest else trainer.steps:
                match = _compiled(pattern).match(name)
                if match is not None:
                    numbers = {hole: int(text) for hole, text in match.groupdict().items()}
                    order = tuple(numbers.get(hole, -1) for hole in ("step", "epoch", "version"))
                    return StepName(numbers.get("step"), order, is_newest, pattern == "{step}")
    return None


def without_holes(pattern: str) -> str:
    """The pattern of a step's name as a regular expression without groups."""
    return re.sub(r"\?P<\w+>", "?:", _expression(pattern))


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(_expression(pattern), re.DOTALL)


def _expression(pattern: str) -> str:
    """A pattern with holes as a regular expression. A hole is a number of up to 18 digits, and `*` is any text."""
    parts, end = [], 0
    for hole in _HOLE.finditer(pattern):
        parts.append(re.escape(pattern[end : hole.start()]))
        parts.append(rf"(?P<{hole[1]}>[0-9]{{1,18}})(?![0-9])" if hole[1] else ".*")
        end = hole.end()
    return "^" + "".join(parts) + re.escape(pattern[end:]) + r"\Z"
