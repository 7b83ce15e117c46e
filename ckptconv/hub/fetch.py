"""Downloads a repository on the Hub: the files that a model needs, into huggingface_hub's own cache."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ckptconv.backends.huggingface.weight_files import INDEXES, SMALL, Chosen, choose
from ckptconv.errors import CkptconvError, Kind
from ckptconv.hub.bounds import MOST, OURS
from ckptconv.hub.names import RepoName
from ckptconv.hub.quiet import quiet
from ckptconv.hub.reading import Listing, asked, is_offline, listing, not_in_cache
from ckptconv.publish import assets

Say = Callable[[str], None]
_RECEIPT = "ckptconv.json"  # `verify` compares the hashes in it


def downloaded(repo: RepoName, weights: bool = True, say: Say | None = None, bars: bool = False) -> Path:
    """Download a repository: weights, config, tokenizer and custom code. See `source.local_or_hub`.

    Raises:
        CkptconvError: the repository cannot be downloaded, or does not hold a model.
    """
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
            size = f"{total / 1e9:,.2f} GB" if total >= 1e7 else f"{total / 1e3:,.0f} kB"
            say(f"{repo}: {len(names)} files, up to {size}")
        _require_room(listed, names)
        return download(repo, names, listed.commit, max(listed.files[name] for name in names) if names else 0)


def download(repo: RepoName, names: Sequence[str], commit: str | None = None, largest: int = 0) -> Path:
    """Download files, unless they are in the cache.

    Args:
        repo: the repository.
        names: paths in the repository.
        commit: the commit of the revision when its files were listed.
        largest: the size in bytes of the largest of the files, as it was listed.

    Returns:
        The folder of the cache that holds the files.

    Raises:
        CkptconvError: the Hub cannot be asked, or the revision has moved to another commit.
    """
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
                library_name=OURS,
            )
        )

    folder = asked(repo, step, max(MOST, largest))
    if commit is not None and folder.name != commit:
        raise CkptconvError(
            f"{repo} changed while it was read", found=folder.name, hint="try again", kind=Kind.ENVIRONMENT
        )
    return folder


def _require_room(listed: Listing, names: Sequence[str]) -> None:
    """Check before a download that the cache's disk has room for what is not there yet.

    Raises:
        CkptconvError: it has not.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    cache = Path(constants.HF_HUB_CACHE)
    above = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(above).free
    if sum(listed.files[name] for name in names) <= free:
        return
    missing = [
        n
        for n in names
        if not isinstance(try_to_load_from_cache(listed.repo.name, n, revision=listed.commit), str)
    ]
    needed = sum(listed.files[name] for name in missing)
    if needed > free:
        raise CkptconvError(
            "not enough room on the disk of huggingface_hub's cache",
            where=cache,
            found=f"{free:,} bytes",
            wanted=f"{needed:,} bytes for {listed.repo}",
            hint="free some space, or name another disk: HF_HOME=DIR",
            kind=Kind.ENVIRONMENT,
        )


def _needed(listed: Listing, weights: bool) -> list[str]:
    """The files to download: the weights and all small files of the model, without its card.

    The weights are chosen by the same rules as in a folder, so the indexes are downloaded first.
    """
    small = [name for name in listed.files if assets.is_asset(name) and name != "README.md"]
    if not weights:
        return small
    indexes = [name for name in INDEXES if name in listed.files]
    largest = max((listed.files[name] for name in indexes), default=0)
    folder = download(listed.repo, indexes, listed.commit, largest) if indexes else Path()
    chosen = choose(folder, listed.top)
    if chosen is None:
        return small
    more = (*chosen.names, *SMALL, _RECEIPT)
    return sorted({*small, *(name for name in more if name in listed.files)})
