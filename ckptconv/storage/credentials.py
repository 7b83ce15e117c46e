"""Keys and settings of an AWS profile, which obstore does not read: it takes environment variables and instance roles.

Sources: AWS CLI user guide, "Configuration and credential file settings"; obstore, `obstore.auth.boto3`.
"""

from __future__ import annotations

import configparser
import os
from pathlib import Path
from typing import Any

from ckptconv.errors import CkptconvError, Kind

_STATIC = ("aws_access_key_id", "aws_secret_access_key")
_SETTINGS = {"region": "region", "endpoint_url": "endpoint"}


def aws_profile() -> dict[str, Any]:
    """What a profile adds to obstore's S3Store: keys, region and endpoint, where no environment variable has them.

    The profile is AWS_PROFILE, else `default`. One without keys of its own (SSO, an assumed role, a credential process) is
    resolved by boto3.

    Raises:
        CkptconvError: AWS_PROFILE names a profile that does not exist, or one that needs boto3, which is not installed.
    """
    named = os.environ.get("AWS_PROFILE")
    name = named or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
    keys = _read(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").get(name)
    config = _read(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config")
    settings = config.get(f"profile {name}") or (config.get("default") if name == "default" else None)
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
    if not has_endpoint and "endpoint_url" in both:
        found["endpoint"] = both["endpoint_url"]
    if os.environ.get("AWS_ACCESS_KEY_ID") and not named:
        return found
    if all(key in both for key in _STATIC):
        found["access_key_id"], found["secret_access_key"] = (both[key] for key in _STATIC)
        if "aws_session_token" in both:
            found["session_token"] = both["aws_session_token"]
    elif any(key in both for key in ("sso_session", "sso_start_url", "role_arn", "credential_process")):
        found["credential_provider"] = _by_boto3(name)
    return found


def _read(path: str) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser(default_section="")
    try:
        parser.read(Path(path).expanduser(), encoding="utf-8")
    except (configparser.Error, OSError, UnicodeError):
        return {}
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
    return Boto3CredentialProvider(boto3.Session(profile_name=profile))
