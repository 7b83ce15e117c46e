"""Reads a repository on the Hub as a Checkpoint, from its file list, small JSON files and safetensors headers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ckptconv.backends import open_checkpoint
from ckptconv.backends.huggingface.read import NAME, read_chosen
from ckptconv.backends.huggingface.weight_files import CONFIG, Chosen, choose
from ckptconv.backends.runs import Place
from ckptconv.errors import CkptconvError, Kind, listed
from ckptconv.formats.json import read_table
from ckptconv.hub.fetch import downloaded
from ckptconv.hub.names import RepoName
from ckptconv.hub.reading import Listing, is_offline, listing
from ckptconv.hub.storage import Repository
from ckptconv.storage import place_in
from ckptconv.tensors.checkpoint import Checkpoint


def open_repo(repo: RepoName) -> Checkpoint:
    """Open a repository without its weights, so the views cannot be read.

    With HF_HUB_OFFLINE, the copy in huggingface_hub's cache is opened.

    Raises:
        CkptconvError: the Hub cannot be asked, or the repository has no safetensors files.
    """
    if is_offline():
        found = open_checkpoint(downloaded(repo), backend=NAME)
        return replace(found, root=Path(repo.name), layout=_said(found, repo, found.root.name))
    contents = listing(repo)
    root = place_in(Repository(contents), "")
    chosen = choose(root)
    if chosen is None:
        raise _no_model(contents)
    if not all(name.endswith(".safetensors") for name in chosen.names):
        raise _torch_only(contents, chosen, root)
    found = read_chosen(Place(root, None, None), chosen)
    return replace(found, layout=_said(found, repo, contents.commit))


def _said(found: Checkpoint, repo: RepoName, commit: str) -> str:
    what = "PEFT adapter" if found.lora.is_folder else "Hugging Face model"
    return f"{what} on the Hub, {repo.revision or 'main'} at {commit[:8]}"


def _no_model(contents: Listing) -> CkptconvError:
    names = sorted(contents.files)
    return CkptconvError(
        "this repository has no model weights",
        where=contents.repo,
        found=listed(names, 6) or "no files",
        wanted="model.safetensors, its index, or adapter_model.safetensors",
        kind=Kind.NOT_A_CHECKPOINT,
    )


def _torch_only(contents: Listing, chosen: Chosen, root: Path) -> CkptconvError:
    """The error for a repository with only torch.save files, which have no header to read."""
    config = read_table(root / CONFIG)
    total = sum(contents.files.get(name, 0) for name in chosen.names)
    files = chosen.names[0] if len(chosen.names) == 1 else f"{len(chosen.names)} files {chosen.names[0]} ..."
    tensors = f", {len(chosen.expected):,} tensors" if chosen.expected else ""
    model = ", ".join(map(str, config.get("architectures") or [])) or config.get("model_type") or "unknown"
    return CkptconvError(
        "this repository has only torch.save files, whose contents cannot be listed without a download",
        where=contents.repo,
        found=f"{files}, {total / 1e9:,.2f} GB{tensors}; model {model}",
        wanted="safetensors",
        hint=f"hf download {contents.repo.name}, then inspect the folder that it prints",
        kind=Kind.UNSUPPORTED,
    )
