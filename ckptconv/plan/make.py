"""Makes the plan from its parts: the model, the adapter, what is dropped, and the ledger over all of it."""

from __future__ import annotations

from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models.trained_config import check_agreement
from ckptconv.plan.balance import balance
from ckptconv.plan.lora_mode import mode_of
from ckptconv.plan.model import plan_model
from ckptconv.plan.options import Options
from ckptconv.plan.records import ADAPTER_FOLDER, Part, Plan
from ckptconv.plan.stored import Stored, take_stock
from ckptconv.plan.tied import Equal, same, unread
from ckptconv.tensors.checkpoint import Checkpoint


def make_plan(
    checkpoint: Checkpoint,
    config: dict[str, Any] | None,
    options: Options,
    base: Checkpoint | None = None,
    equal: Equal = unread,
) -> Plan:
    """Plan a merge, from metadata alone.

    Args:
        checkpoint: what a backend read.
        config: the model's config.json, parsed; None if it is not known.
        options: the user's choices.
        base: a model folder, for a checkpoint that holds only LoRA tensors, or whose frozen parameters were not saved.
        equal: returns whether two stored tensors hold the same bytes. It is called for a head and an embedding that the
            config ties and that are stored separately; nothing else in a plan depends on stored values.

    Raises:
        NeedsReading: `equal` would have to be called and was not given.
        CkptconvError: the checkpoint cannot become what the options ask for.
    """
    try:
        return _plan(checkpoint, config, options, base, equal)
    except CkptconvError as error:
        raise error.within(kind=Kind.DOES_NOT_FIT) from error


def _plan(
    checkpoint: Checkpoint,
    config: dict[str, Any] | None,
    options: Options,
    base: Checkpoint | None,
    equal: Equal,
) -> Plan:
    stored = take_stock(checkpoint)
    _require_equal(stored, equal)
    mode, notes = mode_of(stored, options, base)
    padding = _settings_agree(checkpoint, config) if checkpoint.naming == "megatron" and config else []
    if config:
        check_agreement(checkpoint, config)
    parts: list[Part] = []
    views = list(stored.views)
    if mode != "adapter":
        notes = (*notes, *padding)
        model, weights = plan_model(stored, config, options, base, equal)
        parts.append(model)
        views += weights.stored
    if mode in ("adapter", "both"):
        from ckptconv.plan.adapter import plan_adapter  # LoRA's records: imported where there is LoRA

        folder = f"{ADAPTER_FOLDER}/" if mode == "both" else ""
        parts.append(plan_adapter(stored, config or {}, options, folder))
    outputs = {name: output for part in parts for name, output in part.outputs.items()}
    if not outputs:
        raise CkptconvError(
            "the checkpoint holds no model tensors", where=checkpoint.root, kind=Kind.NOT_A_CHECKPOINT
        )
    first = parts[0]  # accounts for every stored byte; an adapter next to the model repeats some of them
    dropped = (*stored.unread, *stored.dropped(first.left))
    return Plan(
        checkpoint=checkpoint,
        outputs=outputs,
        files=tuple(file for part in parts for file in part.files),
        dropped=dropped,
        config=first.config,
        texts={name: text for part in parts for name, text in part.texts.items()},
        notes=(*checkpoint.notes, *notes, *first.notes),
        dtype_summary=first.dtype_summary,
        config_summary=first.config_summary,
        rules=first.rules,
        balanced=balance(views, outputs, first.used, dropped),
        is_adapter=mode == "adapter",
    )


def _require_equal(stored: Stored, equal: Equal) -> None:
    """Compare the tensors of an adapter that are stored under two names."""
    for one, other in stored.parts.twice:
        if not same(one[1], other[1], equal):
            raise CkptconvError(
                "a LoRA tensor is stored twice, with different values",
                found=f"{one[0]} and {other[0]}",
                hint="save the adapter again",
                kind=Kind.DAMAGED,
            )


def _settings_agree(checkpoint: Checkpoint, config: dict[str, Any]) -> list[str]:
    from ckptconv.models.megatron import agree  # the tables of all families: other checkpoints need none

    return agree(checkpoint, config)
