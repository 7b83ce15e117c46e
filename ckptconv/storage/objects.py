"""`Store` on obstore: S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage."""

from __future__ import annotations

import mmap
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from ckptconv.errors import CkptconvError, Kind
from ckptconv.storage.address import Address
from ckptconv.storage.base import Listed, Object
from ckptconv.storage.credentials import aws_profile
from ckptconv.storage.errors import ENDPOINTS, changed, explained, is_broken, is_busy
from ckptconv.storage.threads import interruptible

T = TypeVar("T")

_RETRIES = 6  # of one request by obstore, in about 3 seconds: errors 5xx, resets, timeouts
_PATIENCE = timedelta(seconds=60)  # for one request with its retries
_PAUSES = (
    0.2,
    0.8,
    3.2,
    12.8,
)  # seconds before it is repeated after that, where the server is busy or a body broke
_CHUNK = 1 << 20  # bytes of a body that are received together
_URL = re.compile(r"https?://[^\s/?#]+[^\s]*$", re.IGNORECASE)
_NEEDED = "pip install 'ckptconv[remote]'"


class Bucket:
    """A bucket, as `Store`. Its client sends nothing until it is asked.

    Args:
        address: the bucket.
        client: obstore's store.
    """

    least = 64 << 10

    def __init__(self, address: Address, client: Any) -> None:
        self._address, self._client = address._replace(key=""), client

    @property
    def address(self) -> Address:
        """See `Store`."""
        return self._address

    def below(self, key: str) -> Sequence[Object]:
        """See `Store`."""
        found = self._asked(key, lambda: self._client.list(key or None, chunk_size=1000).collect())
        return [_object(item) for item in found]

    def inside(self, key: str) -> Listed:
        """See `Store`."""
        found = self._asked(key, lambda: self._client.list_with_delimiter(key or None))
        return Listed([_object(item) for item in found["objects"]], list(found["common_prefixes"]))

    def look(self, key: str) -> Object | None:
        """See `Store`."""

        def head() -> Any:
            try:
                return self._client.head(key)
            except FileNotFoundError:
                return None

        found = self._asked(key, head)
        return None if found is None else _object(found)

    def fetch(self, item: Object, start: int, end: int) -> memoryview:
        """See `Store`."""
        body = _Body(end - start)

        def get() -> memoryview:
            options: dict[str, Any] = {"range": (start + body.received, end)}
            if item.version:
                options["if_match"] = item.version
            answer = self._client.get(item.key, options=options)
            if not item.is_same(_object(answer.meta)):
                raise changed(self._address._replace(key=item.key))
            return body.take(answer)

        return self._asked(item.key, get, lambda: body.received)

    def _asked(self, key: str, step: Callable[[], T], progress: Callable[[], int] = int) -> T:
        """What a step returns; Ctrl-C is heard while it waits."""
        return interruptible(lambda: self._repeated(key, step, progress))

    def _repeated(self, key: str, step: Callable[[], T], progress: Callable[[], int]) -> T:
        """What a step returns. obstore repeats requests that fail for some seconds; here they are asked for again.

        Args:
            key: the object, or folder.
            step: the step.
            progress: how far it is; a try that got further does not count, so that a slow link gets there.
        """
        pauses, before = iter(_PAUSES), progress()
        while True:
            try:
                return step()
            except CkptconvError:
                raise
            except BaseException as error:
                if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of Rust
                    raise
                if progress() > before:
                    pauses, before = iter(_PAUSES), progress()
                pause = next(pauses, None)
                if pause is None or not (is_broken(error) or is_busy(error)):
                    # Its text quotes requests, and may show keys.
                    raise explained(error, self._address._replace(key=key)) from None
            time.sleep(pause * (0.5 + random.random()))


class _Body:
    """A range of an object as it arrives: one buffer, and not the list of its parts next to the buffer made of them.

    Args:
        nbytes: its length.

    Attributes:
        received: the bytes that arrived before a connection broke; the next answer is of the others.
    """

    def __init__(self, nbytes: int) -> None:
        self.received, self._nbytes = 0, nbytes
        # A mapping goes back to the system at once.
        self._data = memoryview(mmap.mmap(-1, nbytes)) if nbytes > _CHUNK else memoryview(b"")

    def take(self, answer: Any) -> memoryview:
        """The whole range, with an answer's bytes at its end.

        Raises:
            ConnectionError: the answer has more or fewer bytes than it should; then nothing of it is kept.
        """
        if self._nbytes <= _CHUNK:
            data = memoryview(answer.bytes())
            self.received = len(data)
        else:
            data = self._data
            for part in answer.stream(min_chunk_size=_CHUNK):
                got = memoryview(part)
                self.received += len(got)
                if self.received > self._nbytes:
                    break
                data[self.received - len(got) : self.received] = got
        if self.received != self._nbytes:
            self.received = 0
            raise ConnectionError("the body has another length than its header says")
        return data


def bucket_of(address: Address) -> Bucket:
    """The bucket of an address, with credentials and settings from where the store's own tools take them.

    Raises:
        CkptconvError: obstore is not installed, or a setting is wrong.
    """
    if address.scheme == "hf":
        raise CkptconvError(
            "buckets of the Hub are opened by inspect, merge, verify and open", where=address, kind=Kind.USAGE
        )
    try:
        from obstore.store import AzureStore, GCSStore, S3Store
    except ImportError as error:
        raise CkptconvError(
            f"{address.scheme}:// needs the package obstore", hint=_NEEDED, kind=Kind.ENVIRONMENT
        ) from error
    _check_endpoint(address)
    # No client_options: with them obstore ignores those of the environment, such as AWS_ALLOW_HTTP.
    options: dict[str, Any] = {"retry_config": {"max_retries": _RETRIES, "retry_timeout": _PATIENCE}}
    try:
        if address.scheme == "s3":
            profile = aws_profile()
            _check_url(profile.get("endpoint"), "endpoint_url in the AWS profile")
            return Bucket(address, S3Store(address.bucket, **options, **profile))
        if address.scheme == "gs":
            return Bucket(address, GCSStore(address.bucket, **options))
        return Bucket(address, AzureStore(address.bucket, **options))
    except CkptconvError:
        raise
    except Exception as error:
        raise explained(error, address) from None


def _check_endpoint(address: Address) -> None:
    for name in ENDPOINTS[address.scheme]:
        _check_url(os.environ.get(name), name)


def _check_url(value: str | None, setting: str) -> None:
    """Refuse what is not the URL of a server: obstore panics at some. The value may hold a password and is not shown."""
    if value and not _URL.match(value):
        raise CkptconvError(
            f"{setting} is not the address of a server",
            wanted="http://HOST:PORT or https://HOST:PORT",
            hint="it begins with https://, or with http:// for a server without encryption",
            kind=Kind.USAGE,
        )


def _object(found: Any) -> Object:
    when: datetime = found["last_modified"]
    version = _quoted(found["e_tag"]) if found["e_tag"] else found["version"] or ""
    return Object(found["path"], found["size"], int(when.timestamp()) * 10**9, version)


def _quoted(tag: str) -> str:
    """An ETag with its quotes, which Azure's listings omit and its answers have; If-Match wants them (RFC 9110, 8.8.3)."""
    return tag if tag.endswith('"') else f'"{tag}"'
