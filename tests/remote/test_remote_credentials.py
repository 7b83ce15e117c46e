"""Where keys and endpoints come from: the environment, and the files of AWS's tools."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import cli
from support.store.server import KEY, SECRET, Server

from ckptconv.errors import CkptconvError
from ckptconv.storage.credentials import aws_profile

Made = Callable[[str], Path]
NAMES = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_PROFILE")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the two files of AWS's tools, which the environment names; it names nothing else."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return tmp_path


def test_a_profile_with_keys(s3: Server, made: Made, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are in one file, region and endpoint in the other."""
    address = s3.put("profiles", "run", made("fsdp2_w4"))
    (files / "credentials").write_text(
        f"[default]\naws_access_key_id = other\naws_secret_access_key = other\n"
        f"[lab]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    )
    (files / "config").write_text(f"[profile lab]\nregion = eu-west-3\nendpoint_url = {s3.url}\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert aws_profile() == {
        "region": "eu-west-3",
        "endpoint": s3.url,
        "access_key_id": KEY,
        "secret_access_key": SECRET,
    }
    assert cli("inspect", address).code == 0


def test_the_default_profile_and_a_token(files: Path) -> None:
    (files / "credentials").write_text(
        "[default]\naws_access_key_id = a\naws_secret_access_key = b\naws_session_token = c\n"
    )
    assert aws_profile() == {"access_key_id": "a", "secret_access_key": "b", "session_token": "c"}


def test_the_environment_comes_before_the_default_profile(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "credentials").write_text(
        "[default]\naws_access_key_id = a\naws_secret_access_key = b\nregion = r\n"
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_REGION", "here")
    assert aws_profile() == {}


@pytest.mark.parametrize("text", ["", "not an ini file", "[default\n", "[a]\nx\n"])
def test_files_that_say_nothing(files: Path, text: str) -> None:
    (files / "credentials").write_text(text)
    assert aws_profile() == {}


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
