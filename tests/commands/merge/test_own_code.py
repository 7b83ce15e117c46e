"""Code that config.json names in auto_map: merge says where it is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ckptconv import merge

OWN = {"model_type": "own", "architectures": ["Own"]}


def notes_of(folder: Path, config: dict[str, Any]) -> list[str]:
    folder.mkdir()
    save_file({"w": np.arange(12, dtype=np.float32).reshape(3, 4)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_here.py").write_text("")
    result = merge(folder, folder.with_name("out"))
    return [note for note in result.plan.notes if "auto_map" in note]


@pytest.mark.parametrize("name", ["modeling_here.Own", "org/name--modeling_gone.Own"])
def test_code_that_is_there_or_in_another_repository_is_not_mentioned(tmp_path: Path, name: str) -> None:
    assert notes_of(tmp_path / "model", {**OWN, "auto_map": {"AutoModel": name}}) == []


def test_code_that_is_missing_is_named(tmp_path: Path) -> None:
    (note,) = notes_of(tmp_path / "model", {**OWN, "auto_map": {"AutoModel": "modeling_gone.Own"}})
    assert "modeling_gone.py" in note
    assert "no reader can build the model" in note
