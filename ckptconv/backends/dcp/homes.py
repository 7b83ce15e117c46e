"""Find the folders in which trainers save a distributed checkpoint of a model, its config and its tokenizer.

accelerate: STEP/pytorch_model_fsdp_N/ beside STEP/optimizer_N/ (accelerate/utils/fsdp_utils.py, save_fsdp_model);
NeMo-Automodel: STEP/model/ beside STEP/optim/ (components/checkpoint/checkpointing.py, save_model);
OLMo-core: stepN/model_and_optim/ beside stepN/config.json (train/checkpoint.py, Checkpointer.save);
XTuner: ckpt-step-N/weights/, with its exports beside checkpoints/ (xtuner/v1/train/trainer.py, hf-latest is a link);
NeMo-RL: STEP/policy/weights/ (utils/native_checkpoint.py) or STEP/policy/weights/model/ (models/automodel/checkpoint.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ckptconv.errors import Incomplete
from ckptconv.formats.json import read_table
from ckptconv.tensors.checkpoint import Skipped, TrainerSettings
from ckptconv.tensors.look import bytes_below, exists, is_dir, is_file, matching, paths_in

_ACCELERATE = "pytorch_model_fsdp_"
_HOMES = ("", f"{_ACCELERATE}0", "model", "weights", "weights/model", "model_and_optim")
_MEGATRON = (
    "dist_ckpt",
    "model/dist_ckpt",
)  # verl's, which are read here only to report a save that did not finish
_OPTIMIZER = re.compile(r"^optim(?:izer)?s?(?:_\d+)?$")
_ASSETS = ("", "huggingface", "hf", "tokenizer", ".hf_metadata", "hf_assets", "hf-latest")
_UNFINISHED = (
    ".incomplete"  # NeMo-Automodel's mark on a step while it is written (components/checkpoint/utils.py)
)
_CLASS = "_CLASS_"  # the key under which OLMo-core names a config's class (olmo_core/config.py)
_ABOVE = 4  # STEP/policy/weights/model is four levels below the run


def home_of(folder: Path, has: Callable[[Path], bool]) -> Path | None:
    """Return the first home for which `has` is true: the folder itself or one below it; None if there is none."""
    if _OPTIMIZER.match(folder.name) and _has_a_model(folder.parent):
        return None
    return next((folder / home for home in (*_HOMES, *_MEGATRON) if has(folder / home)), None)


def check_finished(home: Path, top: Path) -> None:
    """Check that the trainer finished the save.

    Raises:
        Incomplete: the trainer's own marker shows that it did not.
    """
    for folder in (home, *home.parents):
        if is_file(folder / _UNFINISHED):
            raise Incomplete(
                "incomplete save: the trainer has not removed its in-progress marker",
                where=folder,
                found=_UNFINISHED,
                hint="take an earlier step with --step",
            )
        if folder == top.parent:
            return


def assets_of(home: Path) -> Path | None:
    """Return the nearest folder with a config.json: in the checkpoint, next to it, or in the run's folder above it."""
    folders = [home, *list(home.absolute().parents)[:_ABOVE]]
    for folder in folders:
        for name in _ASSETS:
            if is_file(folder / name / "config.json") and not _experiment(folder / name / "config.json"):
                return folder / name
    return None


def experiment_of(home: Path) -> TrainerSettings | None:
    """Return OLMo-core's description of the experiment: STEP/config.json beside STEP/model_and_optim/."""
    path = home.parent / "config.json"
    return TrainerSettings(values, str(path)) if (values := _experiment(path)) else None


def _experiment(path: Path) -> dict[str, Any]:
    """Return the content of a config.json that OLMo-core wrote (olmo_core/train/callbacks/config_saver.py); else {}."""
    values = read_table(path)
    model = values.get("model")
    is_mine = isinstance(model, dict) and str(model.get(_CLASS, "")).startswith("olmo_core.")
    return values if is_mine else {}


def other_models(home: Path) -> Iterator[str]:
    """Yield the names of the models next to the chosen one; accelerate numbers the models that were prepared together."""
    if home.name.startswith(_ACCELERATE):
        yield from sorted(
            path.name for path in matching(home.parent, f"{_ACCELERATE}*") if is_dir(path) and path != home
        )


def optimizers_beside(home: Path) -> Iterator[Skipped]:
    """Yield the optimizers' folders next to a model's folder, with their sizes. Their files are not read."""
    for folder in optimizer_folders(home):
        nbytes = bytes_below(folder)
        yield Skipped(f"{folder.name}/", nbytes, "optimizer")


def optimizer_folders(home: Path) -> list[Path]:
    """Return the optimizers' folders next to a model's folder."""
    if home.name not in (Path(name).name for name in _HOMES):
        return []
    return [path for path in paths_in(home.parent) if is_dir(path) and _OPTIMIZER.match(path.name)]


def by_accelerate(home: Path) -> bool:
    """Return True for a folder that accelerate saved with SHARDED_STATE_DICT."""
    return home.name.startswith(_ACCELERATE)


def _has_a_model(folder: Path) -> bool:
    """Return True if the folder holds a model in any form; an optimizer's folder next to it is then not searched."""
    return any(exists(folder / home) for home in _HOMES[1:]) or any(matching(folder, "*model*"))
