"""Asks the Hub which files a revision of a repository has, and explains its errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ckptconv import __version__
from ckptconv.errors import brief
from ckptconv.hub import errors
from ckptconv.hub.bounds import MOST, bounded
from ckptconv.hub.errors import Explanation, Explanations, guarded
from ckptconv.hub.names import RepoName

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
_COMMIT = re.compile(r"[^\x00-\x20/\\]{1,250}(?:/[^\x00-\x20/\\]{1,250})*")

_AGAIN = "try again"
_SIGN_IN = "hf auth login"
_NO_ADDRESS = Explanation("{endpoint} is not an address", "set HF_ENDPOINT to https://huggingface.co")
_BROKEN = Explanation("the connection to {endpoint} broke", _AGAIN)
_MISSING = Explanation(
    "{repo} is neither a local folder nor a Hub repository you can access",
    "check the name; for a private repository, sign in first: hf auth login",
)
_OFFLINE = Explanation(
    "{repo}: no such folder, and no Hub repository of that name in the offline cache",
    "HF_HUB_OFFLINE=0 hf download {repo}",
)
_READ = Explanations(
    by_name={
        "GatedRepoError": Explanation(
            "{repo} is gated, and this account has not been let in",
            "ask for it at {endpoint}/{repo}, then: hf auth login",
        ),
        "DisabledRepoError": Explanation("the Hub has disabled {repo}", "see {endpoint}/{repo}"),
        "RepositoryNotFoundError": _MISSING,
        "BucketNotFoundError": Explanation(
            "there is no bucket {repo} on the Hub, or this account may not read it",
            "check the name; for a private bucket, sign in first: hf auth login",
        ),
        "RevisionNotFoundError": Explanation(
            "{repo} has no revision {revision}", "see {endpoint}/{repo}/tree/main"
        ),
        "OfflineModeIsEnabled": _OFFLINE,
        "LocalEntryNotFoundError": _OFFLINE,
        "HFValidationError": Explanation(
            "{repo!r} is not a valid repository name", "as in: ORG/NAME", quote=True
        ),
        "ConnectError": Explanation(
            "{repo}: no such folder, and {endpoint} cannot be reached to look for a repository",
            "check the path, the network and HF_ENDPOINT",
            quote=True,
        ),
        "ProxyError": Explanation("the proxy refuses", "check HTTPS_PROXY", quote=True),
        "UnsupportedProtocol": _NO_ADDRESS,
        "InvalidURL": _NO_ADDRESS,
        "TimeoutException": Explanation("{endpoint} does not answer", _AGAIN),
        "TransportError": _BROKEN,
        "ConnectionError": _BROKEN,
        "JSONDecodeError": Explanation("{endpoint} does not respond like a Hub", "check HF_ENDPOINT"),
        "OSError": Explanation("{repo} could not be read", _AGAIN, quote=True),
    },
    by_status={
        401: Explanation("the Hub does not accept this token", "hf auth login --force"),
        403: Explanation("this token may not read {repo}", _SIGN_IN, quote=True),
        404: _MISSING,
        429: Explanation("the Hub's rate limit was reached", "wait some minutes; a token is allowed more"),
    },
    server=Explanation("the Hub failed with status {status}", _AGAIN),
    other=Explanation("{repo} could not be read", _AGAIN, quote=True),
)


@dataclass(frozen=True)
class Listing:
    """The files of one commit of a repository.

    Args:
        repo: the repository.
        commit: the commit's hash.
        files: path -> size in bytes.
    """

    repo: RepoName
    commit: str
    files: dict[str, int]

    @property
    def top(self) -> dict[str, int]:
        """The files that are not in a folder."""
        return {name: nbytes for name, nbytes in self.files.items() if "/" not in name}


def api() -> HfApi:
    """A client of the Hub at HF_ENDPOINT, with the token that huggingface_hub finds."""
    from huggingface_hub import HfApi, constants

    return HfApi(endpoint=constants.ENDPOINT, library_name="ckptconv", library_version=__version__)


def is_offline() -> bool:
    """True if HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


def asked(repo: RepoName, step: Callable[[], T], most: int = MOST) -> T:
    """Run a step that asks the Hub about a repository.

    Args:
        repo: the repository.
        step: the step.
        most: bytes of the longest answer that the step may get.

    Raises:
        CkptconvError: the step raised an error; huggingface_hub's are explained.
    """

    def within() -> T:
        with bounded(most):
            return step()

    def explained(error: Exception) -> errors.CkptconvError:
        from huggingface_hub import constants, get_token

        words = {
            "repo": repo.name,
            "revision": repo.revision or "main",
            "endpoint": constants.ENDPOINT.rstrip("/"),
        }
        return errors.explain(error, _READ, words, token=get_token())

    return guarded(within, explained)


def not_in_cache(repo: RepoName) -> errors.CkptconvError:
    """The error if HF_HUB_OFFLINE is set and the cache does not have all files."""
    return errors.CkptconvError(
        f"HF_HUB_OFFLINE is set, and {repo} is not complete in the cache",
        hint=_OFFLINE.hint.format(repo=repo.name),
    )


def listing(repo: RepoName) -> Listing:
    """List the files of a repository, with one request.

    Raises:
        CkptconvError: the repository or the revision does not exist.
    """
    info = asked(repo, lambda: api().model_info(repo.name, revision=repo.revision, files_metadata=True))
    files = dict(_stated(repo, item.rfilename, item.size) for item in info.siblings or ())
    commit = info.sha or repo.revision or "main"
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise _odd(repo, "a commit", commit)
    return Listing(repo, commit, files)


def _stated(repo: RepoName, name: object, nbytes: object) -> tuple[str, int]:
    """A file's name and size, as the Hub states them.

    Raises:
        CkptconvError: the name leads out of the repository, or the size is not one.
    """
    if not isinstance(name, str) or not name.isprintable() or {"", ".", ".."} & set(name.split("/")):
        raise _odd(repo, "a file's name", name)
    if nbytes is not None and (type(nbytes) is not int or not 0 <= nbytes < 1 << 63):
        raise _odd(repo, f"the size of {name}", nbytes)
    return name, nbytes or 0


def _odd(repo: RepoName, what: str, found: object) -> errors.CkptconvError:
    return errors.CkptconvError(
        f"{repo}: what the Hub states is not {what}",
        found=brief(found),
        hint="check HF_ENDPOINT",
        kind=errors.Kind.DAMAGED,
    )
