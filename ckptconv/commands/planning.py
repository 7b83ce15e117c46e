"""Plans an opened checkpoint with its config and its base model, for merge, inspect and verify."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckptconv.backends import open_checkpoint
from ckptconv.backends.base import backends
from ckptconv.backends.huggingface.layout import NAME
from ckptconv.backends.locate import locate
from ckptconv.errors import CkptconvError, Incomplete, Kind
from ckptconv.hub.names import cached_name, public_name, repo_of
from ckptconv.models import lora
from ckptconv.models.trained_config import made_config, not_enough
from ckptconv.plan import Equal, Options, Plan, make_plan
from ckptconv.plan.stored import take_stock
from ckptconv.publish import assets
from ckptconv.storage import located
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.look import is_dir
from ckptconv.tensors.source_spec import as_path
from ckptconv.tensors.view import View

# `inspect` recognises this text to suggest --config.
NO_CONFIG = "no config.json found for this checkpoint"
NO_BASE = "an adapter alone: its base model is needed"


def plan_for(
    checkpoint: Checkpoint,
    options: Options,
    config: str | Path | None = None,
    base: str | Path | None = None,
    equal: Equal | None = None,
) -> Plan:
    """The plan of an opened checkpoint, as `merge` would run it.

    Args:
        checkpoint: what a backend read.
        options: the user's choices.
        config: a folder with the model's config.json, or that file; the checkpoint's own when omitted.
        base: the folder of the base model, for a checkpoint that holds only LoRA tensors.
        equal: compares a head with its embedding if the config ties them and they are stored separately. None reads
            both; with `ckptconv.plan.unread`, planning raises NeedsReading instead.

    Raises:
        CkptconvError: there is no config, or the checkpoint cannot become what the options ask for.
    """
    return plan_and_assets(checkpoint, options, config, base, equal)[0]


def plan_and_assets(
    checkpoint: Checkpoint,
    options: Options,
    config: str | Path | None = None,
    base: str | Path | None = None,
    equal: Equal | None = None,
) -> tuple[Plan, Path | None]:
    """The plan, and the folder with the tokenizer and other small files; see `plan_for` for the arguments."""
    holds_base = options.lora in ("adapter", "both") and take_stock(checkpoint).parts.holds_base
    # A checkpoint that holds its base needs the name alone, for the adapter's config.
    based = None if base is None or holds_base else _opened_base(base)
    if config is not None:
        folder: Path | None = as_path(config)
    else:
        folder = based.root if based is not None else checkpoint.assets
    found = assets.read_config(folder) if folder is not None else None
    made = made_config(checkpoint) if found is None else None
    found = made.config if made is not None else found
    if found is None and not needs_no_config(checkpoint):
        raise CkptconvError(
            NO_CONFIG,
            where=checkpoint.root,
            found=not_enough(checkpoint),
            hint="pass the base model: --config DIR or --config org/name",
            kind=Kind.USAGE,
        )
    plan = make_plan(checkpoint, found, options, based, equal or _by_reading)
    plan = _with_base_name(plan, base, found or {})
    if made is not None:
        told = f"config.json is made from the trainer's {Path(made.where).name}, which has no tokenizer next to it"
        plan = replace(plan, notes=(*plan.notes, told))
    return plan, folder if folder is None or is_dir(folder) else folder.parent


def _opened_base(base: str | Path) -> Checkpoint:
    """The base model.

    Raises:
        CkptconvError: it is not a model, but what a trainer saved; or it cannot be opened.
    """
    try:
        return open_checkpoint(base, backend=NAME)
    except CkptconvError as error:
        other = locate(located(base), backends()) if error.kind is Kind.USAGE else None
        if other is None or other[0].NAME == NAME:
            raise
        raise CkptconvError(
            "the base is not a model but a trainer's checkpoint",
            where=other[1].folder,
            found=other[0].SIGN,
            wanted="a Hugging Face model folder",
            hint=f"convert it first: ckptconv merge {shlex.quote(str(base))} MODEL, and then --base MODEL",
            kind=Kind.USAGE,
        ) from error


def _by_reading(one: View, other: View) -> bool:
    from ckptconv.read.reader import same_values

    return same_values(one, other)


def own_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config of a checkpoint's model: its config.json, or the one that its trainer's settings give; else {}."""
    if checkpoint.assets is not None:
        return assets.read_config(checkpoint.assets)
    try:
        made = made_config(checkpoint)
    except CkptconvError:  # merge reports it
        return {}
    return made.config if made is not None else {}


def _with_base_name(plan: Plan, base: str | Path | None, config: Mapping[str, Any]) -> Plan:
    """A plan whose adapter_config.json names the base model as the Hub does, and no folder of this machine.

    The name is that of the repository given as --base, else the one that the adapter's or the base's own config states.
    Where there is none, base_model_name_or_path stays empty and a note asks the user to fill it.
    """
    key, texts, notes = "base_model_name_or_path", dict(plan.texts), list(plan.notes)
    for file, settings in plan.texts.items():
        if isinstance(settings, dict) and key in settings:
            stated = (settings[key], config.get("_name_or_path"))
            name = cached_name(base) or next(filter(None, map(public_name, stated)), None)
            texts[file] = {**settings, key: name}
            if name is None:
                notes.append(
                    f"{file} names no base model, since its name on the Hub is not known: fill in {key}"
                )
    return replace(plan, texts=texts, notes=tuple(notes))


def require_base(checkpoint: Checkpoint, options: Options) -> None:
    """Refuse an adapter that cannot be planned: one without any element, or a PEFT folder to merge without a base model.

    We never open the base that adapter_config.json names: the file may come from anywhere, and a path in it belongs to
    another machine. PEFT's own folder is merged by default, since to write the adapter again would convert nothing. A
    trainer's shards of an adapter are merged only if the user asks for it.

    Raises:
        Incomplete: no tensor of the adapter has an element.
        CkptconvError: no base is given; the hint names the base that the config states.
    """
    settings = checkpoint.lora.settings
    if checkpoint.lora.is_folder and not any(tensor.view.numel for tensor in checkpoint.tensors.values()):
        raise Incomplete(
            "every tensor of the adapter is empty: it was saved under DeepSpeed ZeRO 3, which had not gathered it",
            where=checkpoint.root,
            wanted="the gathered adapter, such as adapter_model.bin",
            hint="take the trainer's DeepSpeed checkpoint (global_stepN), which holds the partitions",
        )
    wanted = options.lora or ("merge" if not checkpoint.is_sharded else "adapter")
    if wanted == "adapter" or not lora.is_adapter_config(settings) or not _is_alone(checkpoint):
        return
    name = settings.get("base_model_name_or_path")
    raise CkptconvError(
        NO_BASE,
        where=checkpoint.root,
        found=f"base_model_name_or_path: {name or 'none'} (adapter_config.json)",
        wanted="the base model: a folder, or a repository on the Hub",
        hint=f"--base {_wanted(name)} (--lora adapter writes the adapter again)",
        kind=Kind.USAGE,
    )


def _wanted(name: object) -> str:
    """The value to suggest for --base: the repository or folder that the config names. Only the user can judge it."""
    repo = repo_of(name) if isinstance(name, str) else None
    if repo is not None:
        return repo.name
    return shlex.quote(name) if isinstance(name, str) and Path(name).is_dir() else "DIR"


def needs_no_config(checkpoint: Checkpoint) -> bool:
    """True for an adapter under PEFT's names, which can be exported without a config of its model."""
    return checkpoint.naming != "megatron" and (
        all(map(lora.is_of_an_adapter, checkpoint.tensors)) or _is_alone(checkpoint)
    )


def _is_alone(checkpoint: Checkpoint) -> bool:
    """True for an adapter in PEFT's format without its base model."""
    if checkpoint.lora.is_folder:
        return True
    if not lora.is_adapter_config(checkpoint.lora.settings):
        return False
    views = {name: tensor.view for name, tensor in checkpoint.tensors.items()}
    parts = lora.separate(views, checkpoint.lora.settings)
    return bool(parts.factors) and not parts.holds_base
