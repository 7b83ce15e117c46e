"""Merges what models.py wrote, with the defaults but for the dtype: `python tools/readers/merge.py MODELS`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import ckptconv


def main() -> None:
    """Merge each family that has no model folder yet."""
    for actor in sorted(Path(sys.argv[1]).glob("*/actor")):
        model = actor.parent / "model"
        if not (model / "config.json").exists():
            ckptconv.merge(actor, model, dtype="keep")
            print(actor.parent.name, flush=True)
        for file in model.glob("*token*"):  # the reference differs in config.json alone
            shutil.copy(file, actor.parent / "reference" / file.name)


if __name__ == "__main__":
    main()
