"""Azure Blob Storage and Google Cloud Storage: the same answers and bytes as from a disk, against a server for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from support.helpers import cli
from support.store.emulators import Emulator, azurite, google
from support.store.same import compare

from ckptconv.errors import CkptconvError
from ckptconv.storage import located
from ckptconv.storage.address import Address
from ckptconv.storage.file import ObjectFile
from ckptconv.storage.objects import Bucket
from ckptconv.storage.tree import Tree
from ckptconv.tensors.stored_file import far_of

Made = Callable[[str], Path]


@pytest.fixture(scope="module", params=["az", "gs"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    pytest.importorskip("obstore", reason="the extra ckptconv[remote] is not installed")
    starting = azurite(tmp_path_factory.mktemp("azurite")) if request.param == "az" else google()
    with starting as running:
        yield running


@pytest.fixture
def cloud(server: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """The server, which the environment names as obstore expects it."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server


@pytest.mark.parametrize("variant", ["fsdp2_w4", "dcp_tp_w4"])
def test_the_same_as_from_a_disk(cloud: Emulator, made: Made, variant: str, tmp_path: Path) -> None:
    folder = made(variant) / "run" if variant.startswith("dcp") else made(variant)
    compare(folder, cloud.put(variant.replace("_", "-"), "a/run", folder), tmp_path)


def test_an_object_that_is_replaced_is_refused(cloud: Emulator) -> None:
    cloud.create("changed")
    cloud.write("changed", "run/large.bin", bytes(1 << 20))
    far = far_of(located(f"{cloud.scheme}://changed/run") / "large.bin")
    assert far is not None
    assert far.read(0, 10) == bytes(10)
    cloud.write("changed", "run/large.bin", b"1" * (1 << 20))
    with pytest.raises(CkptconvError, match="changed while it was read"):
        far.read(500_000, 10)
    assert far.group.states_now([far]) != [far.state]


def test_what_is_not_there(cloud: Emulator) -> None:
    cloud.create("present")
    ran = cli("inspect", f"{cloud.scheme}://present/run")
    assert ran.code == 2
    assert "no such folder" in ran.err
    if cloud.scheme == "az":  # Google's emulator answers 500
        assert "there is no container absent" in cli("inspect", "az://absent/run").err


class AsAzure:
    """A client that states ETags as Azure does: with quotes in the header of an answer, and without in a listing."""

    def __init__(self) -> None:
        self.tag = "0x8DE2F1"

    def _meta(self, tag: str) -> dict[str, Any]:
        when = datetime(2026, 1, 1, tzinfo=timezone.utc)
        return {"path": "run/a.bin", "last_modified": when, "size": 4, "e_tag": tag, "version": None}

    def list(self, prefix: str, chunk_size: int) -> Any:
        class Stream:
            def collect(stream) -> list[dict[str, Any]]:
                return [self._meta(self.tag)]

        return Stream()

    def get(self, key: str, options: dict[str, Any]) -> Any:
        assert options["if_match"].strip('"') == self.tag

        class Answer:
            meta = self._meta(f'"{self.tag}"')

            def bytes(answer) -> bytes:
                return b"abcd"[slice(*options["range"])]

        return Answer()


def test_an_etag_is_the_same_with_quotes_and_without() -> None:
    bucket = Bucket(Address("az", "box", ""), AsAzure())
    (item,) = bucket.below("run")
    assert bytes(bucket.fetch(item, 1, 3)) == b"bc"


class OneObject:
    """A client whose listing and whose answers state what a test says of one object of four bytes."""

    def __init__(self, listed: dict[str, Any], stated: dict[str, Any], body: bytes = b"abcd") -> None:
        self.listed, self.stated, self.body = listed, stated, body

    def _meta(self, changes: dict[str, Any]) -> dict[str, Any]:
        when = datetime(2026, 1, 1, tzinfo=timezone.utc)
        usual = {"path": "run/a.bin", "last_modified": when, "size": 4, "e_tag": '"x"', "version": None}
        return usual | changes

    def list(self, prefix: str, chunk_size: int) -> Any:
        class Stream:
            def collect(stream) -> list[dict[str, Any]]:
                return [self._meta(self.listed)]

        return Stream()

    def head(self, key: str) -> dict[str, Any]:
        return self._meta(self.stated)

    def get(self, key: str, options: dict[str, Any]) -> Any:
        class Answer:
            meta = self._meta(self.stated)

            def bytes(answer) -> bytes:
                return self.body[slice(*options["range"])]

        return Answer()


LATER = datetime(2026, 1, 2, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("listed", "stated", "is_same"),
    [
        ({}, {}, True),
        ({}, {"e_tag": '"y"'}, False),
        ({}, {"size": 5}, False),
        ({}, {"last_modified": LATER}, True),
        ({"e_tag": None}, {}, True),  # some servers list no ETag, and state one with an object
        ({"e_tag": None}, {"last_modified": LATER}, False),
        ({"e_tag": None}, {"size": 5}, False),
        ({}, {"e_tag": None}, True),
        ({}, {"e_tag": None, "last_modified": LATER}, False),
        ({"e_tag": None}, {"e_tag": None}, True),
        ({"e_tag": None}, {"e_tag": None, "last_modified": LATER}, False),
    ],
)
def test_an_answer_is_of_the_object_that_was_listed(
    listed: dict[str, Any], stated: dict[str, Any], is_same: bool
) -> None:
    bucket = Bucket(Address("s3", "box", ""), OneObject(listed, stated))
    (item,) = bucket.below("run")
    tree = Tree(bucket, "run")
    file = ObjectFile(tree, item)
    if is_same:
        assert bytes(bucket.fetch(item, 1, 3)) == b"bc"
        assert tree.states_now([file]) == [file.state]
    else:
        with pytest.raises(CkptconvError, match="changed while it was read"):
            bucket.fetch(item, 1, 3)
        assert tree.states_now([file]) != [file.state]


@pytest.mark.parametrize("body", [b"", b"ab"])
def test_a_body_of_another_length_is_not_taken(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptconv.storage.objects._PAUSES", (0.0,))
    bucket = Bucket(Address("s3", "box", ""), OneObject({}, {}, body))
    (item,) = bucket.below("run")
    with pytest.raises(CkptconvError, match="the connection to S3 broke"):
        bucket.fetch(item, 1, 3)


class Breaking(OneObject):
    """A client whose connections break after each mebibyte."""

    def __init__(self, nbytes: int) -> None:
        super().__init__({"size": nbytes}, {"size": nbytes}, bytes(number % 251 for number in range(nbytes)))
        self.ranges: list[tuple[int, int]] = []

    def get(self, key: str, options: dict[str, Any]) -> Any:
        self.ranges.append(options["range"])

        class Answer:
            meta = self._meta(self.stated)

            def stream(answer, min_chunk_size: int) -> Iterator[bytes]:
                start, end = options["range"]
                yield self.body[start : min(start + (1 << 20), end)]
                if end - start > 1 << 20:
                    raise OSError("Generic S3 error: HTTP error: request or response body error")

        return Answer()


def test_what_arrived_before_a_connection_broke_is_not_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a slow link a request ends before its last byte, each time: as long as bytes arrive, the next one goes on."""
    monkeypatch.setattr("ckptconv.storage.objects._PAUSES", (0.0,))
    client = Breaking(4_000_000)
    bucket = Bucket(Address("s3", "box", ""), client)
    (item,) = bucket.below("run")
    assert bytes(bucket.fetch(item, 10, 3_999_990)) == client.body[10:3_999_990]
    assert client.ranges == [(10 + (number << 20), 3_999_990) for number in range(4)]


def test_a_link_on_which_nothing_arrives_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptconv.storage.objects._PAUSES", (0.0, 0.0))
    client = Breaking(4_000_000)
    client.body = b""
    bucket = Bucket(Address("s3", "box", ""), client)
    (item,) = bucket.below("run")
    with pytest.raises(CkptconvError, match="the connection to S3 broke"):
        bucket.fetch(item, 0, 4_000_000)
    assert len(client.ranges) == 3
