"""From the folder that a user names to the folder that holds rank files: run, step, role.

verl: RUN/latest_checkpointed_iteration.txt, RUN/global_step_N/{actor,critic}/ (verl/utils/checkpoint/checkpoint_manager.py).
Megatron-LM: RUN/iter_0000010/. torchtitan: RUN/step-N/. The HF Trainer: RUN/checkpoint-N/.
accelerate: RUN/checkpoints/checkpoint_N/. DeepSpeed: RUN/latest, RUN/global_stepN/.
NeMo-Automodel: RUN/epoch_E_step_N/. NeMo-RL: RUN/step_N/ROLE/. torchtitan's own folder: RUN/checkpoint/step-N/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ckptconv.errors import CkptconvError
from ckptconv.formats.json import settings_text

_STEP = re.compile(
    r"^(?:global_step_|global_step|iter_|step-|(?:epoch_\d+_)?step_|checkpoint-|checkpoint_)(\d+)$"
)
_NUMBER = re.compile(r"^[0-9]{1,18}$")
_ROLES = ("actor", "critic")  # looked at in this order, then every other subfolder by name
_TRAINED = ("trained", "train", "default", "policy", "actor")  # names of an adapter that training changes
_REFERENCE = ("reference", "ref", "reference_adapter", "ref_adapter")
_BELOW = ("checkpoint", "checkpoints")  # where torchtitan and accelerate keep the steps of a run
# What a run says of its latest step: verl and Megatron its number, DeepSpeed its folder's name.
_LATEST = ("latest_checkpointed_iteration.txt", "latest")


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that a backend can read. others: role folders beside it that were not taken; steps: those under it."""

    folder: Path
    step: int | None
    role: str | None
    others: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()

    def notes(self) -> list[str]:
        """What a user should hear of it: which roles and steps lie beside what is read."""
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
        return notes


def with_config(*folders: Path) -> Path | None:
    """The first folder that has a config.json; None where none has."""
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def is_step(path: Path) -> bool:
    """True for a folder that is named like a step of a run."""
    return _STEP.match(path.name) is not None


def steps_of(run: Path) -> dict[int, Path]:
    """The step folders of a run, by step."""
    found = ((_STEP.match(path.name), path) for path in sorted(run.iterdir()) if path.is_dir())
    return {int(match.group(1)): path for match, path in found if match}


def locate(path: Path, is_mine: Callable[[Path], bool], step: int | None = None) -> Place | None:
    """The folder under path (run, step or role) that a backend recognises, or None.

    A model in the run's own folder, as trainers leave it at the end, comes before its steps.
    Raises CkptconvError when the step that was asked for, or that the run calls its latest, is not there.
    """
    own = _STEP.match(path.name) or _STEP.match(path.parent.name)
    here = int(own.group(1)) if own else None
    steps = steps_of(path)
    if not steps and not is_mine(path):
        below_it = (path / name for name in _BELOW if (path / name).is_dir())
        path = next((folder for folder in below_it if steps_of(folder)), path)
        steps = steps_of(path)
    if is_mine(path) and (step in (None, here) or not steps):
        if step not in (None, here):
            raise CkptconvError(f"step {step} is not in this folder", where=path, hint="remove --step")
        below = tuple(sorted(n for n, folder in steps.items() if is_mine(folder)))
        return Place(path, here, path.name if path.name in _ROLES else None, steps=below)
    if steps:
        here = _choose(path, steps, step)
        path = steps[here]
        if is_mine(path):
            return Place(path, here, None)
    elif step is not None and step != here:
        raise CkptconvError(f"step {step} is not in this folder", where=path, hint="name the run's folder")
    matches = [child for child in _children(path) if is_mine(child)]
    if not matches:
        return None
    first, *others = _ranked(matches)
    return Place(first, here, first.name, tuple(other.name for other in others))


def latest_step(path: Path) -> int:
    """The step that a run calls its latest, else the highest. Raises CkptconvError for a folder without steps."""
    below_it = (path / name for name in _BELOW if (path / name).is_dir())
    run = next((folder for folder in (path, *below_it) if steps_of(folder)), None)
    if run is None:
        raise CkptconvError(
            "no steps in this folder", where=path, hint="omit --step, or name the run's folder"
        )
    return _choose(run, steps_of(run), None)


def _choose(run: Path, steps: dict[int, Path], wanted: int | None) -> int:
    """The step asked for, or the run's own latest, or the highest number."""
    listed = ", ".join(map(str, sorted(steps)))
    if wanted is not None:
        if wanted not in steps:
            raise CkptconvError(f"no step {wanted} in this run", where=run, found=f"steps {listed}")
        return wanted
    for latest in (run / name for name in _LATEST):
        text = settings_text(latest).strip()
        match = _STEP.match(text)
        number = match.group(1) if match else text
        if _NUMBER.match(number):
            if int(number) not in steps:
                raise CkptconvError(
                    f"the run calls step {number} its latest, but has no folder for it",
                    where=latest,
                    found=f"steps {listed}",
                    hint=f"choose one: --step {max(steps)}",
                )
            return int(number)
    return max(steps)


def _ranked(matches: list[Path]) -> list[Path]:
    """The folders of several adapters, the trained one first; other folders as they are.

    TRL saves the adapters of DPO under their names, "trained" or "train" and "reference", PEFT's own is "default".

    Raises:
        CkptconvError: for adapters whose names do not say which one was trained.
    """
    adapters = [path for path in matches if (path / "adapter_config.json").is_file()]
    if len(adapters) < 2 or len(adapters) < len(matches):
        return matches
    trained = [path for path in adapters if path.name in _TRAINED]
    rest = [path for path in adapters if path.name not in (*_TRAINED, *_REFERENCE)]
    likely = trained or rest
    if len(likely) != 1:
        raise CkptconvError(
            "several adapters are in this folder",
            where=adapters[0].parent,
            found=", ".join(path.name for path in adapters),
            hint="name the adapter's folder",
        )
    return [likely[0], *(path for path in matches if path != likely[0])]


def _children(path: Path) -> Iterator[Path]:
    for role in _ROLES:
        if (path / role).is_dir():
            yield path / role
    for child in sorted(path.iterdir()):
        if child.is_dir() and child.name not in _ROLES:
            yield child
