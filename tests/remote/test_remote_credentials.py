"""Where keys and endpoints come from: the environment, and the files of AWS's tools."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.helpers import cli
from support.store.proxy import Proxy
from support.store.server import KEY, SECRET, Server

from ckptconv.errors import CkptconvError
from ckptconv.storage.credentials import aws_profile

Made = Callable[[str], Path]
NAMES = (
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_REGION",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the two files of AWS's tools, which the environment names; it names nothing else."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return tmp_path


def keys_of(found: dict[str, Any]) -> tuple[str, str, str | None]:
    """The keys and the token that a profile gives; they are taken from what was found."""
    keys = found.pop("credential_provider")()
    return keys["access_key_id"], keys["secret_access_key"], keys["token"]


def test_a_profile_with_keys(s3: Server, made: Made, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are in one file, region and endpoint in the other."""
    address = s3.put("profiles", "run", made("fsdp2_w4"))
    (files / "credentials").write_text(
        f"[default]\naws_access_key_id = other\naws_secret_access_key = other\n"
        f"[lab]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    )
    (files / "config").write_text(f"[profile lab]\nregion = eu-west-3\nendpoint_url = {s3.url}\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    found = aws_profile()
    assert keys_of(found) == (KEY, SECRET, None)
    assert found == {"region": "eu-west-3", "endpoint": s3.url}
    assert cli("inspect", address).code == 0


def test_the_default_profile_and_a_token(files: Path) -> None:
    (files / "credentials").write_text(
        "[default]\naws_access_key_id = a\naws_secret_access_key = b\naws_session_token = c\n"
    )
    found = aws_profile()
    assert keys_of(found) == ("a", "b", "c")
    assert found == {}


@pytest.mark.parametrize("variable", ["AWS_SKIP_SIGNATURE", "AWS_WEB_IDENTITY_TOKEN_FILE"])
def test_a_profile_is_not_asked_where_its_keys_are_not_needed(
    files: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A public bucket is read, although the default profile needs a login; a pod takes the role of its token."""
    (files / "config").write_text("[default]\nsso_session = s\nregion = r\n")
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "false")
    with pytest.raises(CkptconvError, match="boto3 resolves such profiles"):
        aws_profile()
    monkeypatch.setenv(variable, "true")
    assert aws_profile() == {"region": "r"}


@pytest.mark.parametrize("name", ["default", "lab"])
def test_keys_of_the_environment_come_before_a_profile(
    files: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As botocore has it, also where AWS_PROFILE names the profile; its region counts if the environment has none."""
    (files / "credentials").write_text(
        f"[{name}]\naws_access_key_id = a\naws_secret_access_key = b\nregion = r\n"
    )
    monkeypatch.setenv("AWS_PROFILE", name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    assert aws_profile() == {"region": "r"}
    monkeypatch.setenv("AWS_REGION", "here")
    assert aws_profile() == {}


def test_a_token_of_the_environment_does_not_go_with_keys_of_a_profile(
    proxy: Proxy, s3: Server, made: Made, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = s3.put("profiles", "run", made("fsdp2_w4"))
    (files / "credentials").write_text(
        f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of other keys")
    assert cli("inspect", address).code == 0
    assert proxy.requests
    assert not any(request.has_token for request in proxy.requests)


def test_keys_for_a_role_are_not_used_in_its_place(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile may have the keys with which its own role is assumed."""
    (files / "credentials").write_text(
        "[lab]\naws_access_key_id = a\naws_secret_access_key = b\n"
        "role_arn = arn:aws:iam::1:role/x\nsource_profile = lab\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(CkptconvError, match="boto3 resolves such profiles"):
        aws_profile()


@pytest.mark.parametrize(
    ("config", "endpoint"),
    [
        ("endpoint_url = http://all\n", "http://all"),
        ("endpoint_url = http://all\nservices = mine\n[services mine]\ns3 =\n  endpoint_url = http://s3\n", "http://s3"),
        ("services = mine\n[services mine]\nsts =\n  endpoint_url = http://sts\n", None),
        ("services = none\n", None),
    ],
)  # fmt: skip
def test_the_endpoint_of_a_profile(
    files: Path, monkeypatch: pytest.MonkeyPatch, config: str, endpoint: str | None
) -> None:
    (files / "config").write_text(f"[profile 'my lab']\n{config}")
    monkeypatch.setenv("AWS_PROFILE", "my lab")
    assert aws_profile().get("endpoint") == endpoint


def test_an_empty_file(files: Path) -> None:
    (files / "credentials").write_text("")
    assert aws_profile() == {}


def test_a_file_with_a_byte_order_mark(files: Path) -> None:
    (files / "credentials").write_bytes(
        b"\xef\xbb\xbf[default]\naws_access_key_id = a\naws_secret_access_key = b\n"
    )
    assert keys_of(aws_profile()) == ("a", "b", None)


@pytest.mark.parametrize(
    "text",
    ["SECRET, and not an ini file", "[default\nSECRET", "[a]\nSECRET\n", "[a]\nx = 1\n[a]\nx = SECRET\n"],
)
def test_a_file_that_cannot_be_parsed(files: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """AWS's tools refuse it too; where the environment has the keys it does not matter."""
    (files / "credentials").write_text(text)
    with pytest.raises(CkptconvError, match="cannot be parsed") as caught:
        aws_profile()
    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    assert aws_profile() == {}


@pytest.mark.parametrize("process", ["/bin/false SECRET", "/bin/echo SECRET", "/no/such/program SECRET"])
def test_a_credential_process_that_fails(files: Path, monkeypatch: pytest.MonkeyPatch, process: str) -> None:
    pytest.importorskip("boto3")
    (files / "config").write_text(
        f"[profile my lab]\nregion = r\n[profile 'my lab']\ncredential_process = {process}\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "my lab")
    with pytest.raises(CkptconvError, match="the AWS profile 'my lab' gives no credentials") as caught:
        aws_profile()
    assert "SECRET" not in str(caught.value)
    assert "aws sts get-caller-identity --profile 'my lab'" in str(caught.value)


def test_a_profile_that_does_not_exist(s3: Server, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "lba")
    ran = cli("inspect", "s3://bucket/run")
    assert ran.code == 2
    assert "there is no AWS profile 'lba'" in ran.err
    assert "aws configure list-profiles" in ran.err


def test_a_profile_that_boto3_resolves(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSO, an assumed role, a credential process; without boto3 there is one sentence."""
    (files / "config").write_text("[profile lab]\nsso_session = s\nregion = r\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(CkptconvError, match="boto3 resolves such profiles"):
        aws_profile()
