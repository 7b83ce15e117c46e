"""The list of backends, one line per layout. `--backend NAME` selects the layouts of the package NAME."""

from __future__ import annotations

import re
from fnmatch import translate
from functools import cache
from importlib import import_module

from ckptconv.backends.conventions import StepName, Trainer, step_name, without_holes

# (package, module), in the order in which a folder is offered to them: a trainer's shards come before the Hugging Face
# files next to them.
LAYOUTS = (
    ("fsdp", "layout"),
    ("megatron", "fsdp"),
    ("megatron", "torch_dist"),
    ("megatron", "rank_files"),
    ("dcp", "layout"),
    ("deepspeed", "layout"),
    ("nanotron", "layout"),
    ("orbax", "layout"),
    ("dcp", "hf_shards"),
    ("huggingface", "layout"),
)
_LONGEST = 255  # characters of a file name; the text of a mark may be longer
# The names that `--backend` takes.
NAMES = tuple(dict.fromkeys(package for package, _ in LAYOUTS))


@cache
def trainers() -> tuple[Trainer, ...]:
    """The conventions of every trainer, as each backend's package declares them in `TRAINERS`."""
    return tuple(trainer for name in NAMES for trainer in import_module(f"ckptconv.backends.{name}").TRAINERS)


@cache
def _steps_pattern() -> re.Pattern[str]:
    """What fits any step of any trainer. It is tried before their patterns: a folder may hold 100,000 other names."""
    patterns = {pattern for trainer in trainers() for pattern in (*trainer.newest, *trainer.steps)}
    return re.compile("|".join(f"(?:{without_holes(pattern)})" for pattern in sorted(patterns)), re.DOTALL)


@cache
def _other_names() -> frozenset[str]:
    names = ((*trainer.marks, *trainer.below, *trainer.not_assets) for trainer in trainers())
    return frozenset(name for each in names for name in each if not _is_glob(name))


def _is_glob(name: str) -> bool:
    return any(mark in name for mark in "*?[")


@cache
def _others_pattern() -> re.Pattern[str]:
    """What fits a file or folder that some trainer leaves next to a model."""
    globs = dict.fromkeys(glob for trainer in trainers() for glob in trainer.not_assets if _is_glob(glob))
    return re.compile("|".join(map(translate, globs)) or "(?!)")


@cache
def _one_file_pattern() -> re.Pattern[str]:
    globs = dict.fromkeys(glob for trainer in trainers() for glob in trainer.one_file)
    return re.compile("|".join(map(translate, globs)) or "(?!)")


def is_one_file(name: str) -> bool:
    """True for a file that is a whole step by some trainer's convention, such as Lightning's "epoch=1-step=9.ckpt"."""
    return _one_file_pattern().match(name) is not None


def step_named(name: str) -> StepName | None:
    """The step that a folder's name states by some trainer's convention, or None."""
    if len(name) > _LONGEST or _steps_pattern().match(name) is None:
        return None
    return step_name(name, trainers())


def is_trainers(name: str) -> bool:
    """True for a file or folder that a trainer leaves next to a model and that is not part of the model."""
    step = step_named(name)
    if step is not None and not step.needs_mark:
        return True
    return name in _other_names() or _others_pattern().match(name) is not None


def trainer_named(text: str) -> str | None:
    """The first trainer whose name is in a text, such as a checkpoint's `layout`; None if there is none."""
    return next((trainer.name for trainer in trainers() if trainer.name in text), None)
