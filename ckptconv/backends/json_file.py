"""Small files beside a checkpoint: the trainer's settings, LoRA's, an adapter's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckptconv.errors import CkptconvError
from ckptconv.json_text import read_json

_LARGEST = 16 << 20  # bytes of a trainer's settings as text


def settings_text(path: Path) -> str:
    """The text of a trainer's settings, of its first 16 MiB; "" where there is no such file."""
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST).decode("utf-8", "replace")
    except OSError as error:
        raise CkptconvError(f"cannot be read: {error.strerror or error}", where=path) from error


def read_table(path: Path) -> dict[str, Any]:
    """The file's table; {} where it is not there, or holds something else. Raises CkptconvError for broken JSON."""
    if not path.is_file():
        return {}
    value = read_json(path)
    return value if isinstance(value, dict) else {}
