"""Decide whether an argument is a local path or a Hub repository."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ckptconv.errors import CkptconvError

# Path("hf://a/b") has lost one of its slashes.
_SCHEME = re.compile(r"^hf:/{1,2}")
_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>.+))?")


@dataclass(frozen=True, slots=True)
class RepoName:
    """A model repository and one of its revisions: a branch, a tag, a commit, refs/pr/N. None: main."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def model_name(said: object) -> str | None:
    """How a model that a file or a folder names is called, without this machine's paths; None where it is not.

    A repository's name is itself; a folder of huggingface_hub's cache is its repository; of a path the last part is left.
    """
    text = str(said or "").rstrip("/\\")
    if not text or _NAME.fullmatch(text):
        return text or None
    return cached_name(text) or re.split(r"[/\\]", text)[-1]


def cached_name(folder: object) -> str | None:
    """The repository whose folder in huggingface_hub's cache this is: .../models--org--name/snapshots/COMMIT."""
    parts = re.split(r"[/\\]", str(folder))
    found = next((part for part in parts if part.startswith("models--")), None)
    return found and found.removeprefix("models--").replace("--", "/", 1)


def repo_of(path: str | Path, revision: str | None = None) -> RepoName | None:
    """The repository that a user means, or None where it is a path.

    `org/name`, `org/name@revision` and `hf://org/name`. Whatever is there on this disk wins over a repository of the
    same name, unless it is spelled with hf://.
    Raises CkptconvError for a revision of something that is no repository, and for two different ones.
    """
    text = str(path)
    scheme = _SCHEME.match(text)
    match = _NAME.fullmatch(text[scheme.end() :] if scheme else text)
    if match and (scheme or not Path(text).expanduser().exists()):
        own = match["revision"]
        if own and revision and own != revision:
            raise CkptconvError("two revisions are given", found=f"{text} and --revision {revision}")
        return RepoName(match["name"], own or revision)
    if scheme:
        raise CkptconvError(f"{text} does not name a repository", wanted="hf://ORG/NAME")
    if revision is not None:
        raise CkptconvError(
            "--revision is only for Hub repos, and this is a local path",
            where=text,
            hint="a local folder wins over a repo of the same name; write hf://ORG/NAME for the Hub",
        )
    return None
