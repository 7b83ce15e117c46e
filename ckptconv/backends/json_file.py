"""Small JSON files beside a checkpoint: the trainer's settings, LoRA's, an adapter's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ckptconv.errors import CkptconvError


def read_table(path: Path) -> dict[str, Any]:
    """The file's table; {} where it is not there, or holds something else. Raises CkptconvError for broken JSON."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CkptconvError("not readable as JSON", where=path, found=str(error)) from error
    return value if isinstance(value, dict) else {}
