"""Screens as text, kept under tests/snapshots/inspect: `RENEW_SNAPSHOTS=1 pytest tests/inspect` writes them anew."""

from __future__ import annotations

import os
import re
from pathlib import Path

SNAPSHOTS = Path(__file__).resolve().parents[1] / "snapshots" / "inspect"


def check(name: str, text: str) -> None:
    """Compare a screen with the one that is kept. Spaces at the ends of lines, and versions, are no part of it."""
    text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    text = re.sub(r"\b(transformers|peft|ckptconv|DeepSpeed) \d+(\.\w+)+", r"\1 N.N.N", text)
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("RENEW_SNAPSHOTS"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"no snapshot {path.name}: RENEW_SNAPSHOTS=1 writes it"
    assert text == path.read_text(encoding="utf-8")
