"""JSON of unknown origin: a value, or one clear error, whatever the text is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ckptconv.errors import CkptconvError

_LARGEST = 256 << 20  # bytes of a file; the largest indexes of models have a tenth of it
_DIGITS = 100


def read_json(path: Path) -> Any:
    """The value in a file. Raises CkptconvError for what is no file of its own, too large, or no JSON."""
    try:
        if not path.is_file():
            raise CkptconvError("is no file", where=path)
        if path.stat().st_size > _LARGEST:
            raise CkptconvError(
                "too large for a file of settings", where=path, found=f"{path.stat().st_size:,} bytes"
            )
        return parse_json(path.read_bytes(), path)
    except OSError as error:
        raise CkptconvError(f"cannot be read: {error.strerror or error}", where=path) from error


def parse_json(text: str | bytes, where: object) -> Any:
    """The value. Raises CkptconvError for broken JSON, JSON as deep as the stack, and numbers of very many digits."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"), parse_int=_int)
    except ValueError as error:
        raise CkptconvError("not readable as JSON", where=where, found=str(error)) from error
    except RecursionError as error:
        raise CkptconvError("JSON that is nested too deep", where=where) from error


def _int(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)
