"""From what the user names to a checkpoint or a folder: on a disk, in an object store, or a repository on the Hub.

What the Hub needs is imported for repositories only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ckptconv.backends import open_checkpoint
from ckptconv.backends.meant import meant
from ckptconv.errors import CkptconvError, Kind
from ckptconv.hub.names import RepoName, repo_of
from ckptconv.storage import is_address, place_in
from ckptconv.storage import located as located_in_store
from ckptconv.storage.address import address_of
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.look import is_far
from ckptconv.tensors.source_spec import SourceSpec

Say = Callable[[str], None]


def open_local_or_hub(spec: SourceSpec) -> Checkpoint:
    """Open a checkpoint or a repository on the Hub to describe it, without the places of all elements.

    See `open_checkpoint` and `checkpoint.open_repo`.
    """
    repo = _repo_of(spec)
    if repo is None:
        return open_checkpoint(in_place(spec), elements=False)
    from ckptconv.hub.checkpoint import open_repo
    from ckptconv.hub.quiet import quiet

    with quiet(bars=False), _or_a_folder(spec.path):
        return open_repo(repo)


def fetched(spec: SourceSpec, say: Say | None = None, bars: bool = False) -> SourceSpec:
    """Where the checkpoint is on this disk, after the download if `spec` names a repository; see `local_or_hub`."""
    repo = _repo_of(spec)
    if repo is None:
        return in_place(spec)
    return spec.at(local_or_hub(spec.path, spec.revision, say=say, bars=bars))


def located(path: str | Path) -> Path:
    """The folder or file that a text names, in a bucket of the Hub too; see `storage.located`."""
    if is_address(path) and not is_far(path) and not Path(path).exists():
        address = address_of(path)
        if address.scheme == "hf":
            from ckptconv.hub.storage import HubBucket

            return place_in(HubBucket(address), address.key)
    return located_in_store(path)


def in_place(spec: SourceSpec) -> SourceSpec:
    """The record with the folders of object stores in place of their addresses, which lists them.

    The address of a repository's page on the Hub stays as it is.
    """
    if _repo_of(spec) is not None:
        return spec
    return replace(spec, path=located(spec.path), also=tuple(map(located, spec.also)))


def _repo_of(spec: SourceSpec) -> RepoName | None:
    """The repository, or None for a path.

    Raises:
        CkptconvError: it is a repository, and an option is given that only folders have.
    """
    repo = repo_of(spec.path, spec.revision)
    if repo is not None and (spec.step is not None or spec.also):
        raise CkptconvError(
            f"{repo} is a repository on the Hub, and --step and --also are for folders",
            hint="name one of its branches instead: --revision NAME",
            kind=Kind.USAGE,
        )
    return repo


def local_or_hub(
    path: str | Path,
    revision: str | None = None,
    *,
    weights: bool = True,
    say: Say | None = None,
    bars: bool = False,
) -> Path:
    """The path itself, the place in an object store, or the folder to which a repository is downloaded.

    Of a repository weights, config, tokenizer and custom code are downloaded.

    Files go into huggingface_hub's cache (HF_HOME). With HF_HUB_OFFLINE, only files that are there already are used.

    Args:
        path: a path, an address such as "s3://bucket/model", or a repository such as "org/name"; see `repo_of`.
        revision: a branch, tag or commit of the repository.
        weights: False to download only the other files.
        say: called with a sentence about the download.
        bars: show huggingface_hub's progress bars, on stderr.

    Raises:
        CkptconvError: there is no such path, and the repository cannot be downloaded.
    """
    repo = repo_of(path, revision)
    if repo is None:
        return located(path)
    from ckptconv.hub.fetch import downloaded

    with _or_a_folder(path):
        return downloaded(repo, weights, say, bars)


@contextmanager
def _or_a_folder(path: str | Path) -> Iterator[None]:
    """Let an error name the folder that was probably meant where there is no repository under a name like a/b."""
    try:
        yield
    except CkptconvError as error:
        error.hint = meant(Path(path)) or error.hint
        raise
