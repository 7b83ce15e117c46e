"""The list of backends, one line per layout. `--backend NAME` selects the layouts of the package NAME."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from ckptconv.backends.conventions import StepName, Trainer, fits, step_name

# (package, module), in the order in which a folder is offered to them: a trainer's shards come before the Hugging Face
# files next to them.
LAYOUTS = (
    ("fsdp", "read"),
    ("megatron", "fsdp"),
    ("megatron", "torch_dist"),
    ("megatron", "rank_files"),
    ("dcp", "read"),
    ("deepspeed", "read"),
    ("nanotron", "read"),
    ("dcp", "hf_shards"),
    ("huggingface", "read"),
)
_LONGEST = 255  # characters of a file name; the text of a mark may be longer
# The names that `--backend` takes.
NAMES = tuple(dict.fromkeys(package for package, _ in LAYOUTS))


@cache
def trainers() -> tuple[Trainer, ...]:
    """The conventions of every trainer, as each backend's package declares them in `TRAINERS`."""
    return tuple(trainer for name in NAMES for trainer in import_module(f"ckptconv.backends.{name}").TRAINERS)


def step_named(name: str) -> StepName | None:
    """The step that a folder's name states by some trainer's convention, or None."""
    return step_name(name, trainers()) if len(name) <= _LONGEST else None


def is_trainers(name: str) -> bool:
    """True for a file or folder that a trainer leaves next to a model and that is not part of the model."""
    step = step_named(name)
    if step is not None and not step.needs_mark:
        return True
    return any(
        name in (*trainer.marks, *trainer.below) or fits(name, trainer.not_assets) for trainer in trainers()
    )


def trainer_named(text: str) -> str | None:
    """The first trainer whose name is in a text, such as a checkpoint's `layout`; None if there is none."""
    return next((trainer.name for trainer in trainers() if trainer.name in text), None)
