"""What a store's errors mean, in one sentence with a hint. Nothing of obstore's own text is quoted: it shows requests."""

from __future__ import annotations

import os
import re

from ckptconv.errors import CkptconvError, Kind
from ckptconv.storage.address import SCHEMES, Address

_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or sign in: gcloud auth application-default login",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
}
_LISTING = {
    "s3": "aws s3 ls {address}/",
    "gs": "gcloud storage ls {address}/",
    "az": "az storage blob list --container-name {bucket} --prefix {key}",
}
_PREFIXES = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
_REGION = "set AWS_REGION to the bucket's region"
_STATUS = re.compile(r"status code: (\d{3})|status: (\d{3})")
_RETRIED = re.compile(r"after (\d+) retries")


def explained(error: Exception, address: Address) -> CkptconvError:
    """The error for what obstore raised.

    Args:
        error: obstore's.
        address: the folder or object.
    """
    text, name = str(error), type(error).__name__
    status = next((int(one or two) for one, two in _STATUS.findall(text)), 0)
    code = (re.findall(r"<Code>(\w+)</Code>", text) or [""])[0]
    store, list_it = SCHEMES[address.scheme], _list(address)
    if _is_about_credentials(text):
        return _error(f"there are no credentials for {store}", address, _CREDENTIALS[address.scheme])
    if name == "PreconditionError" or status == 412:
        return changed(address)
    if code == "NoSuchBucket" or "ContainerNotFound" in text or "The specified bucket does not exist" in text:
        what = f"there is no {_container(address)} {address.bucket} in this {store}"
        return _error(what, address, f"check the name{_endpoint(address)}", Kind.NOT_A_CHECKPOINT)
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AuthFailure"):
        what = f"{store} does not accept the credentials"
        return _error(what, address, _CREDENTIALS[address.scheme], found=code)
    if name == "UnauthenticatedError" or status == 401:
        return _error(f"{store} wants credentials", address, _CREDENTIALS[address.scheme])
    if name == "PermissionDeniedError" or status == 403:
        what = f"{store} does not let these credentials read here"
        return _error(what, address, f"they need to list and to read it; try {list_it}", found=code)
    if name == "FileNotFoundError" or status == 404:
        return _error("no such object", address, list_it, Kind.ENVIRONMENT)
    if status in (301, 307, 400) and ("redirect" in text.lower() or code in _REGION_CODES):
        return _error("the bucket is in another region", address, _REGION)
    if "redirect" in text.lower():
        return _error("the bucket is in another region", address, _REGION)
    if "account" in text.lower() and address.scheme == "az" and not status:
        return _error("the storage account is not known", address, _CREDENTIALS["az"])
    if "BadScheme" in text:
        hint = f"set {_PREFIXES[address.scheme]}_ALLOW_HTTP=true to allow it"
        return _error("the endpoint is http://, which is not encrypted", address, hint)
    if status >= 500 or status == 429:
        tries = _RETRIED.search(text)
        found = f"status {status}" + (f" after {tries[1]} retries" if tries else "")
        return _error(f"{store} fails", address, "try again later", found=found)
    if status:
        return _error(
            f"{store} refuses the request", address, list_it, found=" ".join([str(status), code]).strip()
        )
    if "timed out" in text.lower() or "Timeout" in text:
        return _error(f"{store} does not answer in time", address, f"try again{_endpoint(address)}")
    if "error sending request" in text or "Connect" in text or "dns" in text.lower():
        hint = f"check the network and the proxy{_endpoint(address)}"
        return _error(f"{store} cannot be reached", address, hint)
    if is_broken(error):
        return _error(f"the connection to {store} broke", address, "try again")
    return _error(f"{store} cannot be read", address, f"try {list_it}", found=name)


def is_broken(error: Exception) -> bool:
    """True for a connection that ended within an answer, so that asking again may help."""
    text = str(error).lower()
    return not _STATUS.search(text) and any(
        word in text for word in ("body", "connection closed", "reset", "incomplete")
    )


_REGION_CODES = (
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraint",
)


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


def _error(
    what: str, address: Address, hint: str, kind: Kind = Kind.ENVIRONMENT, found: str | None = None
) -> CkptconvError:
    return CkptconvError(what, where=address, found=found or None, hint=hint, kind=kind)


def _is_about_credentials(text: str) -> bool:
    """True if the client looked for an instance's role and found no service that has one."""
    return any(
        word in text
        for word in ("169.254.169.254", "metadata.google.internal", "CredentialNotFound", "token request")
    )


def _container(address: Address) -> str:
    return "container" if address.scheme == "az" else "bucket"


def _list(address: Address) -> str:
    return _LISTING[address.scheme].format(address=address, bucket=address.bucket, key=address.key)


def _endpoint(address: Address) -> str:
    """Which setting names the server, if one is set; its value may hold a password and is not shown."""
    names = {"s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"), "az": ("AZURE_STORAGE_ENDPOINT",)}
    found = next((name for name in names.get(address.scheme, ()) if os.environ.get(name)), None)
    return f", and {found}" if found else ""
