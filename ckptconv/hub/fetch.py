"""A repository on the Hub as a folder: what a model needs of it, in huggingface_hub's own cache."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path

from ckptconv.backends.huggingface.weight_files import INDEXES, SMALL, Chosen, choose
from ckptconv.errors import CkptconvError
from ckptconv.hub.names import RepoName, repo_of
from ckptconv.hub.quiet import quiet
from ckptconv.hub.reading import Listing, asked, is_offline, listing, not_in_cache
from ckptconv.publish import assets

Say = Callable[[str], None]
_RECEIPT = "ckptconv.json"  # whose hashes `verify` compares


def local_or_hub(
    path: str | Path,
    revision: str | None = None,
    *,
    weights: bool = True,
    say: Say | None = None,
    bars: bool = False,
) -> Path:
    """The path itself, or the folder that `org/name` was downloaded to: weights, config, tokenizer, custom code.

    The cache is huggingface_hub's (HF_HOME); with HF_HUB_OFFLINE only what lies there is taken. weights: False for
    the files beside them alone. say: told what is downloaded. bars: huggingface_hub's own, on stderr.
    Raises CkptconvError where a path of this form is not here, and the Hub cannot help.
    """
    repo = repo_of(path, revision)
    if repo is None:
        return Path(path)
    with quiet(bars):
        if is_offline():
            folder = download(repo, SMALL)
            chosen = choose(folder) if weights else Chosen(())
            if chosen is None or not all((folder / name).is_file() for name in chosen.names):
                raise not_in_cache(repo)
            return folder
        listed = listing(repo)
        names = _needed(listed, weights)
        if say:
            total = sum(listed.files[name] for name in names)
            said = f"{total / 1e9:,.2f} GB" if total >= 1e7 else f"{total / 1e3:,.0f} kB"
            say(f"{repo}: {len(names)} files, up to {said}")
        return download(repo, names, listed.commit)


def download(repo: RepoName, names: Sequence[str], commit: str | None = None) -> Path:
    """The folder of the cache that holds these files. commit: what the revision was at, when it was listed."""
    from huggingface_hub import constants, snapshot_download

    def step() -> Path:
        patterns = [glob.escape(name) for name in names]
        return Path(
            snapshot_download(
                repo.name,
                revision=repo.revision,
                allow_patterns=patterns,
                local_files_only=is_offline(),
                endpoint=constants.ENDPOINT,
            )
        )

    folder = asked(repo, step)
    if commit is not None and folder.name != commit:
        raise CkptconvError(f"{repo} changed while it was read", found=folder.name, hint="try again")
    return folder


def _needed(listed: Listing, weights: bool) -> list[str]:
    """The files of a model: its weights, and everything small that belongs to it; not its card.

    Which weights they are is chosen as in a folder, for which the indexes have to be there first.
    """
    small = [name for name in listed.files if assets.is_asset(name) and name != "README.md"]
    if not weights:
        return small
    indexes = [name for name in INDEXES if name in listed.files]
    folder = download(listed.repo, indexes, listed.commit) if indexes else Path()
    chosen = choose(folder, listed.top)
    if chosen is None:
        return small
    more = (*chosen.names, *SMALL, _RECEIPT)
    return sorted({*small, *(name for name in more if name in listed.files)})
