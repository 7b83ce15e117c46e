"""Planning as merge, inspect and verify need it: an opened checkpoint, its config, and its base model -> Plan."""

from __future__ import annotations

from pathlib import Path

from ckptconv.backends import open_checkpoint
from ckptconv.errors import CkptconvError
from ckptconv.hub.names import repo_of
from ckptconv.models import lora
from ckptconv.plan import Equal, Options, Plan, make_plan
from ckptconv.publish import assets
from ckptconv.read.reader import same_values
from ckptconv.tensors.checkpoint import Checkpoint

# What `inspect` recognises to suggest --config.
NO_CONFIG = "no config.json found for this checkpoint"


def plan_for(
    checkpoint: Checkpoint,
    options: Options,
    config: str | Path | None = None,
    base: str | Path | None = None,
    equal: Equal = same_values,
) -> Plan:
    """The plan of an opened checkpoint, as `merge` would run it.

    Args:
        checkpoint: what a backend found.
        options: the user's choices.
        config: a folder with the model's config.json, or that file; the checkpoint's own when omitted.
        base: the folder of the base model, for a checkpoint that holds LoRA tensors alone.
        equal: compares a head with its embedding where the config ties them and they are stored apart. The default
            reads both; `ckptconv.plan.unread` makes planning raise NeedsReading there.

    Raises:
        CkptconvError: where there is no config, and where the checkpoint cannot become what is asked for.
    """
    return plan_and_assets(checkpoint, options, config, base, equal)[0]


def plan_and_assets(
    checkpoint: Checkpoint,
    options: Options,
    config: str | Path | None = None,
    base: str | Path | None = None,
    equal: Equal = same_values,
) -> tuple[Plan, Path | None]:
    """The plan, and the folder that the tokenizer and other small files come from; see `plan_for`."""
    based = open_checkpoint(base, backend="huggingface") if base is not None else None
    if config is not None:
        folder: Path | None = Path(config)
    else:
        folder = based.root if based is not None else checkpoint.assets
    found = assets.read_config(folder) if folder is not None else None
    if found is None and not needs_no_config(checkpoint):
        raise CkptconvError(
            NO_CONFIG,
            where=checkpoint.root,
            hint="pass the base model: --config DIR or --config org/name",
        )
    plan = make_plan(checkpoint, found, options, based, equal)
    return plan, folder if folder is None or folder.is_dir() else folder.parent


def stated_base(checkpoint: Checkpoint, options: Options) -> Path | None:
    """The folder that an adapter's config names, where a merge is wanted; it is not looked for on the Hub.

    PEFT's own folder is merged unless the user says otherwise (an adapter as it is would be no conversion), a trainer's
    shards of an adapter only when the user says so. Raises CkptconvError where the config names no folder that is here.
    """
    meta = checkpoint.extras.get("lora") or {}
    wanted = options.lora or ("merge" if checkpoint.backend == "huggingface" else "adapter")
    if wanted == "adapter" or not lora.is_adapter_config(meta) or not _is_alone(checkpoint):
        return None
    name = meta.get("base_model_name_or_path")
    if isinstance(name, str) and name and Path(name).is_dir():
        return Path(name)
    raise CkptconvError(
        "this is only an adapter, and its base model is not in a folder here",
        where=checkpoint.root,
        found=f"base_model_name_or_path {name}",
        hint=f"--base {_wanted(name)} (--lora adapter writes the adapter again)",
    )


def _wanted(name: object) -> str:
    """What to give as --base: the repository that the config names, which is then downloaded, or a folder."""
    repo = repo_of(name) if isinstance(name, str) else None
    return repo.name if repo is not None else "DIR, the model's folder"


def needs_no_config(checkpoint: Checkpoint) -> bool:
    """True for an adapter in PEFT's names, which can be exported without knowing its model."""
    return checkpoint.naming != "megatron" and (
        all(map(lora.is_of_an_adapter, checkpoint.tensors)) or _is_alone(checkpoint)
    )


def _is_alone(checkpoint: Checkpoint) -> bool:
    """True for PEFT's own folder."""
    meta = checkpoint.extras.get("lora") or {}
    if not lora.is_adapter_config(meta):
        return False
    views = {name: tensor.view for name, tensor in checkpoint.tensors.items()}
    parts = lora.separate(views, meta)
    return bool(parts.factors) and not parts.holds_base
