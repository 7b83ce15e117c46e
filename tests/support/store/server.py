"""moto's S3 server in a subprocess, with folders put into it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

SECRET = "SENTINELsecret/that+must=not.show"
KEY = "AKIASENTINELKEY00000"


class Server:
    """A running server.

    Args:
        port: where it listens, on this machine.
        process: its process.
    """

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port, self.process = port, process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """An unsigned request of the server itself."""
        headers = {"Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"{self.url}{path}", body or None, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def store(self, bucket: str) -> Any:
        """obstore's client of a bucket, which is created if it does not exist."""
        from obstore.store import S3Store

        self.ask("PUT", f"/{bucket}")
        return S3Store(
            bucket, endpoint=self.url, access_key_id=KEY, secret_access_key=SECRET, region="us-east-1",
            client_options={"allow_http": True},
        )  # fmt: skip

    def put(self, bucket: str, key: str, folder: Path) -> str:
        """Copy a folder (or a file) into a bucket; returns its address."""
        store = self.store(bucket)
        if folder.is_file():
            store.put(key, folder.read_bytes())
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            if path.is_file():
                store.put(f"{key}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"s3://{bucket}/{key}"

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def start() -> Server:
    """Start a server on a free port, and wait until it answers."""
    code = (
        "import sys\n"
        "from moto.server import ThreadedMotoServer\n"
        "server = ThreadedMotoServer('127.0.0.1', 0, verbose=False)\n"
        "server.start()\n"
        "print(server.get_host_and_port()[1], flush=True)\n"
        "sys.stdin.read()\n"  # ends with the test process, however that ends
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    server = Server(int(process.stdout.readline() or 0), process)
    assert server.port, "moto's server did not start"
    for _ in range(100):
        try:
            server.ask("GET", "/moto-api/")
            return server
        except OSError:
            time.sleep(0.05)
    raise AssertionError("moto's server does not answer")
