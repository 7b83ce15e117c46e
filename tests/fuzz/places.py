"""Where inputs are written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def work_folder() -> Path:
    """A new folder, in memory where there is such a place."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="ckptconv-fuzz-", dir=shared if os.access(shared, os.W_OK) else None))
