"""Decide whether an argument is a local path or a Hub repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ckptconv.errors import CkptconvError, Kind

# Path("hf://a/b") drops one of the two slashes.
_SCHEME = re.compile(r"^hf:/{1,2}(?!/?buckets/)")  # hf://buckets/… is an address of a store
# The address of a model's page or of one of its files, with or without https:// (Path drops a slash there too).
_URL = re.compile(
    r"^(?:https?:/{1,2})?(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)/(?:models/)?(?P<name>[\w.-]+/[\w.-]+)"
    r"(?:/(?:tree|blob|resolve|commit)/(?P<revision>refs/pr/\d+|[^/?#]+)[^?#]*)?/?(?:[?#].*)?$"
)
_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>.+))?")


class RepoName(NamedTuple):
    """A model repository and one of its revisions.

    Args:
        name: "org/name".
        revision: a branch, a tag, a commit or refs/pr/N; None for main.
    """

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def model_name(reference: object) -> str | None:
    """The name of a model, without paths of this machine; None if there is none.

    Args:
        reference: what a file states. A repository's name stays as it is, a folder of huggingface_hub's cache becomes its
            repository, and of any other path the last part remains.
    """
    text = str(reference or "").rstrip("/\\")
    if not text or _NAME.fullmatch(text):
        return text or None
    return cached_name(text) or re.split(r"[/\\]", text)[-1]


def public_name(name: object) -> str | None:
    """The repository that a config names: `org/name`, or that of a folder in huggingface_hub's cache. None for a path."""
    text = name if isinstance(name, str) else ""
    return text if _NAME.fullmatch(text) and not Path(text).is_dir() else cached_name(text)


def cached_name(folder: object) -> str | None:
    """The repository of a folder in huggingface_hub's cache (.../models--org--name/snapshots/COMMIT), else None."""
    parts = re.split(r"[/\\]", str(folder))
    entry = next((part for part in parts if part.startswith("models--")), None)
    return entry and entry.removeprefix("models--").replace("--", "/", 1)


def without_address(text: str) -> str:
    """A repository's name for the address of its page: "https://huggingface.co/a/b/tree/v1" -> "hf://a/b@v1"."""
    found = _URL.match(text)
    if found is None:
        return text
    return f"hf://{found['name']}" + (f"@{found['revision']}" if found["revision"] else "")


def repo_of(path: str | Path, revision: str | None = None) -> RepoName | None:
    """The repository that the user names, or None if it is a path.

    Args:
        path: a path, "org/name", "org/name@revision", "hf://org/name" or the address of its page. A path that exists wins
            over a repository of the same name, unless hf:// is written.
        revision: a branch, tag or commit.

    Raises:
        CkptconvError: a revision is given for a path, or two different revisions are given.
    """
    text = without_address(str(path))
    scheme = _SCHEME.match(text)
    match = _NAME.fullmatch(text[scheme.end() :] if scheme else text)
    if match and (scheme or not Path(text).expanduser().exists()):
        own = match["revision"]
        if own and revision and own != revision:
            raise CkptconvError(
                "two revisions are given", found=f"{text} and --revision {revision}", kind=Kind.USAGE
            )
        return RepoName(match["name"], own or revision)
    if scheme:
        raise CkptconvError(f"{text} does not name a repository", wanted="hf://ORG/NAME", kind=Kind.USAGE)
    if revision is not None:
        raise CkptconvError(
            "--revision is only for Hub repos, and this is a local path",
            where=text,
            hint="a local folder wins over a repo of the same name; write hf://ORG/NAME for the Hub",
            kind=Kind.USAGE,
        )
    return None
