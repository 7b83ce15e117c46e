"""The table of endpoints, and those about users, repositories and pull requests.

Each is one function: (store, what was asked, the variable parts of the path) → Reply.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from urllib.parse import unquote

from . import buckets, transfer, xet
from .store import File, Pull, Refused, Repo, Store
from .wire import Asked, Reply, as_json


def answer(store: Store, mode: str, path: str, asked: Asked) -> Reply:
    """The reply of the first route that fits method and path; 404 where none does."""
    for methods, pattern, function in ROUTES:
        match = re.fullmatch(pattern, path)
        if match and asked.method in methods.split("|"):
            return function(store, asked, *(unquote(part or "") for part in match.groups()))
    raise Refused(404, "", f"no such endpoint in {mode} mode: {asked.method} {path}")


def whoami(store: Store, asked: Asked) -> Reply:
    if asked.user is None:
        raise Refused(401, "", "Invalid username or password.")
    orgs = [{"name": org, "type": "org"} for org in asked.user.orgs]
    role = "write" if asked.user.may_write else "read"
    token = {"accessToken": {"displayName": "test", "role": role}, "type": "access_token"}
    return as_json({"name": asked.user.name, "type": "user", "orgs": orgs, "auth": token})


def create(store: Store, asked: Asked) -> Reply:
    wanted = asked.json()
    if asked.user is None:
        raise Refused(401, "", "Invalid username or password.")
    space = wanted.get("organization") or asked.user.name
    name = f"{space}/{wanted['name']}"
    if space not in (asked.user.name, *asked.user.orgs) or not asked.user.may_write:
        raise Refused(403, "", f"You don't have the rights to create a model under the namespace {space!r}")
    made = name not in store.repos
    if made:
        store.create(name, wanted.get("visibility") == "private" or bool(wanted.get("private")))
    return as_json({"url": f"{asked.hub}/{name}", "name": name}, 200 if made else 409)


def auth_check(store: Store, asked: Asked, name: str, write: str) -> Reply:
    if write:
        store.writable(name, asked.user)
    else:
        store.readable(name, asked.user)
    return as_json({})


def validate_yaml(store: Store, asked: Asked) -> Reply:
    import yaml

    match = re.match(r"---\n(.*?)\n---", asked.json()["content"], re.S)
    try:
        yaml.safe_load(match[1] if match else "")
    except yaml.YAMLError:
        return as_json({"errors": [{"message": "bad YAML"}], "warnings": []}, 400)
    return as_json({"errors": [], "warnings": []})


def info(store: Store, asked: Asked, name: str, revision: str = "main") -> Reply:
    repo = store.visible(name, asked.user)
    commit = repo.at(revision)
    siblings = [{"rfilename": path} for path in sorted(commit.files)]
    if asked.query.get("blobs"):
        hashes = xet.hashes(store.cas)
        entries = (_entry(path, file, hashes) for path, file in sorted(commit.files.items()))
        siblings = [{**said, "rfilename": said["path"], "blobId": said["oid"]} for said in entries]
        for said in siblings:
            if "lfs" in said:
                said["lfs"] = {**said["lfs"], "sha256": said["lfs"]["oid"]}
    said = {"_id": name, "id": name, "sha": commit.oid, "private": repo.private, "tags": []}
    return as_json({**said, "siblings": siblings})


def tree(store: Store, asked: Asked, name: str, revision: str, under: str = "") -> Reply:
    files = store.visible(name, asked.user).at(revision).files
    hashes = xet.hashes(store.cas)
    inside = {path: file for path, file in files.items() if not under or path.startswith(f"{under}/")}
    if under and not inside:
        raise Refused(404, "EntryNotFound", f"{under} does not exist on {revision!r}")
    return as_json([_entry(path, file, hashes) for path, file in sorted(inside.items())])


def _entry(path: str, file: File, hashes: Mapping[str, str]) -> dict:
    entry: dict = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
    if file.sha256:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
        if file.sha256 in hashes:
            entry["xetHash"] = hashes[file.sha256]
    return entry


def refs(store: Store, asked: Asked, name: str) -> Reply:
    repo = store.visible(name, asked.user)
    branches = [
        {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": oid}
        for ref, oid in repo.refs.items()
        if not ref.startswith("refs/")
    ]
    return as_json({"branches": branches, "tags": [], "converts": []})


def branch(store: Store, asked: Asked, name: str, ref: str) -> Reply:
    repo = store.writable(name, asked.user, ref)
    if ref.startswith("refs/"):
        raise Refused(400, "", f"Invalid reference for a branch: {ref}")
    if ref in repo.refs:
        raise Refused(409, "", f"Reference already exists: refs/heads/{ref}")
    repo.refs[ref] = repo.at(asked.json().get("startingPoint", "main")).oid
    return as_json({})


def discussions(store: Store, asked: Asked, name: str) -> Reply:
    repo = store.visible(name, asked.user)
    if asked.method == "GET":
        found = [_pull(repo, pull) for pull in reversed(repo.pulls)]
        author = asked.query.get("author")
        found = [said for said in found if not author or said["author"]["name"] == author]
        return as_json({"discussions": found, "count": len(found), "start": 0})
    store.writable(name, asked.user, pull=True)
    assert asked.user is not None
    return as_json(_pull(repo, repo.pull(asked.user.name, asked.json()["title"])))


def discussion(store: Store, asked: Asked, name: str, num: str) -> Reply:
    repo = store.visible(name, asked.user)
    if int(num) > len(repo.pulls):
        raise Refused(404, "", "no such discussion")
    return as_json(_pull(repo, repo.pulls[int(num) - 1]))


def _pull(repo: Repo, pull: Pull) -> dict:
    return {
        "num": pull.num,
        "title": pull.title,
        "status": pull.status,
        "author": {"name": pull.author},
        "isPullRequest": True,
        "createdAt": "2026-01-01T00:00:00.000Z",
        "repo": {"name": repo.name, "type": "model"},
        "changes": {"base": "refs/heads/main"},
        "filesWithConflicts": [],
        "events": [],
    }


_REPO, _REV = r"([^/]+/[^/]+)", r"([^/]+)"
_MODEL = f"/api/models/{_REPO}"
ROUTES: tuple[tuple[str, str, Callable[..., Reply]], ...] = (
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/repos/create", create),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("GET", f"{_MODEL}/auth-check(/write)?", auth_check),
    ("GET", _MODEL, info),
    ("GET", f"{_MODEL}/revision/{_REV}", info),
    ("GET", f"{_MODEL}/tree/{_REV}", tree),
    ("GET", f"{_MODEL}/tree/{_REV}/(.+)", tree),
    ("GET", f"{_MODEL}/refs", refs),
    ("POST", f"{_MODEL}/branch/{_REV}", branch),
    ("POST", f"{_MODEL}/preupload/{_REV}", transfer.preupload),
    ("POST", f"{_MODEL}/commit/{_REV}", transfer.commit),
    ("GET|POST", f"{_MODEL}/discussions", discussions),
    ("GET", f"{_MODEL}/discussions/([0-9]+)", discussion),
    ("GET", f"{_MODEL}/xet-(read|write)-token/{_REV}", transfer.xet_token),
    ("POST", f"/{_REPO}[.]git/info/lfs/objects/batch", transfer.lfs_batch),
    ("PUT", "/lfs/([0-9a-f]{64})", transfer.lfs_put),
    ("POST", "/lfs-verify", transfer.lfs_verify),
    ("GET", f"/api/buckets/{_REPO}/tree(?:/(.+))?", buckets.tree),
    ("POST", f"/api/buckets/{_REPO}/paths-info", buckets.paths_info),
    ("GET|HEAD", f"/buckets/{_REPO}/resolve/(.+)", buckets.resolve),
    ("GET|HEAD", f"/{_REPO}/resolve/{_REV}/(.+)", transfer.resolve),
    ("GET|HEAD", "/storage/([0-9a-f]{64})", transfer.storage),
)
