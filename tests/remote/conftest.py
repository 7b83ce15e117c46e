"""An S3 server for this folder's tests, and the environment that names it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.store.proxy import Proxy, proxied
from support.store.server import KEY, SECRET, Server, start


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """moto's server; the tests are skipped only where the extra `remote` or moto is not installed."""
    pytest.importorskip("obstore", reason="the extra ckptconv[remote] is not installed")
    pytest.importorskip("moto", reason="moto is not installed")
    running = start()
    yield running
    running.stop()


@pytest.fixture
def s3(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The server, which the environment names as AWS's tools expect it."""
    for name, value in {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_CONFIG_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def proxy(s3: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of the server, which the environment names instead."""
    with proxied(s3.port) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running
