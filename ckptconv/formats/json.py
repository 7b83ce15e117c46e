"""Read untrusted JSON: the result is a value or a CkptconvError, whatever the text is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.look import is_file, opened, read_bytes, size_of

_LARGEST = 256 << 20  # bytes; the largest known model indexes are a tenth as long
_DIGITS = 100  # of one integer
_LARGEST_SETTINGS = 16 << 20  # bytes of a trainer's settings file that are read


def read_json(path: Path) -> Any:
    """Return the value that a JSON file holds.

    Raises:
        CkptconvError: the path is not a regular file, or the file is larger than 256 MiB, cannot be read, or is not
            valid JSON.
    """
    try:
        if not is_file(path):
            raise CkptconvError("not a regular file", where=path, kind=Kind.DAMAGED)
        if (nbytes := size_of(path)) > _LARGEST:
            raise CkptconvError(
                "too large for a settings file",
                where=path,
                found=f"{nbytes:,} bytes",
                kind=Kind.DAMAGED,
            )
        return parse_json(read_bytes(path), path)
    except OSError as error:
        raise CkptconvError(
            f"cannot be read: {error.strerror or error}", where=path, kind=Kind.ENVIRONMENT
        ) from error


def parse_json(text: str | bytes, where: object) -> Any:
    """Return the value that a JSON text describes.

    Raises:
        CkptconvError: the text is not valid JSON, is nested deeper than the interpreter's stack, or has an integer of
            more than 100 digits.
    """
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"), parse_int=_int)
    except ValueError as error:
        raise CkptconvError("not valid JSON", where=where, found=str(error), kind=Kind.DAMAGED) from error
    except RecursionError as error:
        raise CkptconvError("the JSON is nested too deeply", where=where, kind=Kind.DAMAGED) from error


def _int(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def settings_text(path: Path) -> str:
    """Return the first 16 MiB of a trainer's settings file as text, or "" if the file does not exist.

    Raises:
        CkptconvError: the file cannot be read.
    """
    if not is_file(path):
        return ""
    with opened(path, "a settings file") as file:
        return file.read(0, min(_LARGEST_SETTINGS, file.nbytes)).decode("utf-8", "replace")


def read_table(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or {} if the file does not exist or holds another type.

    Raises:
        CkptconvError: the file cannot be read or is not valid JSON.
    """
    if not is_file(path):
        return {}
    value = read_json(path)
    return value if isinstance(value, dict) else {}
