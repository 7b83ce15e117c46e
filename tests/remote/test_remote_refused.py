"""What a store refuses, and what we refuse: one error with a hint, exit code 2, and never a secret in it."""

from __future__ import annotations

import os
import shlex
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
from ckptconv.storage.errors import explained, is_broken
from ckptconv.storage.objects import Bucket

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


def test_a_misspelled_folder(s3: Server, made: Made, tmp_path: Path) -> None:
    address = s3.put("meant", "my-run", made("fsdp2_w4"))
    for words in (["inspect"], ["verify"], ["merge", "--all-steps"], ["merge"]):
        out = [tmp_path / "model"] if words[0] == "merge" else []
        message = refused(words[0], address.replace("my-run", "my-rnu"), *out, *words[1:])
        assert "did you mean s3://meant/my-run?" in message
    message = refused("inspect", f"{address}/global_step_8/actor")
    assert "did you mean s3://meant/my-run/global_step_7?" in message
    assert "did you mean" not in refused("inspect", "s3://meant/elsewhere")


def test_a_model_in_a_store_is_not_pushed() -> None:
    message = refused("push", "s3://bucket/model", "org/name")
    assert "only a folder on a disk can be pushed" in message
    assert "aws s3 cp --recursive s3://bucket/model MODEL" in message


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
    assert "aws s3 cp --recursive MODEL s3://bucket/model" in message
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


@pytest.mark.parametrize("address", ["s3://", "s3:", "S3:///", "gs:/", "az://", "s3://bucket/a\tb"])
def test_an_address_without_a_bucket(address: str) -> None:
    assert "not an address of a folder in a store" in refused("inspect", address)


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("value", ["127.0.0.1:9000", "minio", "ftp://host", "http://", f"http:// {SECRET}"])
def test_an_endpoint_that_is_not_a_url(
    s3: Server, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """obstore panics at some of these."""
    monkeypatch.setenv(variable, value)
    message = refused("inspect", "s3://bucket/run")
    assert f"{variable} is not the address of a server" in message
    assert "https://HOST:PORT" in message


@pytest.mark.parametrize(
    ("scheme", "variable"), [("gs", "GOOGLE_BASE_URL"), ("az", "AZURE_STORAGE_ENDPOINT")]
)
def test_an_endpoint_of_another_store(scheme: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore", reason="the extra ckptconv[remote] is not installed")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "name")
    monkeypatch.setenv(variable, "localhost:10000")
    assert f"{variable} is not the address" in refused("inspect", f"{scheme}://bucket/run")


def test_a_panic_of_obstore_is_one_error() -> None:
    """It is no Exception, so that `except Exception` lets it pass."""

    class PanicException(BaseException):
        pass

    class Client:
        def head(self, key: str) -> None:
            raise PanicException("called `Result::unwrap()` on an `Err` value")

    with pytest.raises(CkptconvError, match="S3 cannot be read"):
        Bucket(Address("s3", "bucket", ""), Client()).look("run")


@pytest.mark.parametrize(
    ("run", "name", "hint"),
    [
        ("a", "a//stray/x", "aws s3 mv --recursive s3://odd/a// s3://odd/a/"),
        (
            "b",
            "b/global_step_7//my%20log",
            "aws s3 mv 's3://odd/b/global_step_7//my log' 's3://odd/b/global_step_7/my log'",
        ),
        ("c", "c/global_step_7/x%09y", "rename or delete it"),
    ],
)
def test_a_name_that_obstore_cannot_hold(s3: Server, made: Made, run: str, name: str, hint: str) -> None:
    """One such object ends the listing of its folder; people write them when they join `run/` and `/name`."""
    address = s3.put("odd", run, made("fsdp2_w4"))
    s3.ask("PUT", f"/odd/{name}", b"x")
    with pytest.raises(CkptconvError, match="a name in this folder cannot be read") as caught:
        inspect(address)
    assert caught.value.hint is not None
    assert caught.value.hint.endswith(hint)
    assert refused("inspect", address)


# What obstore 0.12 says, and what a user has to know of it.
REQUEST = "Error performing GET http://127.0.0.1:1/bucket/run in 1.5ms"
ANSWER = f"Generic S3 error: {REQUEST} - Server returned non-2xx status code: "
EXPLAINED = {
    "the object is archived": (f"{ANSWER}403 Forbidden: <Error><Code>InvalidObjectState</Code></Error>", "restore-object"),
    "another time than this machine": (f"{ANSWER}403 Forbidden: <Code>RequestTimeTooSkewed</Code>", "clock"),
    "the credentials have expired": (f"{ANSWER}400 Bad Request: <Code>ExpiredToken</Code>", "aws sso login"),
    "in another region": (
        f"{ANSWER}400 Bad Request: <Code>AuthorizationHeaderMalformed</Code><Region>eu-west-3</Region>",
        "set AWS_REGION=eu-west-3",
    ),
    "S3 refuses the request": (f"{ANSWER}400 Bad Request: <Code>KMS.DisabledException</Code>", "KMS.DisabledException"),
    "S3 fails": (f"{ANSWER}408 Request Timeout: <Code>RequestTimeout</Code>", "try again later"),
    "are incomplete or not valid": ("Generic S3 error: Missing SecretAccessKey", "AWS_PROFILE"),
    "there are no credentials for S3": (
        "Generic S3 error: Error performing GET http://169.254.170.2/creds in 10ms - Server returned non-2xx status code: "
        "403 Forbidden: denied",
        "AWS_SECRET_ACCESS_KEY",
    ),
    "the AWS profile 'default' gives no credentials": (
        "The operation lacked valid authentication credentials for path External AWS credential provider: "
        "SSOTokenLoadError: Error loading SSO Token: HIDDEN",
        "aws sso login --profile default",
    ),
    "a setting for S3": ('Generic Config error: failed to parse "maybe" as boolean', "AWS_"),
    "is not trusted": (
        f"Generic S3 error: {REQUEST} - HTTP error: error sending request\n\nDebug source:\nInvalidCertificate(Unknown)",
        "SSL_CERT_FILE",
    ),
    "does not answer as S3 does": (
        "Generic S3 error: Received non-partial response when range requested",
        "the whole object, where a range was asked for",
    ),
    "the server does not answer as S3": (
        "Generic S3 error: Content-Length Header missing from response",
        "no Content-Length header",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", EXPLAINED)
def test_what_obstore_says_is_explained(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    text, hint = EXPLAINED[what]
    found = str(explained(ValueError(text), Address("s3", "bucket", "run")))
    assert what in found
    assert hint in found
    assert "HIDDEN" not in found


@pytest.mark.parametrize(
    "word", ["SAS", "body", "redirect", "Timeout", "token file", "timed out", "account", "Requested "]
)
def test_the_name_of_an_object_is_not_taken_for_an_error(word: str) -> None:
    """Its name is in what obstore says, and in the URL."""
    key = f"{word}/model.pt"
    request = (
        f"Error performing GET http://host/bucket/{key.replace(' ', '%20')} in 1.5ms, after 6 retries - "
    )
    text = f"for path {key}: {request}Server returned non-2xx status code: 503 Slow Down: \n\nDebug source:\n{key}"
    for scheme in ("s3", "az"):
        error = explained(ValueError(text), Address(scheme, "bucket", key))
        assert error.what.endswith("fails"), error.what
        assert error.found == "status 503 after 6 retries"
    assert not is_broken(ValueError(text))


def test_a_hint_can_be_typed() -> None:
    """A name with blanks and quotes is one word for the shell."""
    error = explained(ValueError(f"{ANSWER}403 Forbidden: "), Address("s3", "bucket", "a run's $x"))
    assert error.hint is not None
    command = error.hint.partition("try ")[2]
    assert shlex.split(command) == ["aws", "s3", "ls", "s3://bucket/a run's $x"]


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
