"""A fast S3 server for benchmarks: read-only, one bucket per folder, no signatures checked, bytes sent by sendfile.

    python -m benchmarks.store_server FOLDER [--latency SECONDS]    # prints its port; ends with its standard input

It speaks ListObjectsV2, HeadObject and GetObject with ranges and If-Match, as much as an S3 client needs to read.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_PAGE = 1000


class Server(ThreadingHTTPServer):
    """Serves a folder; counts what it is asked."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root: Path, latency: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.latency = root, latency
        self.counts: dict[str, int] = {}
        self.lock = threading.Lock()

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.answer(True)

    def do_HEAD(self) -> None:
        self.answer(False)

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, with_body: bool) -> None:
        if self.server.latency:
            time.sleep(self.server.latency)
        url = urlsplit(self.path)
        path = unquote(url.path).strip("/")
        if path == "-counts":  # what was asked so far, as "GET name: number"
            self.send_text(200, "\n".join(f"{n} {what}" for what, n in sorted(self.server.counts.items())))
        elif "list-type" in (query := parse_qs(url.query, keep_blank_values=True)):
            self.server.count("LIST")
            self.send_text(200, self.listing(path, {name: values[0] for name, values in query.items()}))
        else:
            self.server.count(f"{self.command} {path}")
            self.send_file(self.server.root / path, with_body)

    def listing(self, bucket: str, query: dict[str, str]) -> str:
        root, prefix = self.server.root / bucket, query.get("prefix", "")
        keys = sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
        found: list[str] = []
        for key in keys:
            if key.startswith(prefix):
                rest = key[len(prefix) :]
                if query.get("delimiter") and "/" in rest:
                    key = prefix + rest.partition("/")[0] + "/"
                if not found or found[-1] != key:
                    found.append(key)
        after = query.get("continuation-token", "")
        page = [key for key in found if key > after]
        more, page = len(page) > _PAGE, page[:_PAGE]
        parts = [f"<IsTruncated>{str(more).lower()}</IsTruncated>"]
        if more:
            parts.append(f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>")
        for key in page:
            if key.endswith("/"):
                parts.append(f"<CommonPrefixes><Prefix>{escape(key)}</Prefix></CommonPrefixes>")
                continue
            stat = (root / key).stat()
            when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stat.st_mtime))
            parts.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{when}</LastModified>"
                f"<ETag>{escape(_tag(stat))}</ETag><Size>{stat.st_size}</Size></Contents>"
            )
        head = '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        return (
            f"{head}<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix>{''.join(parts)}</ListBucketResult>"
        )

    def send_text(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, path: Path, with_body: bool) -> None:
        if not path.is_file():
            self.send_text(404, "<Error><Code>NoSuchKey</Code></Error>")
            return
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            if self.headers.get("If-Match", _tag(stat)) != _tag(stat):
                self.send_text(412, "<Error><Code>PreconditionFailed</Code></Error>")
                return
            start, end, wanted = 0, stat.st_size, self.headers.get("Range")
            if wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start = int(first) if first else max(0, stat.st_size - int(last))
                end = min(int(last) + 1, stat.st_size) if first and last else stat.st_size
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(end - start))
            self.send_header("ETag", _tag(stat))
            self.send_header("Last-Modified", formatdate(stat.st_mtime, usegmt=True))
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{stat.st_size}")
            self.end_headers()
            self.wfile.flush()
            while with_body and start < end:
                start += os.sendfile(self.connection.fileno(), file.fileno(), start, end - start)


def _tag(stat: os.stat_result) -> str:
    return f'"{hashlib.md5(f"{stat.st_ino} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()}"'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    args = parser.parse_args()
    server = Server(args.root, args.latency)
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
