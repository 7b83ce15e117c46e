"""A Hub that means harm, or a proxy that is broken: one clear error in bounded time and memory, and nothing is written."""

from __future__ import annotations

import gzip
import json
import resource
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.helpers import Ran, assert_one_error, cli
from support.hub import Hub
from support.hub.server import TOKEN, Handler

from ckptconv.commands.push.run import Pushed
from ckptconv.hub import bounds

pytest_plugins = ["support.hub.fixture"]

Push = Callable[..., Pushed]
LIST, FILE = r"^GET /api/models/", r"^GET /(alice/tiny/resolve|storage)/"
PACKED = gzip.compress(b" " * (32 << 20))
SECONDS, GROWTH = 20, 200 << 20  # the machine may be busy


@pytest.fixture
def repo(hub: Hub, send: Push) -> str:
    send()
    hub.seen.clear()
    return "alice/tiny"


class Stranger:
    """Another host, which keeps what it is sent."""

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []
        seen = self.headers

        class Keeps(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append(dict(self.headers.items()))
                body = json.dumps({"_id": "x", "id": "alice/tiny", "siblings": []}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body if self.command == "GET" else b"")

            do_HEAD = do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Keeps)
        self.url = f"http://localhost:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    found = Stranger()
    yield found
    found.stop()


def answer(handler: Handler, status: int, headers: dict[str, str], *body: bytes) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    for part in body:
        handler.wfile.write(part)


def endless(handler: Handler) -> None:
    """A body in chunks that never ends."""
    answer(handler, 200, {"Transfer-Encoding": "chunked", "Content-Type": "application/json"})
    while True:
        handler.wfile.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")


def slow(handler: Handler) -> None:
    """A byte now and then, often enough for every limit on a single read."""
    answer(handler, 200, {"Content-Length": "1000000", "Content-Type": "application/json"})
    while not handler.hub.released.wait(0.05):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def silent(handler: Handler) -> None:
    handler.hub.released.wait(60)


def bomb(handler: Handler) -> None:
    """A gigabyte of spaces in a megabyte, although the request asks for nothing compressed."""
    packed = PACKED * 32
    headers = {
        "Content-Encoding": "gzip",
        "Content-Type": "application/json",
        "Content-Length": str(len(packed)),
    }
    answer(handler, 200, headers, packed)


def page(handler: Handler) -> None:
    body = b"<html>Please sign in to the hotel's network</html>"
    answer(handler, 200, {"Content-Type": "text/html", "Content-Length": str(len(body))}, body)


def short(handler: Handler) -> None:
    """Fewer bytes than Content-Length promises, and then the end."""
    answer(handler, 206, {"Content-Length": "8", "Content-Range": "bytes 0-7/100"}, b"\x10\0")
    handler.connection.close()


def loop(handler: Handler) -> None:
    answer(handler, 302, {"Location": handler.path, "Content-Length": "0"})


def listing(**files: object) -> Callable[[Handler], None]:
    def how(handler: Handler) -> None:
        siblings = [{"rfilename": name, "size": size} for name, size in files.items()]
        body = json.dumps({"_id": "x", "id": "alice/tiny", "sha": "c" * 40, "siblings": siblings}).encode()
        answer(handler, 200, {"Content-Type": "application/json", "Content-Length": str(len(body))}, body)

    return how


def table(value: Any) -> Callable[[Handler], None]:
    def how(handler: Handler) -> None:
        body = json.dumps(value).encode()
        answer(handler, 200, {"Content-Type": "application/json", "Content-Length": str(len(body))}, body)

    return how


LIES: dict[str, tuple[str, Callable[[Handler], None], str]] = {
    "an endless list": (LIST, endless, "sends more than was announced"),
    "a list that drips": (LIST, slow, "sends too slowly"),
    "no answer": (LIST, silent, "does not answer"),
    "a bomb of gzip": (LIST, bomb, "sends more than was announced"),
    "a page for people": (LIST, page, "does not respond like a Hub"),
    "redirects in a circle": (LIST, loop, "broke|could not be read"),
    "another kind of table": (LIST, table([1, 2]), "could not be read|does not respond like a Hub"),
    "files that are none": (LIST, table({"id": "a/b", "siblings": [5]}), "could not be read"),
    "a path out of the folder": (LIST, listing(**{"../../x.safetensors": 1}), "is not a file's name"),
    "a negative size": (LIST, listing(**{"model.safetensors": -5}), "is not the size of model.safetensors"),
    "a size in words": (
        LIST,
        listing(**{"model.safetensors": "huge"}),
        "is not the size of model.safetensors",
    ),
    "a header that drips": (FILE, slow, "sends too slowly|does not support range requests"),
    "a header without end": (FILE, endless, "does not support range requests|sends more"),
    "a header that is cut": (FILE, short, "broke|could not be read"),
    "a page in the place of weights": (FILE, page, "does not support range requests|could not be read"),
}


def bound(monkeypatch: pytest.MonkeyPatch, most: int = 1 << 20) -> None:
    """The bounds of a test: as in life, but sooner."""
    monkeypatch.setattr(bounds, "PATIENCE", 1.0)
    monkeypatch.setattr("ckptconv.hub.reading.MOST", most)
    monkeypatch.setattr("ckptconv.hub.fetch.MOST", most)
    monkeypatch.setattr("ckptconv.hub.storage.MOST", most)


def within_bounds(call: Callable[[], Ran]) -> Ran:
    """The command's end, if it takes no longer and no more memory than it may."""
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ran = call()
    assert time.monotonic() - begun < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < GROWTH
    return ran


@pytest.mark.parametrize("name", LIES)
def test_inspect_of_a_lying_hub_ends_in_one_error(
    hub: Hub, repo: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern, how, says = LIES[name]
    bound(monkeypatch)
    hub.lie(pattern, how)
    ran = within_bounds(lambda: cli("inspect", repo))
    assert_one_error(ran, says)
    assert "unexpected error" not in ran.err
    assert TOKEN not in ran.out + ran.err
    assert "x.safetensors" not in {path.name for path in tmp_path.rglob("*")}


@pytest.mark.parametrize("how", [endless, slow, page], ids=lambda how: how.__name__)
def test_a_download_that_is_not_what_was_listed_is_not_merged(
    hub: Hub, repo: str, how: Callable[[Handler], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hub.mode == "xet":
        pytest.skip("these bytes come through hf_xet, which checks their hashes")
    bound(monkeypatch)
    hub.lie(r"^GET /storage/", how)
    ran = within_bounds(lambda: cli("merge", repo, tmp_path / "out"))
    assert_one_error(ran, "sends more than was announced|sends too slowly|could not be read|broke|size")
    assert not (tmp_path / "out").exists()
    assert sum(path.stat().st_size for path in tmp_path.glob("hf_home/**/*.incomplete")) < 4 << 20


def test_sizes_that_no_disk_has_are_refused_before_the_download(hub: Hub, repo: str, tmp_path: Path) -> None:
    hub.lie(LIST, listing(**{"config.json": 100, "model.safetensors": 1 << 60}))
    ran = within_bounds(lambda: cli("merge", repo, tmp_path / "out"))
    assert_one_error(ran, "not enough room on the disk of huggingface_hub's cache")
    assert hub.requests(r"/resolve/") == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pattern", [LIST, r"^(GET|HEAD) /alice/tiny/resolve/"], ids=["list", "file"])
@pytest.mark.parametrize("command", ["inspect", "merge"])
def test_a_token_follows_no_redirect_to_another_host(
    hub: Hub, repo: str, stranger: Stranger, pattern: str, command: str, tmp_path: Path
) -> None:
    def away(handler: Handler) -> None:
        answer(handler, 302, {"Location": f"{stranger.url}{handler.path}", "Content-Length": "0"})

    hub.lie(pattern, away)
    words = [command, repo] if command == "inspect" else [command, repo, tmp_path / "out"]
    ran = within_bounds(lambda: cli(*words))
    assert ran.code == 2
    assert not (tmp_path / "out").exists()
    assert any(TOKEN in seen.headers.get("authorization", "") for seen in hub.seen)
    for headers in stranger.headers:
        assert TOKEN not in json.dumps(headers)
    if pattern == LIST:
        assert stranger.headers, "the redirect was followed, without the token"


def test_bounds_are_for_requests_of_ours(hub: Hub, repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread of a program may download through the same client meanwhile."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import get_session

    before = {name: list(hooks) for name, hooks in get_session().event_hooks.items()}
    with bounds.bounded(most=10):
        assert HfApi(endpoint=hub.url, token=TOKEN).model_info(repo).id == repo
    assert get_session().event_hooks == before
