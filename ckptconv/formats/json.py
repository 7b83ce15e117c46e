"""JSON of unknown origin: a value, or one clear error, whatever the text is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ckptconv.errors import CkptconvError, Kind

_LARGEST = 256 << 20  # bytes of a file; the largest indexes of models have a tenth of it
_DIGITS = 100
_LARGEST_SETTINGS = 16 << 20  # bytes of a trainer's settings as text


def read_json(path: Path) -> Any:
    """The value in a file. Raises CkptconvError for what is no file of its own, too large, or no JSON."""
    try:
        if not path.is_file():
            raise CkptconvError("not a regular file", where=path, kind=Kind.DAMAGED)
        if path.stat().st_size > _LARGEST:
            raise CkptconvError(
                "too large for a settings file",
                where=path,
                found=f"{path.stat().st_size:,} bytes",
                kind=Kind.DAMAGED,
            )
        return parse_json(path.read_bytes(), path)
    except OSError as error:
        raise CkptconvError(
            f"cannot be read: {error.strerror or error}", where=path, kind=Kind.ENVIRONMENT
        ) from error


def parse_json(text: str | bytes, where: object) -> Any:
    """The value. Raises CkptconvError for broken JSON, JSON as deep as the stack, and numbers of very many digits."""
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
    """The text of a trainer's settings, of its first 16 MiB; "" where there is no such file."""
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST_SETTINGS).decode("utf-8", "replace")
    except OSError as error:
        raise CkptconvError(
            f"cannot be read: {error.strerror or error}", where=path, kind=Kind.ENVIRONMENT
        ) from error


def read_table(path: Path) -> dict[str, Any]:
    """The file's table; {} where it is not there, or holds something else. Raises CkptconvError for broken JSON."""
    if not path.is_file():
        return {}
    value = read_json(path)
    return value if isinstance(value, dict) else {}
