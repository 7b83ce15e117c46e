"""Opens the sides of a comparison: a model folder as it is, or a trainer's checkpoint as `merge` would write it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckptconv.backends import open_checkpoint
from ckptconv.backends.huggingface import layout as huggingface
from ckptconv.backends.huggingface.weight_files import ADAPTER_CONFIG
from ckptconv.commands.planning import plan_for
from ckptconv.errors import CkptconvError
from ckptconv.models import lora, ties
from ckptconv.plan import Dtype, Options, Output
from ckptconv.publish import assets
from ckptconv.publish.receipt import RECEIPT
from ckptconv.tensors.boxes import Slice
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.look import is_dir, is_file, read_bytes
from ckptconv.tensors.source_spec import SourceSpec
from ckptconv.tensors.view import View


@dataclass(frozen=True, slots=True)
class Beside:
    """What the user gives in addition to a checkpoint.

    Args:
        config: the folder with the model's config.json.
        dtype: the dtype policy; see `Options`.
        base: the folder of the base model.
    """

    config: Path | None = None
    dtype: Dtype = "auto"
    base: Path | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: its tensors, not yet read.

    Args:
        source: where it is.
        checkpoint: its stored tensors.
        tensors: name -> what fills the tensor.
        config: the model's config.json; None if there is none.
        planned: the tensors are those of a plan, and no folder holds them like this.
        as_stored: the plan casts nothing, so the dtypes are the trainer's and not a model folder's.
        is_adapter: the tensors are an adapter's factors.
        notes: the plan's notes.
        dtype_summary: the plan's sentence about dtypes.
        cuts: tensor -> the boxes of the ranks that stored it, as a folder's receipt states them.
        beside: what `merge` needs in addition to `source` to write this side.
        adapter: the adapter_config.json of an adapter.
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
        """The path or repository that the user gave."""
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
        """File -> the rank that wrote it; {} for a model folder."""
        return self.checkpoint.rank_of if self.of_trainer else {}

    def ties(self, names: Iterable[str]) -> dict[str, str]:
        """Tied name -> the name that it repeats, among `names` and the side's own; {} if the config ties none."""
        if self.config is None:
            return {}
        return {tie.name: tie.repeats for tie in ties.ties(self.config, [*self.tensors, *names])}


def is_model_folder(path: Path) -> bool:
    """True for a folder that holds a model's files itself; False for a run that contains such a folder."""
    return is_dir(path) and huggingface.is_mine(path)


def is_adapter_folder(path: Path) -> bool:
    """True for a folder that PEFT's save_pretrained wrote."""
    return is_model_folder(path) and is_file(path / ADAPTER_CONFIG)


def open_side(
    source: SourceSpec,
    beside: Beside = Beside(),
    *,
    as_adapter: bool = False,
    other: Path | None = None,
) -> Side:
    """Open a side; only its metadata is read.

    Args:
        source: where it is, on this disk.
        beside: the model's config, the dtype policy, and the base model of a checkpoint that holds only an adapter. Here
            the policy "auto" keeps the stored dtypes of a trainer's checkpoint.
        as_adapter: take a checkpoint's adapter, and not the model that it is merged into.
        other: the model folder that it is compared with; its config is used if the checkpoint has none.

    Raises:
        CkptconvError: `merge` could not plan it either.
    """
    checkpoint = open_checkpoint(source)
    folder = beside.config if beside.config is not None else checkpoint.assets
    is_described = folder is not None or bool(checkpoint.trainer)
    if not checkpoint.is_sharded and (not is_described or _is_safetensors(checkpoint)):
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
        config = other if is_file(other / "config.json") else None
    base = beside.base if _is_alone(checkpoint) else None
    made = _planned(source, checkpoint, beside.dtype, config, None if as_adapter else base, as_adapter)
    return replace(made, beside=Beside(config, base=base))


def open_sides(
    target: SourceSpec, against: SourceSpec | None, beside: Beside
) -> tuple[Side, Side | None] | CkptconvError:
    """Open both sides, so that their names and layouts can be compared.

    Args:
        target: where the target is, on this disk.
        against: where the reference is; None if there is none.
        beside: belongs to the target, or to the reference if the target is a model folder.

    Returns:
        The target and the reference, or the error that the target raised.

    Raises:
        CkptconvError: the reference cannot be opened.
    """
    if against is None:
        try:
            return open_side(target, beside), None
        except CkptconvError as error:
            return error
    to_reference = is_model_folder(target.path)
    adapters = is_adapter_folder(target.path) or is_adapter_folder(against.path)
    bare = Beside(base=beside.base)
    # Two checkpoints of one model may share one config.
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
    """A model folder with a module's names (such as fused experts) as `merge` would write it; any other side as it is."""
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
    """The side that a plan of the checkpoint gives; the arguments are those of `open_side`."""
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
    """True for a checkpoint that holds only an adapter's tensors."""
    return all(map(lora.is_of_an_adapter, checkpoint.tensors))


def _cuts_of(folder: Path) -> dict[str, tuple[Slice, ...]]:
    """Tensor -> the boxes of the ranks that stored it, by the receipt; layer integrity reports a broken one."""
    try:
        receipt = json.loads(read_bytes(folder / RECEIPT).decode())
        cuts = [
            tuple(Slice(rank, tuple(offsets), tuple(sizes)) for rank, offsets, sizes in parts)
            for parts in receipt["cuts"]
        ]
        return {name: cuts[entry["cut"]] for name, entry in receipt["tensors"].items() if "cut" in entry}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return {}


def _is_safetensors(checkpoint: Checkpoint) -> bool:
    """False for torch.save files, which are compared as `merge` would write them, and have CRCs."""
    return all(file.path.endswith(".safetensors") for file in checkpoint.files)


def _as_it_is(name: str, view: View) -> Output:
    """A stored tensor as an output of a plan."""
    return Output(name, view.shape, view.dtype, view, (name,))
