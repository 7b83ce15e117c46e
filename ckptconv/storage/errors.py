"""What a store's errors mean, in one sentence with a hint. Nothing of obstore's own text is quoted: it shows requests."""

from __future__ import annotations

import os
import re
import shlex

from ckptconv.errors import CkptconvError, Kind
from ckptconv.storage.address import SCHEMES, Address, command_for

_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or sign in: gcloud auth application-default login",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
}
_LISTING = {
    "s3": "aws s3 ls {address}",
    "gs": "gcloud storage ls {address}",
    "az": "az storage blob list --container-name {bucket} --prefix {key}",
}
_RENAMING = {"s3": "aws s3 mv {address} {other}", "gs": "gcloud storage mv {address} {other}"}
_RESTORING = {
    "s3": "aws s3api restore-object --bucket {bucket} --key {key} --restore-request Days=7",
    "az": "az storage blob set-tier --container-name {bucket} --name {key} --tier Hot",
}
_PREFIXES = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_STATUS = re.compile(r"status code: (\d{3})|status: (\d{3})")
_CODE = re.compile(r"<Code>([\w.]+)</Code>")  # of S3 and Google's XML, and of Azure's
_REGION = re.compile(r"<Region>([a-z0-9-]+)</Region>")
_REQUEST = re.compile(r"^.*?Error performing \w+ \S+ in .*? - ", re.DOTALL)
_RETRIED = re.compile(r"after (\d+) retries")
_NAME = re.compile(r'[Pp]ath "(.*?)"(?: contained|: Encountered)', re.DOTALL)
_PROVIDER = re.compile(r"External \w+ credential provider: (\w+)")
# It looked for the role of an instance or of a container, and found no service that has one.
_ROLES = re.compile(r"Error performing \w+ http://(?:169\.254\.|metadata\.google\.internal)")
# Words of obstore's errors, none of which has a status.
_BAD_CREDENTIALS = (
    "Missing AccessKeyId",
    "Missing SecretAccessKey",
    "token file",
    "service account file",
    "Invalid Access Key",
    "SAS query pair",
)
_NOT_ACCEPTED = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "AuthFailure",
    "AuthenticationFailed",  # Azure's
    "InvalidAuthenticationInfo",
)
_REGION_CODES = (
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraint",
)
_ANSWERS = {
    "non-partial response": "the whole object, where a range was asked for",
    "Content-Length Header missing": "no Content-Length header",
    "Content-Range": "no Content-Range header",
    "CONTENT_RANGE": "a Content-Range header without the object's size",
    "Requested ": "another range than was asked for",
    "invalid list response": "a listing that is not XML",
    "last modified": "a Last-Modified header that is not a time",
}


class Unavailable(CkptconvError):
    """The store, or the way to it, fails at present. Whether something is there is not known."""


def explained(error: BaseException, address: Address) -> CkptconvError:
    """The error for what obstore raised.

    Args:
        error: obstore's.
        address: the folder or object.
    """
    whole, text, name = str(error), _answer(error), type(error).__name__
    status = next((int(one or two) for one, two in _STATUS.findall(text)), 0)
    code = next(iter(_CODE.findall(text)), "")
    store, list_it = SCHEMES[address.scheme], command_for(_LISTING, address)
    if provider := _PROVIDER.search(whole):
        return no_credentials_of_profile(provider[1], address)
    if _is_about_credentials(whole):
        return _error(f"there are no credentials for {store}", address, _CREDENTIALS[address.scheme])
    if any(word in text for word in _BAD_CREDENTIALS):
        what = f"the credentials for {store} are incomplete or not valid"
        return _error(what, address, _CREDENTIALS[address.scheme])
    if name == "PreconditionError" or status == 412:
        return changed(address)
    if code == "NoSuchBucket" or "ContainerNotFound" in text or "The specified bucket does not exist" in text:
        what = f"there is no {_container(address)} {address.bucket} in this {store}"
        return _error(what, address, f"check the name{_endpoint(address)}", Kind.NOT_A_CHECKPOINT)
    if code in ("InvalidObjectState", "BlobArchived"):
        return _error("the object is archived", address, command_for(_RESTORING, address), found=code)
    if code == "RequestTimeTooSkewed":
        return _error(f"{store} has another time than this machine", address, "set this machine's clock")
    if code == "ExpiredToken":
        hint = "sign in again (aws sso login), or set new keys and AWS_SESSION_TOKEN"
        return _error("the credentials have expired", address, hint)
    if code in _NOT_ACCEPTED:
        what = f"{store} does not accept the credentials"
        return _error(what, address, _CREDENTIALS[address.scheme], found=code)
    if name == "UnauthenticatedError" or status == 401:
        return _error(f"{store} wants credentials", address, _CREDENTIALS[address.scheme])
    if name == "PermissionDeniedError" or status == 403:
        what = f"{store} does not let these credentials read here"
        return _error(what, address, f"they need to list and to read it; try {list_it}", found=code)
    if name == "FileNotFoundError" or status == 404:
        return _error("no such object", address, list_it)
    if code in _REGION_CODES or "redirect without LOCATION" in text or status in (301, 307):
        region = _REGION.search(text)
        hint = f"set AWS_REGION{f'={region[1]}' if region else ' to the region of the bucket'}"
        return _error("the bucket is in another region", address, f"{hint}{_endpoint(address, 'check ')}")
    if name == "InvalidPathError":
        return _unreadable_name(text, address)
    if "Account must be specified" in text:
        return _error("the storage account is not known", address, _CREDENTIALS["az"])
    if "BadScheme" in whole:
        hint = f"set {_PREFIXES[address.scheme]}_ALLOW_HTTP=true to allow it"
        return _error("the endpoint is http://, which is not encrypted", address, hint)
    if "Config error" in text:
        hint = f"check the variables that begin with {_PREFIXES[address.scheme]}_; a switch is true or false"
        return _error(f"a setting for {store} has a value that is not valid", address, hint, Kind.USAGE)
    if status >= 500 or status in (408, 429):
        tries = _RETRIED.search(whole)
        found = f"status {status}" + (f" after {tries[1]} retries" if tries else "")
        return _unavailable(f"{store} fails", address, "try again later", found=found)
    if status:
        found = " ".join([str(status), code]).strip()
        return _error(f"{store} refuses the request", address, f"try {list_it}", found=found)
    if "timed out" in whole or "TimedOut" in whole:
        hint = f"try again{_endpoint(address, 'or check ')}"
        return _unavailable(f"{store} does not answer in time", address, hint)
    if "InvalidCertificate" in whole:
        hint = f"name the certificate of its authority: SSL_CERT_FILE=FILE{_endpoint(address, 'check ')}"
        return _error(f"the certificate of the server of {store} is not trusted", address, hint)
    if "error sending request" in text or "Connect" in text:
        hint = f"check the network and the proxy{_endpoint(address)}"
        return _unavailable(f"{store} cannot be reached", address, hint)
    if is_broken(error):
        return _unavailable(f"the connection to {store} broke", address, "try again")
    if answer := next((_ANSWERS[word] for word in _ANSWERS if word in text), None):
        hint = f"check the proxy{_endpoint(address)}; or copy the folder to a disk with the store's own tool"
        return _error(f"the server does not answer as {store} does", address, hint, found=answer)
    return _error(f"{store} cannot be read", address, f"try {list_it}", found=name)


def is_broken(error: BaseException) -> bool:
    """True for a connection that ended within an answer, so that asking again may help."""
    text = _answer(error).lower()
    return not _STATUS.search(text) and any(
        word in text for word in ("body", "connection closed", "reset", "incomplete")
    )


def _answer(error: BaseException) -> str:
    """What obstore says of an answer, without the request before it and its source after it, which name the object."""
    return _REQUEST.sub("", str(error).partition("\n\nDebug source")[0])


def _is_about_credentials(text: str) -> bool:
    """True if a request for credentials failed, and not one to the store."""
    return (
        bool(_ROLES.search(text)) or "token request" in text.partition("http")[0] or "POST REDACTED" in text
    )


def is_busy(error: BaseException) -> bool:
    """True for a server that has too much to do, or failed, so that asking again later may help."""
    found = _STATUS.search(_answer(error))
    return found is not None and (found[1] or found[2]) in ("429", "500", "502", "503", "504")


def changed(address: Address) -> CkptconvError:
    """The error for an object that is not the one that was listed."""
    return CkptconvError(
        "a file of the checkpoint changed while it was read; nothing was written",
        where=address,
        found="another object under this name",
        wanted="the object that was there when the folder was listed",
        hint="run it again when the trainer has finished writing",
        kind=Kind.ENVIRONMENT,
    )


def no_credentials_of_profile(cause: str, address: Address | None = None) -> CkptconvError:
    """The error for an AWS profile that boto3 cannot resolve: an SSO session has ended, a credential process failed.

    Args:
        cause: the name of the error's class.
        address: the folder or object.
    """
    profile = os.environ.get("AWS_DEFAULT_PROFILE") or os.environ.get("AWS_PROFILE") or "default"
    is_sso = "SSO" in cause or "Token" in cause
    command = "aws sso login --profile" if is_sso else "to see why: aws sts get-caller-identity --profile"
    return CkptconvError(
        f"the AWS profile {profile!r} gives no credentials",
        where=address,
        found=cause,
        hint=f"{command} {shlex.quote(profile)}",
        kind=Kind.ENVIRONMENT,
    )


def _unreadable_name(text: str, address: Address) -> CkptconvError:
    """The error for a name that obstore cannot hold, which ends the listing of the whole folder."""
    key = next(iter(_NAME.findall(text)), address.key)
    bucket = f"{address.scheme}://{address.bucket}"
    better = "/".join(part for part in key.split("/") if part not in ("", ".", ".."))
    hint = "rename or delete it"
    if key.isprintable() and not key.endswith("/") and address.scheme in _RENAMING:
        names = {"address": shlex.quote(f"{bucket}/{key}"), "other": shlex.quote(f"{bucket}/{better}")}
        hint += f": {_RENAMING[address.scheme].format(**names)}"
    elif key.isprintable() and address.scheme == "s3":
        hint += (
            f": aws s3 mv --recursive {shlex.quote(f'{bucket}/{key}')} {shlex.quote(f'{bucket}/{better}/')}"
        )
    return CkptconvError(
        "a name in this folder cannot be read",
        where=address,
        found=repr(f"{bucket}/{key}"),
        wanted="names without an empty part (//), a part that is a dot, and control characters",
        hint=hint,
        kind=Kind.UNSUPPORTED,
    )


def _error(
    what: str, address: Address, hint: str, kind: Kind = Kind.ENVIRONMENT, found: str | None = None
) -> CkptconvError:
    return CkptconvError(what, where=address, found=found or None, hint=hint, kind=kind)


def _unavailable(what: str, address: Address, hint: str, found: str | None = None) -> Unavailable:
    return Unavailable(what, where=address, found=found, hint=hint, kind=Kind.ENVIRONMENT)


def _container(address: Address) -> str:
    return "container" if address.scheme == "az" else "bucket"


def _endpoint(address: Address, verb: str = "and ") -> str:
    """Which setting names the server, if one is set; its value may hold a password and is not shown."""
    found = next((name for name in ENDPOINTS[address.scheme] if os.environ.get(name)), None)
    return f", {verb}{found}" if found else ""
