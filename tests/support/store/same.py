"""Compares what ckptconv answers and writes for a folder on a disk and for its copy in a store."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from support.helpers import cli

import ckptconv


def compare(folder: Path, address: str, out: Path, config: Path | None = None, far_config: str = "") -> None:
    """Inspect and merge a folder and its copy in a store, and compare the answers and every byte.

    Args:
        folder: the folder, whose tensors are compared if a merge refuses it for want of a config.json.
        address: its copy.
        out: where the models are written.
        config: the model folder for `--config`.
        far_config: the address of that folder's copy.
    """
    answers = [cli("inspect", place, "--json") for place in (folder, address)]
    assert answers[0].code == answers[1].code, answers[1].err
    assert _plain(answers[1].out, address) == _plain(answers[0].out, str(folder))
    merges = [
        cli("merge", place, out / name, *(["--config", model] if model else []))
        for place, name, model in ((folder, "near", config), (address, "far", far_config))
    ]
    assert merges[0].code == merges[1].code, merges[1].err
    assert _files(out / "far") == _files(out / "near")
    if merges[0].code:
        assert "no config.json" in merges[0].err, merges[0].err
        assert "no config.json" in merges[1].err, merges[1].err
        near, far = ckptconv.open(folder), ckptconv.open(address)
        assert list(near) == list(far)
        assert near
        for name in near:
            assert near[name].numpy().tobytes() == far[name].numpy().tobytes(), name


def _plain(document: str, place: str) -> Any:
    """An answer without the places in it, and without times, which a store does not keep."""
    found = json.loads(document.replace(place, "PLACE")) if document.strip() else {}
    found["notes"] = [note for note in found.get("notes", ()) if "changed at" not in note]
    return found


def _files(folder: Path) -> dict[str, bytes]:
    """Every file of a model; in the receipt the fingerprint, which is of times and ETags, is masked."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    if "ckptconv.json" in found:
        found["ckptconv.json"] = re.sub(rb'"fingerprint": "\w+"', b"", found["ckptconv.json"])
    return found
