"""A proxy in front of an S3 server: it records each request, and fails those that a test chooses."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Request(NamedTuple):
    """A request: its number among all (from 0), method, path with query, range ("bytes=0-9") or "", if it has a token."""

    number: int
    method: str
    path: str
    range: str
    has_token: bool


class Proxy:
    """A running proxy.

    Attributes:
        requests: all so far.
        fail: fail(request) -> None to pass it on; a status to answer with; "reset" to break the connection before the
            answer, "half" in the middle of its body. It may change the store before it returns None.
    """

    def __init__(self, port: int) -> None:
        self.requests: list[Request] = []
        self.fail: Callable[[Request], int | str | None] = lambda request: None
        self.lock = threading.Lock()
        self.target = port
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy.handle(self)

            do_GET = do_HEAD = do_PUT = handle_any

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def handle(self, client: BaseHTTPRequestHandler) -> None:
        with self.lock:
            request = Request(
                len(self.requests),
                client.command,
                client.path,
                client.headers.get("Range", ""),
                "x-amz-security-token" in client.headers,
            )
            self.requests.append(request)
        fault = self.fail(request)
        if fault == "reset":
            client.connection.shutdown(socket.SHUT_RDWR)
            client.close_connection = True
            return
        if isinstance(fault, int):
            client.send_response(fault)
            client.send_header("Content-Length", "0")
            client.end_headers()
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.target, timeout=60)
        try:
            upstream.request(client.command, client.path, headers=dict(client.headers))
            answer = upstream.getresponse()
            body = answer.read()
        finally:
            upstream.close()
        client.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                client.send_header(name, value)
        if "Content-Length" not in answer.headers:
            client.send_header("Content-Length", str(len(body)))
        client.end_headers()
        if fault == "half":
            client.wfile.write(body[: len(body) // 2])
            client.wfile.flush()
            client.connection.shutdown(socket.SHUT_RDWR)
            client.close_connection = True
            return
        client.wfile.write(body)


@contextmanager
def proxied(port: int) -> Iterator[Proxy]:
    """A proxy in front of the server at a port of this machine."""
    proxy = Proxy(port)
    thread = threading.Thread(target=proxy.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.server.shutdown()
        proxy.server.server_close()
