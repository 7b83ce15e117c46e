"""Bounds on what a Hub may answer: a server that sends without end, or a byte a minute, ends in one error.

huggingface_hub reads an answer of the API whole before it looks at it, waits for one without a limit of time, and writes a
download to the disk until the server stops.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from ckptconv.errors import CkptconvError, Kind

MOST = 32 << 20  # bytes of an answer of the API: the list of 100,000 files has 25 MB
PATIENCE = 60.0  # seconds: for one read, and before the rate of a whole answer counts
SLOWEST = 1 << 10  # bytes per second over a whole answer
OURS = "ckptconv"  # in the user agent of our requests; others of this process are left alone
_LOCK = threading.Lock()
_UNPACKS = 1032  # deflate's largest ratio


@contextmanager
def bounded(most: int = MOST) -> Iterator[None]:
    """Bound every answer to a request of ours while the block runs.

    Args:
        most: bytes of one answer.

    Raises:
        CkptconvError: an answer is longer, or too slow.
    """
    from huggingface_hub.utils import get_session

    hooks = get_session().event_hooks

    def ask(request: Any) -> None:
        limits = request.extensions.get("timeout") or {}
        if OURS in request.headers.get("User-Agent", "") and limits.get("read") is None:
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), PATIENCE)

    def answered(response: Any) -> None:
        if OURS in response.request.headers.get("User-Agent", ""):
            packed = response.headers.get("Content-Encoding", "identity") != "identity"
            where = str(response.request.url.copy_with(query=None))
            stream = response.stream
            response.stream = _guard(_base_of(type(stream)))(
                stream, most // _UNPACKS if packed else most, where
            )

    # The lists are exchanged and not changed: another thread may be going through one of them.
    with _LOCK:
        hooks["request"], hooks["response"] = [*hooks["request"], ask], [*hooks["response"], answered]
    try:
        yield
    finally:
        with _LOCK:
            hooks["request"] = [hook for hook in hooks["request"] if hook is not ask]
            hooks["response"] = [hook for hook in hooks["response"] if hook is not answered]


def _base_of(kind: type) -> type:
    """The class of streams that this version of the HTTP library asks for: httpx and httpx2 each have one."""
    return next((base for base in kind.__mro__ if base.__name__ == "SyncByteStream"), object)


@cache
def _guard(base: type) -> type:
    class Guarded(base):  # type: ignore[misc, valid-type]
        """A body that ends with an error where it is longer than it may be, or slower."""

        def __init__(self, inner: Any, most: int, where: str) -> None:
            self._inner, self._most, self._where = inner, most, where

        def __iter__(self) -> Iterator[bytes]:
            begun, got = time.monotonic(), 0
            for part in self._inner:
                got += len(part)
                if got > self._most:
                    raise _refused(
                        "sends more than was announced", self._where, f"more than {self._most:,} bytes"
                    )
                spent = time.monotonic() - begun
                if spent > PATIENCE and got < SLOWEST * spent:
                    raise _refused("sends too slowly", self._where, f"{got:,} bytes in {spent:.0f} s")
                yield part

        def close(self) -> None:
            self._inner.close()

    return Guarded


def _refused(what: str, where: str, found: str) -> CkptconvError:
    return CkptconvError(
        f"the server {what}",
        where=where,
        found=found,
        hint="check HF_ENDPOINT and the proxies, and try again",
        kind=Kind.ENVIRONMENT,
    )
