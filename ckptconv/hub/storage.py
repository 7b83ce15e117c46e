"""The Hub as `Store`: the files of one commit of a repository, and buckets. Both are read by ranges.

huggingface_hub's own parse_safetensors_file_metadata always downloads the first 100 kB of a file, which may include weights.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ckptconv.backends.huggingface.weight_files import SMALL
from ckptconv.errors import CkptconvError, Kind
from ckptconv.hub.bounds import MOST, OURS
from ckptconv.hub.errors import scrub
from ckptconv.hub.fetch import download
from ckptconv.hub.names import RepoName
from ckptconv.hub.reading import Listing, api, asked, is_offline
from ckptconv.storage.address import Address
from ckptconv.storage.base import Listed, Object
from ckptconv.storage.errors import changed


class Repository:
    """The files of one commit. The indexes and configs are downloaded into huggingface_hub's cache, and read there.

    Args:
        contents: what the commit holds.
    """

    least = 0  # no byte of the weights is fetched with a header

    def __init__(self, contents: Listing) -> None:
        self.address = Address("hf", contents.repo.name, "")
        self._contents = contents
        self._objects = {
            name: Object(name, nbytes, 0, contents.commit) for name, nbytes in contents.files.items()
        }
        self._lock = threading.Lock()
        self._cached: Path | None = None

    def below(self, key: str) -> Sequence[Object]:
        """See `Store`."""
        return [item for name, item in self._objects.items() if not key or name.startswith(f"{key}/")]

    def inside(self, key: str) -> Listed:
        """See `Store`."""
        start = len(key) + 1 if key else 0
        found = self.below(key)
        folders = {item.key[: item.key.index("/", start)] for item in found if "/" in item.key[start:]}
        return Listed([item for item in found if "/" not in item.key[start:]], sorted(folders))

    def look(self, key: str) -> Object | None:
        """See `Store`."""
        return self._objects.get(key)

    def fetch(self, item: Object, start: int, end: int) -> memoryview:
        """See `Store`."""
        if item.key in SMALL:
            return memoryview((self._small() / item.key).read_bytes())[start:end]
        from huggingface_hub import constants, hf_hub_url

        repo = self._contents.repo
        url = hf_hub_url(repo.name, item.key, revision=self._contents.commit, endpoint=constants.ENDPOINT)
        return _range(repo, item, url, start, end)

    def _small(self) -> Path:
        """The folder in huggingface_hub's cache with the small files, which are downloaded together."""
        with self._lock:
            if self._cached is None:
                names = [name for name in SMALL if name in self._objects]
                self._cached = download(self._contents.repo, names, self._contents.commit)
            return self._cached


class HubBucket:
    """A bucket on the Hub. Source: huggingface_hub, hf_api.py, list_bucket_tree and get_bucket_file_metadata.

    Args:
        address: a place in the bucket.

    Raises:
        CkptconvError: the installed huggingface_hub does not know buckets, or HF_HUB_OFFLINE is set.
    """

    least = 64 << 10

    def __init__(self, address: Address) -> None:
        self.address = address._replace(key="")
        self._name = RepoName(address.bucket)  # its page is ENDPOINT/buckets/ORG/NAME
        self._id = address.bucket.partition("/")[2]
        if not hasattr(api(), "list_bucket_tree"):
            raise CkptconvError(
                "this huggingface_hub does not know buckets",
                where=address,
                hint="pip install --upgrade huggingface_hub",
                kind=Kind.ENVIRONMENT,
            )
        if is_offline():
            raise CkptconvError(
                "HF_HUB_OFFLINE is set, and a bucket is never in the cache",
                where=address,
                hint="unset HF_HUB_OFFLINE",
                kind=Kind.ENVIRONMENT,
            )

    def below(self, key: str) -> Sequence[Object]:
        """See `Store`."""
        return self._list(key, recursive=True).objects

    def inside(self, key: str) -> Listed:
        """See `Store`."""
        return self._list(key, recursive=False)

    def look(self, key: str) -> Object | None:
        """See `Store`."""
        found = asked(self._name, lambda: list(api().get_bucket_paths_info(self._id, [key])))
        return next((_object(item) for item in found if item.path == key), None)

    def fetch(self, item: Object, start: int, end: int) -> memoryview:
        """See `Store`."""
        from huggingface_hub import constants

        url = f"{constants.ENDPOINT}/{self.address.bucket}/resolve/{quote(item.key, safe='')}"
        return _range(self._name, item, url, start, end)

    def _list(self, key: str, recursive: bool) -> Listed:
        """What is below a folder. The Hub takes the folder for the beginning of names, and `run` would find `run-2` too."""

        def step() -> list[Any]:
            from huggingface_hub.errors import EntryNotFoundError

            try:
                return list(api().list_bucket_tree(self._id, prefix=key or None, recursive=recursive))
            except EntryNotFoundError:
                return []

        found = [item for item in asked(self._name, step) if not key or item.path.startswith(f"{key}/")]
        files = [_object(item) for item in found if item.type == "file"]
        return Listed(files, [item.path for item in found if item.type != "file"])


def _object(found: Any) -> Object:
    when = found.mtime or found.uploaded_at
    return Object(found.path, found.size, int(when.timestamp()) * 10**9 if when else 0, found.xet_hash or "")


def _range(repo: RepoName, item: Object, url: str, start: int, end: int) -> memoryview:
    """The bytes [start, end) of a file.

    Raises:
        CkptconvError: the answer has other bytes.
    """
    if start == end:
        return memoryview(b"")
    return memoryview(asked(repo, lambda: _request(repo, item, url, start, end), max(MOST, end - start)))


def _request(repo: RepoName, item: Object, url: str, begin: int, end: int) -> bytes:
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    where = f"{repo.name}/{item.key}"
    wanted = {**build_hf_headers(library_name=OURS), "Range": f"bytes={begin}-{end - 1}"}
    # The length counts bytes on the wire, so the body must not be compressed.
    wanted["Accept-Encoding"] = "identity"
    with http_stream_backoff("GET", url, headers=wanted, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
        hf_raise_for_status(answer)
        for step in (*answer.history, answer):
            tag = step.headers.get("X-Xet-Hash", "")
            if tag and len(tag) == len(item.version) and tag != item.version:
                raise changed(Address("hf", repo.name, item.key))
        length = answer.headers.get("Content-Length", "")
        if answer.status_code != 206 or length != str(end - begin):  # the body has not been read yet
            raise CkptconvError(
                "the Hub's storage does not support range requests, so the headers cannot be read on their own",
                where=where,
                found=f"status {answer.status_code}, {length or 'unknown'} bytes",
                wanted=f"206 with {end - begin} bytes",
                hint=f"hf download {repo.name}, then name the folder",
                kind=Kind.ENVIRONMENT,
            )
        stated = answer.headers.get("Content-Range", "")
        if stated and not stated.startswith(f"bytes {begin}-{end - 1}/"):
            raise CkptconvError(
                "the Hub's storage answered with other bytes than were asked for",
                where=where,
                found=scrub(stated, None)[:80],
                wanted=f"bytes {begin}-{end - 1}",
                kind=Kind.ENVIRONMENT,
            )
        return bytes(answer.read())
