"""The endpoints that move files: preupload, LFS, Xet tokens, commit and download."""

from __future__ import annotations

import base64
import hashlib
import json
import re

from . import xet
from .store import LARGE, Commit, File, Refused, Store
from .wire import Asked, Reply, as_json


def preupload(store: Store, asked: Asked, name: str, revision: str) -> Reply:
    files = store.writable(name, asked.user, revision, asked.pull).at(revision).files
    said = []
    for wanted in asked.json()["files"]:
        path = wanted["path"]
        mode = "lfs" if LARGE.search(path) else "regular"
        oid = files[path].etag if path in files else None
        said.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return as_json({"files": said})


def xet_token(store: Store, asked: Asked, name: str, kind: str, revision: str) -> Reply:
    if kind == "write":
        store.writable(name, asked.user, revision, asked.pull)
    else:
        store.visible(name, asked.user)
    said = xet.token_answer(store.cas)
    names = {"X-Xet-Cas-Url": "casUrl", "X-Xet-Access-Token": "accessToken", "X-Xet-Token-Expiration": "exp"}
    return as_json(said, headers={header: str(said[key]) for header, key in names.items()})


def lfs_batch(store: Store, asked: Asked, name: str) -> Reply:
    wanted = asked.json()
    store.writable(name, asked.user, wanted.get("ref", {}).get("name", "main"), pull=True)
    objects = []
    for item in wanted["objects"]:
        said = {"oid": item["oid"], "size": item["size"]}
        if not store.large(item["oid"]).exists():
            said["actions"] = {
                "upload": {"href": f"{asked.hub}/lfs/{item['oid']}"},
                "verify": {"href": f"{asked.hub}/lfs-verify"},
            }
        objects.append(said)
    return as_json({"transfer": "basic", "objects": objects})


def lfs_put(store: Store, asked: Asked, oid: str) -> Reply:
    if hashlib.sha256(asked.body).hexdigest() != oid:
        raise Refused(400, "", "the content does not match its sha256")
    store.large(oid).write_bytes(asked.body)
    return Reply()


def lfs_verify(store: Store, asked: Asked) -> Reply:
    wanted = asked.json()
    path = store.large(wanted["oid"])
    if not path.exists() or path.stat().st_size != wanted["size"]:
        raise Refused(404, "", "no such object")
    return as_json({})


def commit(store: Store, asked: Asked, name: str, revision: str) -> Reply:
    repo = store.writable(name, asked.user, revision, asked.pull)
    if revision not in repo.refs:
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    lines = [json.loads(line) for line in asked.body.splitlines()]
    header = lines[0]["value"]
    if header.get("parentCommit", repo.refs[revision]) != repo.refs[revision]:
        raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
    changes = dict(_change(store, line["key"], line["value"]) for line in lines[1:])
    said: dict = {"success": True}
    if asked.pull:
        assert asked.user is not None
        pull = repo.pull(asked.user.name, header["summary"], "open")
        revision = f"refs/pr/{pull.num}"
        said["pullRequestUrl"] = f"{asked.hub}/{name}/discussions/{pull.num}"
    made = repo.commit(revision, header["summary"], changes)
    return as_json({**said, "commitOid": made.oid, "commitUrl": f"{asked.hub}/{name}/commit/{made.oid}"})


def _change(store: Store, key: str, value: dict) -> tuple[str, File | None]:
    if key == "deletedFile":
        return value["path"], None
    if key == "file":
        data = base64.b64decode(value["content"])
        return value["path"], File(len(data), data)
    oid = value["oid"]
    if not store.large(oid).exists() and oid not in xet.hashes(store.cas):
        raise Refused(400, "", f"{value['path']}: its content was never sent")
    return value["path"], File(value["size"], sha256=oid)


def resolve(store: Store, asked: Asked, name: str, revision: str, path: str) -> Reply:
    """A small file's bytes; for a large one what is known of it, and where its bytes lie: on another host."""
    repo = store.readable(name, asked.user)
    at: Commit = repo.at(revision)
    file = repo.file(revision, path)
    headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": at.oid, "Accept-Ranges": "bytes"}
    if file.data is not None:
        return part(asked, file.data, headers)
    headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": headers["ETag"]}
    xet_hash = xet.hashes(store.cas).get(file.sha256 or "")
    if xet_hash:
        refresh = f"{asked.hub}/api/models/{name}/xet-read-token/{at.oid}"
        headers |= {"X-Xet-Hash": xet_hash, "X-Xet-Refresh-Route": refresh}
        headers |= {"Link": f'<{refresh}>; rel="xet-auth"'}
    address = f"{asked.storage}/storage/{file.sha256}?Signature=abc&size={file.size}"
    return Reply(302, b"", {**headers, "Location": address})


def storage(store: Store, asked: Asked, oid: str) -> Reply:
    """The bytes of a large file, on a host of their own: who has the signed address needs no token."""
    if asked.query.get("Signature") != "abc":
        raise Refused(403, "", "the address is not signed")
    path, xet_hash = store.large(oid), xet.hashes(store.cas).get(oid)
    if xet_hash and not path.exists():
        xet.fetch(store.cas, xet_hash, int(asked.query["size"]), path)
    return part(asked, path.read_bytes(), {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})


def part(asked: Asked, data: bytes, headers: dict[str, str]) -> Reply:
    """All of it, or with `Range: bytes=A-B` these bytes; a HEAD gets no body."""
    if asked.method == "HEAD":
        return Reply(200, b"", headers, size=len(data))
    if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("range") or ""):
        low, high = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        headers = {**headers, "Content-Range": f"bytes {low}-{high}/{len(data)}"}
        return Reply(206, data[low : high + 1], headers)
    return Reply(200, data, headers)
