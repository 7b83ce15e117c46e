"""The endpoints of buckets, as huggingface_hub 2.4 asks them: a listing in pages, what is known of some paths, and download.

A bucket has no commits. A file's bytes are on the storage host, at an address of their own for each content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from .store import Refused, Store, owns
from .transfer import part
from .wire import Asked, Reply, as_json

PAGE = 1000


def _files(store: Store, asked: Asked, name: str) -> Mapping[str, bytes]:
    files = store.buckets.get(name)
    if files is None or not owns(asked.user, name):
        raise Refused(404, "RepoNotFound", "Repository not found")
    return files


def _entry(path: str, data: bytes) -> dict:
    when = "2026-01-01T00:00:00.000Z"
    entry = {"type": "file", "path": path, "size": len(data), "xetHash": hashlib.sha256(data).hexdigest()}
    return {**entry, "mtime": when, "uploadedAt": when}


def tree(store: Store, asked: Asked, name: str, prefix: str = "") -> Reply:
    """What is below a prefix; like the Hub's, it is one of names and not of folders where the listing is recursive."""
    files = _files(store, asked, name)
    if asked.query.get("recursive") == "true":
        found = [_entry(path, data) for path, data in sorted(files.items()) if path.startswith(prefix)]
    else:
        start = f"{prefix}/" if prefix else ""
        inside = {path: data for path, data in sorted(files.items()) if path.startswith(start)}
        folders = {start + path[len(start) :].split("/")[0] for path in inside if "/" in path[len(start) :]}
        found = [{"type": "directory", "path": folder} for folder in sorted(folders)]
        found += [_entry(path, data) for path, data in inside.items() if "/" not in path[len(start) :]]
    at = int(asked.query.get("cursor", "0"))
    headers = {}
    if at + PAGE < len(found):
        recursive = asked.query.get("recursive", "false")
        headers["Link"] = f'<{asked.hub}{asked.path}?recursive={recursive}&cursor={at + PAGE}>; rel="next"'
    return as_json(found[at : at + PAGE], headers=headers)


def paths_info(store: Store, asked: Asked, name: str) -> Reply:
    files = _files(store, asked, name)
    return as_json([_entry(path, files[path]) for path in asked.json()["paths"] if path in files])


def resolve(store: Store, asked: Asked, name: str, path: str) -> Reply:
    files = _files(store, asked, name)
    if path not in files:
        raise Refused(404, "EntryNotFound", "Entry not found")
    digest = hashlib.sha256(files[path]).hexdigest()
    store.large(digest).write_bytes(files[path])
    headers = {"X-Xet-Hash": digest, "X-Linked-Size": str(len(files[path])), "ETag": f'"{digest}"'}
    if asked.method == "HEAD":
        return part(asked, files[path], headers)
    return Reply(302, b"", {**headers, "Location": f"{asked.storage}/storage/{digest}?Signature=abc"})
