"""Keys and settings of an AWS profile, which obstore does not read: it takes environment variables and instance roles.

Sources: AWS CLI user guide, "Configuration and credential file settings" and "Service-specific endpoints"; botocore,
credentials.py, create_credential_resolver (the order) and configloader.py (the files); obstore, `obstore.auth.boto3`.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
from pathlib import Path
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.storage.errors import no_credentials_of_profile

_STATIC = ("aws_access_key_id", "aws_secret_access_key")
_BEFORE_KEYS = (
    "role_arn",
    "sso_session",
    "sso_start_url",
    "login_session",
)  # a profile may have keys for them too
_BEFORE_A_PROFILE = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE")  # obstore takes these
_OFF = ("", "0", "f", "false", "n", "no", "off")
_ENDPOINT = re.compile(r"^\s*endpoint_url\s*=\s*(\S+)", re.MULTILINE)
_TABLE = dict[str, dict[str, str]]


class _Keys:
    """Keys of a profile for obstore, which would add AWS_SESSION_TOKEN of the environment to keys that are options."""

    def __init__(self, found: dict[str, str]) -> None:
        self._found = found

    def __call__(self) -> dict[str, Any]:
        key, secret = (self._found[name] for name in _STATIC)
        token = self._found.get("aws_session_token")
        return {"access_key_id": key, "secret_access_key": secret, "token": token, "expires_at": None}


def aws_profile() -> dict[str, Any]:
    """What a profile adds to obstore's S3Store: keys, region and endpoint, where no environment variable has them.

    The profile is the one that botocore would take, else `default`. One without keys of its own (SSO, an assumed role, a
    credential process) is resolved by boto3.

    Raises:
        CkptconvError: AWS_PROFILE names a profile that does not exist, or one that needs boto3, which is not installed; a
            file cannot be parsed, or boto3 cannot resolve the profile.
    """
    named = os.environ.get("AWS_DEFAULT_PROFILE") or os.environ.get("AWS_PROFILE")
    name = named or "default"
    is_public = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() not in _OFF
    has_keys = is_public or any(os.environ.get(variable) for variable in _BEFORE_A_PROFILE)
    keys = _read("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", not has_keys).get(name)
    config = _read("AWS_CONFIG_FILE", "~/.aws/config", not has_keys)
    settings = _profiles(config).get(name)
    if named and keys is None and settings is None:
        raise CkptconvError(
            f"there is no AWS profile {named!r}",
            hint="`aws configure list-profiles` lists them; AWS_PROFILE names one",
            kind=Kind.USAGE,
        )
    both = {**(settings or {}), **(keys or {})}
    found: dict[str, Any] = {}
    if not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")) and "region" in both:
        found["region"] = both["region"]
    has_endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3")
    if not has_endpoint and (endpoint := _endpoint(both, config)):
        found["endpoint"] = endpoint
    if has_keys:
        return found
    if any(key in both for key in _BEFORE_KEYS):
        found["credential_provider"] = _by_boto3(name)
    elif all(key in both for key in _STATIC):
        found["credential_provider"] = _Keys(both)
    elif "credential_process" in both:
        found["credential_provider"] = _by_boto3(name)
    return found


def _endpoint(profile: dict[str, str], config: _TABLE) -> str | None:
    """The endpoint of a profile: that for S3 in its section of services, else the one for all services."""
    services = config.get(f"services {profile.get('services', '')}", {})
    for_s3 = _ENDPOINT.search(services.get("s3", ""))
    return for_s3[1] if for_s3 else profile.get("endpoint_url")


def _profiles(config: _TABLE) -> _TABLE:
    """The profiles of a config file: the sections `default` and `profile NAME`, where a name may be in quotes."""
    found: _TABLE = {}
    for section, values in config.items():
        try:
            words = shlex.split(section)
        except ValueError:
            continue
        if words == ["default"] or (len(words) == 2 and words[0] == "profile"):
            found[words[-1]] = values
    return found


def _read(variable: str, usual: str, must_parse: bool) -> _TABLE:
    """The sections of a file; {} if there is none."""
    parser = configparser.RawConfigParser(default_section="")
    path = Path(os.environ.get(variable) or usual).expanduser()
    try:
        parser.read(path, encoding="utf-8-sig")
    except (configparser.Error, UnicodeError):
        if not must_parse:
            return {}
        # The error's own text quotes lines, which may be keys.
        raise CkptconvError(
            "a file of AWS's tools cannot be parsed",
            where=path,
            hint="it has sections such as [default] with lines NAME = VALUE, and no section and no name twice",
            kind=Kind.ENVIRONMENT,
        ) from None
    return {section: dict(parser.items(section)) for section in parser.sections()}


def _by_boto3(profile: str) -> Any:
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise CkptconvError(
            f"the AWS profile {profile!r} has no keys of its own, and boto3 resolves such profiles",
            hint="pip install boto3, or: eval $(aws configure export-credentials --format env)",
            kind=Kind.ENVIRONMENT,
        ) from error
    try:
        return Boto3CredentialProvider(boto3.Session(profile_name=profile))
    except Exception as error:  # botocore's text may quote the output of a credential process
        raise no_credentials_of_profile(type(error).__name__) from None
