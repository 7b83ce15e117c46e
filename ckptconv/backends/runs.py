"""Runs, steps and roles: what the folders of a training run are.

RUN/MARK names the latest step. RUN/STEP/ is the folder of one step, and RUN/STEP/ROLE/ of one of its models. The steps may
also be in RUN/BELOW/. Each backend's package declares the names that trainers use (`conventions.Trainer`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ckptconv.backends import registry
from ckptconv.backends.conventions import Rank, StepName
from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.json import settings_text
from ckptconv.formats.torch_zip import open_torch_zip
from ckptconv.tensors.look import is_dir, is_file, link_to, matching, names_in, size_of
from ckptconv.tensors.source_spec import Step

_NUMBER = re.compile(r"^[0-9]{1,18}$")
_NAME = re.compile(r"^(?!\.)[\w.=+-]{1,200}$")  # a folder's name in a mark
_SHOWN = 8  # names in a message
_LONGEST_MARK = 4096  # bytes


class Place(NamedTuple):
    """A folder that a backend can read.

    Args:
        folder: the folder.
        step: its step; None if no name gives it.
        role: its role; None if no name gives it.
        others: the role folders next to it that are not read.
        steps: the steps of the run, if the folder is the run's final model.
        remarks: further notes for the user.
        elements: False if no elements will be read, so that a backend may leave the places of some unknown.
    """

    folder: Path
    step: int | None
    role: str | None
    others: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()
    elements: bool = True

    def notes(self) -> list[str]:
        """Notes for the user: which roles and steps are not read, and the remarks."""
        notes = []
        if self.others:
            notes.append(
                f"not read: {', '.join(self.others)} in the same folder (pass its folder to convert it)"
            )
        if self.steps:
            last = f"{self.steps[0]} to {self.steps[-1]}" if len(self.steps) > 1 else f"{self.steps[0]}"
            notes.append(
                f"the run's final model is read; it also saved {len(self.steps)} intermediate ones "
                f"(step {last}: --step N converts one)"
            )
        return [*notes, *self.remarks]


class StepFolder(NamedTuple):
    """One step of a run.

    Args:
        path: its folder.
        name: what the folder's name says.
        number: the step, by the name or by a file in the folder; None if neither has it.
    """

    path: Path
    name: StepName
    number: int | None


def step_of(path: Path) -> StepName | None:
    """The step that a folder's name states, or None. A bare number needs a mark in the run, or a proof inside."""
    name = registry.step_named(path.name)
    if name is None or not name.needs_mark or any(is_file(path.parent / mark) for mark in _marks()):
        return name
    inside = {file for trainer in registry.trainers() for file in trainer.inside}
    return name if any(is_file(path / file) for file in inside) else None


def with_config(*folders: Path) -> Path | None:
    """The first folder with a config.json; None if there is none."""
    return next((folder for folder in folders if is_file(folder / "config.json")), None)


def is_output(folder: Path) -> bool:
    """True if a merge wrote the folder, or is writing it. Such a folder is never part of the checkpoint that contains it."""
    return folder.name.endswith(".ckptconv-partial") or is_file(folder / "ckptconv.json")


def is_step(path: Path) -> bool:
    """True for a step's folder, by its name."""
    return step_of(path) is not None


def step_folders(run: Path) -> list[StepFolder]:
    """The step folders of a run, ordered by step, epoch, version and name; the latest one is the last."""
    found = [
        StepFolder(path, name, _counted(path) if name.number is None else name.number)
        for path in map(run.joinpath, filter(registry.step_named, names_in(run) if is_dir(run) else ()))
        if (is_dir(path) or _is_file_of_a_step(path)) and (name := step_of(path)) is not None
    ]
    found += _named_by_marks(run, {step.path.name for step in found})
    return sorted(found, key=lambda step: (step.name.is_newest, step.name.order, step.path.name))


def _named_by_marks(run: Path, known: Collection[str]) -> list[StepFolder]:
    """The folders that a run's marks name and that no trainer's pattern fits.

    DeepSpeed's tags are any text, and Megatron calls the folder of a converted model "release".
    """
    names = {_text_of(run / mark) for mark in _marks()}
    return [
        StepFolder(run / name, StepName(None, (-1, -1, -1)), _counted(run / name))
        for name in sorted(names - {*known})
        if _NAME.match(name) and is_dir(run / name)
    ]


def _text_of(mark: Path) -> str:
    """What a mark holds: a step's number or the name of its folder; of a path, its last part.

    A copy of a run may hold the step itself in place of a link to it; a file of that size is not read.
    """
    linked = _linked_step(mark)
    if linked is not None:
        return linked
    if not is_file(mark) or size_of(mark) > _LONGEST_MARK:
        return ""
    return settings_text(mark).strip().rstrip("/").rpartition("/")[2]


def _linked_step(mark: Path) -> str | None:
    """The name of the step's folder, or of its one file, to which a mark links, also where that is gone; else None."""
    target = link_to(mark)
    if target is not None and (is_dir(mark) or registry.is_one_file(target.name)):
        return target.name
    return None


def _is_file_of_a_step(path: Path) -> bool:
    """True for a whole checkpoint in one file of torch.save, as Lightning and Composer write it without sharding."""
    return registry.is_one_file(path.name) and is_file(path)


def steps_of(run: Path) -> dict[int, Path]:
    """Step -> its folder, for the steps with a number. If a step has several folders, it is the latest of them."""
    found = ((step.name.number, step.path) for step in step_folders(run))
    return {number: path for number, path in found if number is not None}


def run_of(path: Path) -> Path:
    """The folder that holds the steps of a run: `path`, or a folder in it where a trainer puts them.

    Raises:
        CkptconvError: two folders in it hold steps.
    """
    if step_folders(path):
        return path
    names = dict.fromkeys(name for trainer in registry.trainers() for name in trainer.below)
    found = dict.fromkeys(folder for name in names for folder in matching(path, name))
    below = [folder for folder in found if is_dir(folder) and step_folders(folder)]
    if len(below) > 1:
        raise several("folders of steps", below, path)
    return below[0] if below else path


def choose(run: Path, wanted: Step | None) -> tuple[StepFolder, tuple[str, ...]]:
    """Choose the step to read.

    Args:
        run: the folder that holds the steps.
        wanted: the user's step. None and "latest" mean the step that the run's mark names, else the last one in order.

    Returns:
        The step, and notes for the user.

    Raises:
        CkptconvError: there is no such step, or several folders are equally likely to be it.
    """
    steps = step_folders(run)
    if isinstance(wanted, int):
        named = [step for step in steps if step.name.number == wanted]
        same = named or [step for step in steps if step.number == wanted]
        if not same:
            listed = ", ".join(map(str, dict.fromkeys(s.number for s in steps if s.number is not None)))
            raise CkptconvError(
                f"no step {wanted} in this run", where=run, found=f"steps {listed}", kind=Kind.USAGE
            )
        return _last(same, run)
    marked = _marked(run, steps)
    if marked is None:
        chosen, remarks = _last(steps, run)
    elif marked.number is None:
        chosen, remarks = marked, ()
    else:
        chosen, remarks = _last([step for step in steps if step.number == marked.number], run)
    later = [n for n in steps_of(run) if chosen.number is not None and n > chosen.number]
    if later:
        listed = ", ".join(map(str, later[:_SHOWN]))
        remarks = (*remarks, f"the run calls step {chosen.number} its latest, and also holds step {listed}")
    return chosen, remarks


def mark_of(run: Path) -> Path | None:
    """The file that names the run's latest step, or None. A link to a step does not count."""
    marks = (run / name for name in _marks())
    return next((mark for mark in marks if is_file(mark) and _linked_step(mark) is None), None)


def marked_number(run: Path) -> int | None:
    """The step that a run's marks name as the latest, even if its folder is not here; None if no mark has a number."""
    numbers = (_number_in(_text_of(run / name)) for name in _marks())
    return max((number for number in numbers if number is not None), default=None)


def rank_of(role: str) -> Rank:
    """How likely a role's folder holds the trained model."""
    ranks = (trainer.roles[role] for trainer in registry.trainers() if role in trainer.roles)
    return next(ranks, Rank.OTHER)


def is_role(name: str) -> bool:
    """True for a name that some trainer gives to a role's folder."""
    return any(name in trainer.roles for trainer in registry.trainers())


def _counted(step: Path) -> int | None:
    """The step by a trainer's own counter in the folder (`Trainer.counters`) or in a step's one file, or None."""
    for trainer in registry.trainers():
        for file, key in trainer.counters:
            path = step / file if is_dir(step) else step
            try:
                root = open_torch_zip(str(path)).root if is_file(path) else None
            except CkptconvError:  # the number only orders and labels the steps
                continue
            if isinstance(root, dict) and type(root.get(key)) is int:
                return int(root[key])
    return None


def _marks() -> tuple[str, ...]:
    """The names of all trainers' marks."""
    return tuple(dict.fromkeys(mark for trainer in registry.trainers() for mark in trainer.marks))


def _marked(run: Path, steps: Sequence[StepFolder]) -> StepFolder | None:
    """The step that the run's marks name; None if they name none.

    Raises:
        CkptconvError: the run has no folder for that step, or two marks disagree.
    """
    named: dict[Path, StepFolder] = {}
    for mark in (run / name for name in _marks()):
        text = _text_of(mark)
        number = _number_in(text)
        by_name = [folder for folder in steps if folder.path.name == text]
        by_number = [folder for folder in steps if number is not None and folder.number == number]
        if by_name or by_number:
            named[mark] = (by_name or by_number)[-1]
        elif number is not None:
            listed = ", ".join(map(str, sorted(steps_of(run))))
            raise CkptconvError(
                f"the run calls step {number} its latest, but has no folder for it",
                where=mark,
                found=f"steps {listed}",
                hint=f"choose one: --step {max(steps_of(run), default=0)}",
                kind=Kind.INCOMPLETE,
            )
        elif steps and _NAME.match(text):
            raise CkptconvError(
                f"the run calls {text!r} its latest step, but has no folder of that name",
                where=mark,
                found=", ".join(step.path.name for step in steps[-_SHOWN:]),
                hint=f"name the step's folder, for example {steps[-1].path}",
                kind=Kind.INCOMPLETE,
            )
    if len({step.path if step.number is None else step.number for step in named.values()}) > 1:
        raise CkptconvError(
            "the run's marks disagree on its latest step",
            where=run,
            found=", ".join(f"{mark.name}: {step.path.name}" for mark, step in named.items()),
            hint="choose one: --step N",
        )
    return next(iter(named.values()), None)


def _number_in(mark: str) -> int | None:
    """The step in a mark's text, which is a number or the name of a step's folder; None if it is neither."""
    if _NUMBER.match(mark):
        return int(mark)
    step = registry.step_named(mark)
    return step.number if step else None


def _last(steps: Sequence[StepFolder], run: Path) -> tuple[StepFolder, tuple[str, ...]]:
    """The last of some steps, with notes for the user.

    Raises:
        CkptconvError: another folder has the same numbers in its name.
    """
    *others, last = steps
    key = (last.name.is_newest, last.name.order)
    equal = [step.path for step in others if (step.name.is_newest, step.name.order) == key]
    if equal:
        raise several(f"folders of step {last.number}", [*equal, last.path], run)
    same = [step.path.name for step in others if step.number is not None and step.number == last.number]
    remarks = (f"step {last.number} is taken from {last.path.name}; also there: {', '.join(same)}",)
    return last, remarks if same else ()


def several(what: str, folders: Iterable[Path], parent: Path) -> CkptconvError:
    """The error for a choice that only a person can make.

    Args:
        what: what the folders are, in the plural.
        folders: the folders to choose from.
        parent: the folder that was searched.
    """
    paths = sorted(folders)
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return CkptconvError(
        f"there are several {what} here, and none is more likely than the others",
        where=parent,
        found=", ".join(str(path.relative_to(parent)) for path in paths[:_SHOWN]) + more,
        hint=f"name the one that you want, for example {paths[0]}",
        kind=Kind.USAGE,
    )
