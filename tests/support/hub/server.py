"""The Hub's HTTP API on 127.0.0.1, as far as huggingface_hub 1 and 2 use it to push and to load a model.

`Hub` starts and stops it, keeps every request, and can be told to fail some of them.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from . import routes, xet
from .store import Refused, Store, User
from .wire import Asked, Reply, refusal

TOKEN = "hf_aliceAliceAliceAliceAliceAlice01"  # may write alice/* and lab/*
READ_TOKEN = "hf_readOnlyReadOnlyReadOnlyReadOn2"  # alice again, a token without write access
OTHER_TOKEN = "hf_bobBobBobBobBobBobBobBobBobBob03"
USERS = {
    TOKEN: User("alice", orgs=("lab",)),
    READ_TOKEN: User("alice", may_write=False, orgs=("lab",)),
    OTHER_TOKEN: User("bob"),
}


@dataclass(frozen=True)
class Seen:
    """One request as it came, the status of its answer (0: none was given) and the bytes of its body."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    status: int
    sent: int = 0

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Fault:
    """Fail requests whose "METHOD /path" matches: after `skip` good ones, `times` of them.

    how: a status, "drop" (the connection ends without an answer) or "hang" (no answer until the Hub stops).
    """

    pattern: str
    how: int | str
    skip: int = 0
    times: int = 1

    def strikes(self, request: str) -> bool:
        if self.times < 1 or not re.search(self.pattern, request):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass
class Hub:
    """A running Hub. seen: the requests so far; hanging: set once a request hangs.

    ignore_ranges: answer a request for a part with the whole, as some proxies do.
    """

    root: Path
    mode: str = "xet"
    ignore_ranges: bool = False
    seen: list[Seen] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lies: list[tuple[str, Callable[[Handler], None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = Store(self.root, USERS)
        self.lock = threading.RLock()
        self.hanging, self.released = threading.Event(), threading.Event()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        # Two origins, as on the Hub: its API, and the storage that it sends readers of large files to.
        self._servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def storage(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def fail(self, pattern: str, how: int | str, skip: int = 0, times: int = 1) -> None:
        """Arrange one fault."""
        self.faults.append(Fault(pattern, how, skip, times))

    def lie(self, pattern: str, how: Callable[[Handler], None]) -> None:
        """Let `how` answer the requests whose "METHOD /path" matches, in its own way."""
        self.lies.append((pattern, how))

    def requests(self, pattern: str) -> list[Seen]:
        """The requests so far whose "METHOD /path" matches."""
        return [seen for seen in self.seen if re.search(pattern, str(seen))]

    def content_bytes(self) -> int:
        """How many bytes of large files were sent so far."""
        if self.mode == "xet":
            return xet.stored_bytes(self.store.cas)
        return sum(len(seen.body) for seen in self.requests(r"^PUT /lfs/"))

    def stop(self) -> None:
        self.released.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing where a client was killed; every other error is a bug in the Hub."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Read a request, maybe fail it, hand it to its route, write the answer."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the tests read `seen`."""

    def _answer(self) -> None:
        body = self._body()
        for pattern, lie in self.hub.lies:
            if re.search(pattern, f"{self.command} {self.path}"):
                self._note(body, -1)
                self.close_connection = True
                with contextlib.suppress(OSError):  # the client has had enough
                    lie(self)
                return
        how = self._fault()
        if how == "hang":
            self.hub.hanging.set()
            self.hub.released.wait(60)
            how = "drop"
        if how == "drop":
            self._note(body, 0)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        reply = self._route(body, int(how) if how else 0)
        self._note(body, reply.status, len(reply.body))
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(reply.size if reply.size is not None else len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _route(self, body: bytes, forced: int) -> Reply:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        if self.hub.ignore_ranges:
            headers.pop("range", None)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        try:
            if forced:
                raise Refused(forced, "", f"arranged failure {forced}")
            with self.hub.lock:
                asked = Asked(
                    self.command,
                    unquote(parts.path),
                    query,
                    body,
                    self._user(),
                    headers,
                    self.hub.url,
                    self.hub.storage,
                )
                return routes.answer(self.hub.store, self.hub.mode, parts.path, asked)
        except Refused as refused:
            return refusal(refused)

    def _user(self) -> User | None:
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        if not scheme:
            return None
        user = self.hub.store.users.get(token)
        if user is None:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return user

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("transfer-encoding", ""):
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _fault(self) -> int | str | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.strikes(f"{self.command} {self.path}"):
                    return fault.how
        return None

    def _note(self, body: bytes, status: int, sent: int = 0) -> None:
        with self.hub.lock:
            headers = dict(self.headers.items())
            self.hub.seen.append(Seen(self.command, self.path, headers, body, status, sent))
