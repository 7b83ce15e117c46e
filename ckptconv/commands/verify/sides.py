"""What is compared: a model folder as it is, or a trainer's checkpoint as the plan would write it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptconv import assets
from ckptconv.backends import huggingface, open_checkpoint
from ckptconv.checkpoint import Checkpoint
from ckptconv.models import facts
from ckptconv.plan import Options, Output
from ckptconv.view import View


@dataclass(frozen=True, slots=True)
class Side:
    """Tensors under the Hub's names, unread.

    planned: they come out of a trainer's checkpoint, no folder holds them so. as_stored: its plan casts nothing,
    so the dtypes are the trainer's and not a model folder's. notes, dtype_said: the plan's.
    """

    path: Path
    checkpoint: Checkpoint
    tensors: dict[str, Output]
    config: dict[str, Any] | None
    planned: bool = False
    as_stored: bool = False
    is_adapter: bool = False
    notes: tuple[str, ...] = ()
    dtype_said: str = ""

    @property
    def rank_of(self) -> dict[str, int]:
        """file -> rank; empty for a model folder, whose files no rank wrote."""
        return self.checkpoint.rank_of if self.planned else {}

    def ties(self, names: Iterable[str]) -> dict[str, str]:
        """Tied name -> the name that it repeats, among these and its own; empty where the config ties none."""
        if self.config is None or not facts.says_tied(self.config):
            return {}
        return dict(facts.tied_pairs(self.config, dict.fromkeys([*self.tensors, *names])))


def is_model_folder(path: Path) -> bool:
    """True for a folder of safetensors files itself, not for a run that holds one."""
    return path.is_dir() and huggingface.is_mine(path)


def open_side(
    path: str | Path,
    *,
    backend: str | None = None,
    step: int | None = None,
    also: Sequence[str | Path] = (),
    config: str | Path | None = None,
    dtype: str = "auto",
) -> Side:
    """Open a side from metadata. dtype: of a trainer's checkpoint; "auto" leaves it as stored.

    Raises CkptconvError for whatever would keep `merge` from planning it.
    """
    checkpoint = open_checkpoint(path, backend=backend, step=step, also=also)
    folder = Path(config) if config is not None else checkpoint.assets
    if checkpoint.backend == huggingface.NAME and (folder is None or _is_safetensors(checkpoint)):
        found = assets.read_config(folder) if folder is not None else None
        tensors = {name: _as_it_is(name, tensor.view) for name, tensor in checkpoint.tensors.items()}
        return Side(Path(path), checkpoint, tensors, found)
    from ckptconv.commands.merge import plan_for

    as_stored = dtype in ("auto", "keep")
    plan = plan_for(checkpoint, Options(dtype="keep" if as_stored else dtype), config)
    return Side(
        Path(path),
        checkpoint,
        plan.outputs,
        plan.config,
        planned=True,
        as_stored=as_stored,
        is_adapter=plan.is_adapter,
        notes=plan.notes,
        dtype_said=plan.dtype_said,
    )


def _is_safetensors(checkpoint: Checkpoint) -> bool:
    """False for torch.save files: they are compared as `merge` would write them, and have CRCs to check."""
    return all(file.path.endswith(".safetensors") for file in checkpoint.files)


def _as_it_is(name: str, view: View) -> Output:
    return Output(name, view.shape, view.dtype, view, (name,))
