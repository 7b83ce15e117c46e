"""What a Hub keeps: users, repositories, refs, commits and pull requests, and large files by sha256.

Plain state, no HTTP. Commit ids are hashes of their content, so a test run twice sees the same ones.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# A real Hub asks .gitattributes; one rule is enough here.
LARGE = re.compile(r"\.(safetensors|bin|pt|gguf)$")


class Refused(Exception):
    """An answer other than 2xx: status, X-Error-Code (or ""), one sentence."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class User:
    """One account and what its token may do."""

    name: str
    may_write: bool = True
    orgs: tuple[str, ...] = ()


@dataclass(frozen=True)
class File:
    """One file of a commit: data for a small one, sha256 for one whose bytes lie in large storage."""

    size: int
    data: bytes | None = None
    sha256: str | None = None

    @property
    def oid(self) -> str:
        """The git blob id; for a large file that of its LFS pointer."""
        data = self.data if self.data is not None else self.pointer
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        return text.encode()

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    """The whole tree at one commit, and its first line."""

    oid: str
    parent: str | None
    title: str
    files: Mapping[str, File]


@dataclass
class Pull:
    """A pull request; its commits are on refs/pr/num."""

    num: int
    author: str
    title: str
    status: str = "draft"


@dataclass
class Repo:
    """One model repository: commits by id, refs by name. gated: its files are for its owner alone."""

    name: str
    private: bool
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    pulls: list[Pull] = field(default_factory=list)

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a pull request's ref or a commit id names."""
        oid = self.refs.get(revision, revision)
        if oid not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[oid]

    def file(self, revision: str, path: str) -> File:
        files = self.at(revision).files
        if path not in files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        return files[path]

    def commit(self, ref: str, title: str, changes: Mapping[str, File | None]) -> Commit:
        """A new commit on ref; None removes a path."""
        parent = self.refs.get(ref)
        files = dict(self.commits[parent].files) if parent else {}
        for path, file in changes.items():
            files.pop(path, None)
            if file is not None:
                files[path] = file
        listing = json.dumps([parent, title, sorted((path, file.oid) for path, file in files.items())])
        commit = Commit(hashlib.sha1(listing.encode()).hexdigest(), parent, title, files)
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit

    def pull(self, author: str, title: str, status: str = "draft") -> Pull:
        """A new pull request that starts at main."""
        pull = Pull(len(self.pulls) + 1, author, title, status)
        self.pulls.append(pull)
        self.refs[f"refs/pr/{pull.num}"] = self.refs["main"]
        return pull


class Store:
    """Every repository of one Hub, and who may do what."""

    def __init__(self, root: Path, users: Mapping[str, User]) -> None:
        self.users = dict(users)
        self.repos: dict[str, Repo] = {}
        self.buckets: dict[str, dict[str, bytes]] = {}
        self.lfs = root / "lfs"
        self.cas = root / "cas"
        self.lfs.mkdir(parents=True)
        self.cas.mkdir()

    def create(self, name: str, private: bool = False) -> Repo:
        """A repository with the first commit that a Hub makes."""
        repo = self.repos[name] = Repo(name, private)
        rules = b"*.safetensors filter=lfs\n"
        repo.commit("main", "initial commit", {".gitattributes": File(len(rules), rules)})
        return repo

    def visible(self, name: str, user: User | None) -> Repo:
        """The repository, or 404 where it is missing or private to others."""
        repo = self.repos.get(name)
        if repo is None or (repo.private and not owns(user, name)):
            raise Refused(404, "RepoNotFound", "Repository not found")
        return repo

    def readable(self, name: str, user: User | None) -> Repo:
        """The repository for one who wants its files, or 403 where it is gated."""
        repo = self.visible(name, user)
        if repo.gated and not owns(user, name):
            raise Refused(403, "GatedRepo", f"Access to model {name} is restricted")
        return repo

    def writable(self, name: str, user: User | None, revision: str = "main", pull: bool = False) -> Repo:
        """The repository, or 403 where this user may not commit to this revision."""
        repo = self.visible(name, user)
        if user is None:
            raise Refused(401, "", "Invalid username or password.")
        theirs = re.fullmatch(r"refs/pr/(\d+)", revision)
        own_pull = theirs and any(p.num == int(theirs[1]) and p.author == user.name for p in repo.pulls)
        if not user.may_write or not (pull or own_pull or owns(user, name)):
            raise Refused(403, "", "Forbidden: pass a token with write access to this repository")
        return repo

    def large(self, sha256: str) -> Path:
        """Where the bytes of a large file lie once they were sent as LFS."""
        return self.lfs / sha256


def owns(user: User | None, name: str) -> bool:
    """True for a repository in the user's own namespace or in one of its organisations."""
    return user is not None and name.split("/")[0] in (user.name, *user.orgs)
