"""Opens the sides of a comparison: a model folder as it is, or a trainer's checkpoint as the plan would write it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckptconv.backends import open_checkpoint
from ckptconv.backends.huggingface import read as huggingface
from ckptconv.backends.huggingface.weight_files import ADAPTER_CONFIG
from ckptconv.commands.planning import plan_for
from ckptconv.errors import CkptconvError
from ckptconv.models import facts, lora
from ckptconv.plan import Dtype, Options, Output
from ckptconv.publish import assets
from ckptconv.publish.receipt import RECEIPT
from ckptconv.tensors.boxes import Slice
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.source_spec import SourceSpec
from ckptconv.tensors.view import View


@dataclass(frozen=True, slots=True)
class Beside:
    """What the user names besides a checkpoint: the model's config, the dtype policy, the base model."""

    config: Path | None = None
    dtype: Dtype = "auto"
    base: Path | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """Tensors under the Hub's names, unread.

    planned: they come out of a plan, no folder holds them so. as_stored: its plan casts nothing, so the dtypes are
    the trainer's and not a model folder's. notes, dtype_summary: the plan's. cuts: how a folder's receipt says that its
    tensors were cut over ranks. source, beside: what `merge` would need to write it. adapter: an adapter's config.
    """

    source: SourceSpec
    checkpoint: Checkpoint
    tensors: dict[str, Output]
    config: dict[str, Any] | None
    planned: bool = False
    as_stored: bool = False
    is_adapter: bool = False
    notes: tuple[str, ...] = ()
    dtype_summary: str = ""
    cuts: Mapping[str, tuple[Slice, ...]] = field(default_factory=dict)
    beside: Beside = field(default_factory=lambda: Beside())
    adapter: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """As the user named it."""
        return self.source.path

    @property
    def of_trainer(self) -> bool:
        """True for a checkpoint that ranks wrote."""
        return self.checkpoint.is_sharded

    @property
    def is_folder(self) -> bool:
        """True for a folder of safetensors files, whose headers, index and receipt can be checked."""
        return not self.of_trainer and _is_safetensors(self.checkpoint)

    @property
    def rank_of(self) -> dict[str, int]:
        """file -> rank; empty for a model folder, whose files no rank wrote."""
        return self.checkpoint.rank_of if self.of_trainer else {}

    def ties(self, names: Iterable[str]) -> dict[str, str]:
        """Tied name -> the name that it repeats, among these and its own; empty where the config ties none."""
        if self.config is None or not facts.says_tied(self.config):
            return {}
        return dict(facts.tied_pairs(self.config, dict.fromkeys([*self.tensors, *names])))


def is_model_folder(path: Path) -> bool:
    """True for a folder of safetensors files itself, not for a run that holds one."""
    return path.is_dir() and huggingface.is_mine(path)


def is_adapter_folder(path: Path) -> bool:
    """True for PEFT's own folder."""
    return is_model_folder(path) and (path / ADAPTER_CONFIG).is_file()


def open_side(
    source: SourceSpec,
    beside: Beside = Beside(),
    *,
    as_adapter: bool = False,
    other: Path | None = None,
) -> Side:
    """Open a side from metadata.

    Args:
        source: where it is, on this disk.
        beside: the config of its model; the dtype policy of a trainer's checkpoint, where "auto" keeps what is stored;
            the base model of a checkpoint that holds an adapter alone.
        as_adapter: take the adapter of a checkpoint, not the model that it is merged into.
        other: the model folder that it is compared with, whose config serves where the checkpoint has none.

    Raises:
        CkptconvError: for whatever would keep `merge` from planning it.
    """
    checkpoint = open_checkpoint(source)
    folder = beside.config if beside.config is not None else checkpoint.assets
    if not checkpoint.is_sharded and (folder is None or _is_safetensors(checkpoint)):
        found = assets.read_config(folder) if folder is not None else None
        tensors = {name: _as_it_is(name, tensor.view) for name, tensor in checkpoint.tensors.items()}
        adapter = checkpoint.lora.settings
        return Side(
            source,
            checkpoint,
            tensors,
            found,
            is_adapter=bool(adapter),
            cuts=_cuts_of(checkpoint.root),
            beside=Beside(base=beside.base),
            adapter=adapter,
        )
    config = beside.config
    if config is None and checkpoint.assets is None and other is not None and not as_adapter:
        config = other if (other / "config.json").is_file() else None
    base = beside.base if _is_alone(checkpoint) else None
    made = _planned(source, checkpoint, beside.dtype, config, None if as_adapter else base, as_adapter)
    return replace(made, beside=Beside(config, base=base))


def open_sides(
    target: SourceSpec, against: SourceSpec | None, beside: Beside
) -> tuple[Side, Side | None] | CkptconvError:
    """Both sides in one form; what is wrong with the target is returned and not raised.

    Args:
        target: where the target is, on this disk.
        against: where the reference is.
        beside: of the target; of the reference where the target is a model folder.
    """
    if against is None:
        try:
            return open_side(target, beside), None
        except CkptconvError as error:
            return error
    to_reference = is_model_folder(target.path)
    adapters = is_adapter_folder(target.path) or is_adapter_folder(against.path)
    bare = Beside(base=beside.base)
    # Of two checkpoints of one model, either's config serves.
    other = beside.config if beside.config is not None else target.path
    try:
        ours = open_side(target, bare if to_reference else beside, as_adapter=adapters, other=against.path)
    except CkptconvError as error:
        return error
    theirs = open_side(against, beside if to_reference else bare, as_adapter=adapters, other=other)
    if ours.tensors.keys() == theirs.tensors.keys():
        return ours, theirs
    return under_hub_names(ours), under_hub_names(theirs)


def under_hub_names(side: Side) -> Side:
    """A model folder whose tensors have a module's names (fused experts) as `merge` would write it; others as they are."""
    if side.planned or side.config is None or side.is_adapter:
        return side
    try:
        made = _planned(side.source, side.checkpoint, "keep", None, None, False)
    except CkptconvError:  # the checkpoint cannot be planned as a model, so it is compared as stored
        return side
    return side if made.tensors.keys() == side.tensors.keys() else replace(made, as_stored=False)


def _planned(
    source: SourceSpec,
    checkpoint: Checkpoint,
    dtype: Dtype,
    config: Path | None,
    base: Path | None,
    as_adapter: bool,
) -> Side:
    as_stored = dtype in ("auto", "keep")
    options = Options(dtype="keep" if as_stored else dtype, lora="adapter" if as_adapter else None)
    plan = plan_for(checkpoint, options, config, base)
    return Side(
        source,
        checkpoint,
        plan.outputs,
        plan.config,
        planned=True,
        as_stored=as_stored,
        is_adapter=plan.is_adapter,
        notes=plan.notes,
        dtype_summary=plan.dtype_summary,
        adapter=plan.texts.get(ADAPTER_CONFIG, {}),
    )


def _is_alone(checkpoint: Checkpoint) -> bool:
    """True for an adapter without its model."""
    return all(map(lora.is_of_an_adapter, checkpoint.tensors))


def _cuts_of(folder: Path) -> dict[str, tuple[Slice, ...]]:
    """Tensor -> the boxes of the ranks that stored it, as a receipt states it. Another layer reports a broken receipt."""
    try:
        receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
        cuts = [
            tuple(Slice(rank, tuple(offsets), tuple(sizes)) for rank, offsets, sizes in parts)
            for parts in receipt["cuts"]
        ]
        return {name: cuts[entry["cut"]] for name, entry in receipt["tensors"].items() if "cut" in entry}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return {}


def _is_safetensors(checkpoint: Checkpoint) -> bool:
    """False for torch.save files: they are compared as `merge` would write them, and have CRCs to check."""
    return all(file.path.endswith(".safetensors") for file in checkpoint.files)


def _as_it_is(name: str, view: View) -> Output:
    return Output(name, view.shape, view.dtype, view, (name,))
