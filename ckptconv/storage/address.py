"""Addresses of stores: `s3://BUCKET/FOLDER`, `gs://…`, `az://CONTAINER/FOLDER`, `hf://buckets/ORG/NAME/FOLDER`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ckptconv.errors import CkptconvError, Kind

SCHEMES = {"s3": "S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage", "hf": "the Hub"}
# pathlib makes one slash of the two. A path such as `c:/x` or `run:1/x` has no scheme of two letters or more before a slash.
# Of `s3://` alone it leaves `s3:`.
_ADDRESS = re.compile(
    r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?P<rest>.*)$|^(?P<alone>s3|gs|az):$",
    re.DOTALL | re.IGNORECASE,
)
_BUCKET = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._$-]*$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MOUNT = "mount it and name the mounted folder"
_INSTEAD = {
    "s3a": "write s3://BUCKET/FOLDER",
    "s3n": "write s3://BUCKET/FOLDER",
    "gcs": "write gs://BUCKET/FOLDER",
    "azure": "write az://CONTAINER/FOLDER",
    "abfs": "write az://CONTAINER/FOLDER, and set AZURE_STORAGE_ACCOUNT_NAME",
    "abfss": "write az://CONTAINER/FOLDER, and set AZURE_STORAGE_ACCOUNT_NAME",
    "wasb": "write az://CONTAINER/FOLDER, and set AZURE_STORAGE_ACCOUNT_NAME",
    "wasbs": "write az://CONTAINER/FOLDER, and set AZURE_STORAGE_ACCOUNT_NAME",
    "hdfs": _MOUNT,
    "file": "write the path without file://",
    "http": "write s3://BUCKET/FOLDER and set AWS_ENDPOINT_URL",
    "https": "write s3://BUCKET/FOLDER and set AWS_ENDPOINT_URL",
}
_PLACES = {"az": "CONTAINER", "hf": "buckets/ORG/NAME"}
_HUB_BUCKETS = "buckets"  # hf://ORG/NAME is a repository


class Address(NamedTuple):
    """A place in a store.

    Attributes:
        scheme: "s3", "gs", "az" or "hf".
        bucket: the bucket, or Azure's container; on the Hub "buckets/ORG/NAME", or a repository's "ORG/NAME".
        key: the name of the object or folder in it, without slashes at its ends; "" for the bucket itself.
    """

    scheme: str
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.key}" if self.key else "")


def is_address(path: str | Path) -> bool:
    """True for a text that names a place by a scheme, such as `s3://bucket/run`; False for repositories and for paths."""
    found = _ADDRESS.match(str(path))
    if found is None or found["alone"]:
        return found is not None
    return found["scheme"].lower() != "hf" or found["rest"].split("/")[0] == _HUB_BUCKETS


def address_of(path: str | Path) -> Address:
    """Parse an address.

    Raises:
        CkptconvError: the scheme is unknown, there is no bucket, or the address holds credentials or a query. The message
            shows neither.
    """
    found = _ADDRESS.match(str(path))
    if found is None:
        raise CkptconvError("not an address of an object store", where=path, kind=Kind.USAGE)
    scheme, rest = (found["scheme"] or found["alone"]).lower(), found["rest"] or ""
    bucket, _, key = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise CkptconvError(
            "an address of a store must not hold a user name, a password or a port",
            where=f"{scheme}://…@{bucket.rpartition('@')[2].partition(':')[0]}",
            hint="credentials come from the environment or a profile; AWS_ENDPOINT_URL names another server",
            kind=Kind.USAGE,
        )
    if re.search(r"[?#].*=", rest):
        raise CkptconvError(
            "an address of a store must not hold a query, such as the signature of a presigned URL",
            where=f"{scheme}://{re.split('[?#]', rest)[0]}",
            hint="name the folder alone; credentials come from the environment or a profile",
            kind=Kind.USAGE,
        )
    if scheme not in SCHEMES:
        raise CkptconvError(
            f"{scheme}:// is not supported",
            where=f"{scheme}://{rest}",
            wanted="a folder, org/name, s3://, gs:// or az://",
            hint=_INSTEAD.get(scheme, _MOUNT),
            kind=Kind.USAGE,
        )
    parts = [part for part in key.split("/") if part]
    if scheme == "hf":
        names, parts = parts[:2], parts[2:]
        bucket = (
            "/".join([_HUB_BUCKETS, *names]) if len(names) == 2 and all(map(_BUCKET.match, names)) else ""
        )
    if not _BUCKET.match(bucket.replace("/", "")) or {".", ".."} & set(parts) or _CONTROL.search(key):
        raise CkptconvError(
            "not an address of a folder in a store",
            where=f"{scheme}://{rest}",
            wanted=f"{scheme}://{_PLACES.get(scheme, 'BUCKET')}/FOLDER",
            kind=Kind.USAGE,
        )
    return Address(scheme, bucket, "/".join(parts))


def command_for(commands: Mapping[str, str], address: Address) -> str:
    """A command of the store's own tool for a place, which can be typed as it is.

    Args:
        commands: scheme -> the command, with {address}, {bucket}, {key} and {below}, a pattern for all below the key.
        address: the place.
    """
    below = f"{address.key}/*".lstrip("/")
    names = {"address": str(address), "bucket": address.bucket, "key": address.key, "below": below}
    return commands[address.scheme].format(**{name: shlex.quote(value) for name, value in names.items()})
