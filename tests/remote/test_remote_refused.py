"""What a store refuses, and what we refuse: one error with a hint, exit code 2, and never a secret in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import cli
from support.store.proxy import Proxy
from support.store.server import KEY, SECRET, Server

from ckptconv import inspect
from ckptconv.errors import CkptconvError
from ckptconv.storage import located
from ckptconv.storage.address import Address, address_of
from ckptconv.storage.errors import explained

Made = Callable[[str], Path]


def refused(*args: object, code: int = 2) -> str:
    """The message of a command that fails."""
    ran = cli(*args)
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err
    assert "bug in ckptconv" not in ran.err
    assert SECRET not in ran.err + ran.out
    assert KEY not in ran.err + ran.out
    return ran.err


def test_a_missing_bucket(s3: Server) -> None:
    message = refused("inspect", "s3://no-such-bucket/run")
    assert "there is no bucket no-such-bucket in this S3" in message
    assert "AWS_ENDPOINT_URL" in message, "another server may be meant"


def test_a_missing_folder(s3: Server) -> None:
    s3.store("empty")
    message = refused("inspect", "s3://empty/run")
    assert "no such folder" in message
    assert "s3://empty/run" in message


def test_a_model_in_a_store_is_not_pushed() -> None:
    message = refused("push", "s3://bucket/model", "org/name")
    assert "only a folder on a disk can be pushed" in message
    assert "aws s3 cp --recursive s3://BUCKET/FOLDER MODEL" in message


def test_a_folder_without_a_checkpoint(s3: Server, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert "notes.txt" in refused("inspect", s3.put("empty", "notes", tmp_path))


@pytest.mark.parametrize(
    ("status", "words"),
    [(403, "does not let these credentials read"), (401, "wants credentials"), (301, "in another region")],
)
def test_a_store_that_answers_with_a_status(proxy: Proxy, status: int, words: str) -> None:
    proxy.fail = lambda request: status
    message = refused("inspect", "s3://bucket/run")
    assert words in message
    assert "hint" in message


def test_a_server_that_is_not_there(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    message = refused("inspect", "s3://bucket/run")
    assert "S3 cannot be reached" in message
    assert "AWS_ENDPOINT_URL" in message


def test_an_endpoint_without_encryption(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    assert "AWS_ALLOW_HTTP=true" in refused("inspect", "s3://bucket/run")


def test_rejected_keys(s3: Server, tmp_path: Path) -> None:
    """moto checks keys and signatures after so many unchecked requests."""
    s3.store("locked")
    s3.ask("POST", "/moto-api/reset-auth", b"0")
    try:
        message = refused("inspect", "s3://locked/run")
    finally:
        s3.ask("POST", "/moto-api/reset-auth", b"inf")
    assert "S3 does not accept the credentials" in message
    assert "InvalidAccessKeyId" in message


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3a://bucket/run", "s3://"),
        ("gcs://bucket/run", "gs://"),
        ("abfss://box@account.dfs.core.windows.net/run", "a user name"),
        ("hdfs://node/run", "mount it"),
        ("https://bucket.s3.amazonaws.com/run", "s3://BUCKET/FOLDER"),
        ("s3://bucket/../other", "not an address"),
    ],
)
def test_other_addresses(address: str, words: str, tmp_path: Path) -> None:
    assert words in refused("inspect", address)
    assert words in refused("merge", address, tmp_path / "model")
    assert words in refused("verify", address)


@pytest.mark.parametrize(
    "command", ["inspect", "merge", "verify", "merge --config", "merge --base", "merge --also"]
)
@pytest.mark.parametrize(
    "address",
    [
        f"s3://{KEY}:{SECRET.replace('/', '')}@bucket/run",
        f"s3://bucket/run?X-Amz-Signature={SECRET}",
        f"s3://bucket/run#token={SECRET}",
        f"https://{KEY}:hunter2@host/run",
    ],
)
def test_credentials_in_an_address_are_not_repeated(
    made: Made, tmp_path: Path, command: str, address: str
) -> None:
    """Whichever option takes the address: the error names the place without what came with it."""
    word, _, flag = command.partition(" ")
    out = [tmp_path / "model"] if word == "merge" else []
    where = [address, *out] if not flag else [made("fsdp2_w4"), *out, flag, address]
    message = refused(word, *where).replace("\n", "").replace(" ", "")
    for secret in (KEY, SECRET, SECRET.replace("/", ""), "hunter2"):
        assert secret not in message
    assert "mustnothold" in message


def test_an_address_as_target(
    s3: Server, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused("merge", made("fsdp2_w4"), "s3://bucket/model")
    assert "OUT must be a folder on a disk" in message
    assert "aws s3 cp --recursive" in message
    assert "OUT must be" in refused("merge", made("fsdp2_w4"), "s3://bucket/models", "--all-steps")
    assert "ckptconv push OUT" in refused("merge", made("fsdp2_w4"), "hf://org/name")
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra(tmp_path: Path) -> None:
    """A process in which obstore cannot be imported."""
    code = "import sys; sys.modules['obstore'] = None; from ckptconv.__main__ import main; main()"
    for words in (["inspect", "s3://bucket/run"], ["merge", "gs://bucket/run", str(tmp_path / "m")]):
        ran = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert ran.returncode == 2
        assert "pip install 'ckptconv[remote]'" in ran.stderr
        assert "Traceback" not in ran.stderr


def test_a_path_on_this_disk_wins(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    (tmp_path / "s3:" / "run").symlink_to(made("fsdp2_w4"))
    assert inspect("s3:/run").backend == "fsdp"


def test_a_place_in_a_store_is_never_taken_for_a_file(s3: Server, made: Made) -> None:
    """Code that needs a real file, such as a library that maps it, is refused and does not look on this disk."""
    place = located(s3.put("refused", "model", made("fsdp2_w4") / "hub"))
    with pytest.raises(CkptconvError, match="this needs a file on a disk"):
        os.fspath(place / "config.json")


def test_ray_and_a_store(s3: Server, made: Made, tmp_path: Path) -> None:
    address = s3.put("refused", "fsdp2", made("fsdp2_w4"))
    assert "--ray reads from disks" in refused("merge", address, tmp_path / "m", "--ray", "auto")


def test_addresses_are_parsed() -> None:
    for text in ("s3://bucket/a/b", "s3:/bucket/a/b/", "S3://bucket//a/b"):
        assert address_of(text) == Address("s3", "bucket", "a/b")
    assert str(address_of("gs://bucket")) == "gs://bucket"


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_every_error_has_a_hint_and_shows_no_request(scheme: str) -> None:
    for text in (
        "Error performing GET http://host/?sig=HIDDEN - status code: 503 Slow Down after 6 retries",
        "Error performing PUT http://169.254.169.254/latest/api/token?HIDDEN - status code: 403 Forbidden",
        "something new HIDDEN",
        "status code: 404 <Code>NoSuchBucket</Code> HIDDEN",
        "status code: 400 Bad Request <Code>AuthorizationHeaderMalformed</Code> HIDDEN",
        "operation timed out HIDDEN",
    ):
        found = explained(ValueError(text), Address(scheme, "bucket", "run"))
        assert found.hint
        assert "HIDDEN" not in str(found)
        assert ("there are no credentials" in found.what) == ("169.254" in text)
