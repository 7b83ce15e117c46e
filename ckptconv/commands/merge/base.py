"""The base model of an adapter: what its own config says, where --base does not."""

from __future__ import annotations

from pathlib import Path

from ckptconv.errors import CkptconvError
from ckptconv.hub.names import repo_of
from ckptconv.models import lora
from ckptconv.plan import Options
from ckptconv.tensors.checkpoint import Checkpoint


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
        "an adapter alone: its base model is not in a folder here",
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
