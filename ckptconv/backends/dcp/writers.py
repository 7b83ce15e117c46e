"""Who saved a distributed checkpoint, by names that only one trainer gives, and the step that its own files state."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ckptconv.backends import composer
from ckptconv.backends.dcp.homes import by_accelerate
from ckptconv.backends.runs import step_of
from ckptconv.errors import CkptconvError
from ckptconv.formats.json import read_table
from ckptconv.formats.torch_zip import open_torch_zip
from ckptconv.tensors.look import is_file

Keys = tuple[str | int, ...]
_XTUNER = re.compile(r"^(?:ckpt|snapshot)-step-\d+$")  # xtuner/v1/train/trainer.py, _get_checkpoint_path
_AREAL = re.compile(r"^(?:epoch\d+epochstep\d+globalstep\d+|recover_checkpoint)$")  # areal/utils/saver.py
_TITAN = re.compile(r"^step-\d+$")  # torchtitan/components/checkpoint.py


def writer_of(home: Path, paths: Iterable[Keys]) -> str | None:
    """Return the trainer's name, or None where nothing proves it.

    Args:
        home: the folder with `.metadata`.
        paths: the keys that lead to each entry.
    """
    firsts = {path[:2] for path in paths}
    if composer.is_here(firsts):
        return "Composer"
    if by_accelerate(home):
        return "accelerate"
    if home.name == "weights" and _XTUNER.match(home.parent.name):
        return "XTuner"
    if ("dcp", "model") in firsts and _AREAL.match(home.name):
        return "AReaL"
    if ("app", "model") in firsts and home.name == "trainer":  # prime_rl/trainer/ckpt.py
        return "prime-rl"
    return "torchtitan" if _TITAN.match(home.name) and _keys_of_titan(firsts) else None


def check_step(home: Path, step: int | None) -> None:
    """Compare the step of the folder's name with the one that the trainer's own files state.

    Raises:
        CkptconvError: they are two steps.
    """
    for where, key, found in _stated(home):
        if step is not None and type(found) is int and found != step:
            raise CkptconvError(
                "the trainer's state is of another step than its folder's name says",
                where=where,
                found=f"{key} {found}",
                wanted=str(step),
                hint=f"copy the step's files again, or rename the folder to that of step {found} if it was renamed",
            )


def _stated(home: Path) -> Iterable[tuple[Path, str, object]]:
    """Yield (file, what it states, the step)."""
    path = home.parent / "train" / "rank0.pt"  # olmo_core/train/checkpoint.py, Checkpointer.save
    if home.name == "model_and_optim" and is_file(path):
        root = open_torch_zip(str(path)).root
        yield path, "global_step", root.get("global_step") if isinstance(root, dict) else None
    path = home.parent / "train_state.json"  # xtuner/v1/train/trainer.py, _save_checkpoint
    if home.name == "weights" and _XTUNER.match(home.parent.name):
        yield path, "cur_step", read_table(path).get("cur_step")
    own = step_of(home) if _TITAN.match(home.name) else None
    if own is not None:  # verl's engine: global_step_N/step-N/
        yield home, "step", own.number


def _keys_of_titan(firsts: set[Keys]) -> bool:
    """Return True for the states that torchtitan's manager saves beside the model (torchtitan/components/checkpoint.py)."""
    return {"train_state", "lr_scheduler"} <= {str(path[0]).split(".")[0] for path in firsts}
