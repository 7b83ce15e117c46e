"""Writes docs/images/verify-*.svg: python tests/make/screens_verify.py RUN MODEL (made by `make demo`).

The damage is done to copies of MODEL, beside it for as long as the screens are made.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes  # noqa: F401 - numpy knows bfloat16 by name from here on
import numpy as np
from safetensors.numpy import load_file, save_file
from screens import save

from ckptconv import verify
from ckptconv.show import verify as show
from ckptconv.show.export import WIDTH

Arrays = dict[str, np.ndarray]
HEAD = 20  # demo.py's head_dim
ATTENTION = "model.layers.1.self_attn"


def damaged(model: Path, name: str, change: Callable[[Arrays], None]) -> Path:
    """A copy with other weights and no receipt."""
    out = Path(shutil.copytree(model, name))
    (out / "ckptconv.json").unlink()
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def wrong_slices(tensors: Arrays) -> None:
    """Rank 1's rows of an up-projection are rank 0's, and a head's rows are in the other order of RoPE."""
    up = tensors["model.layers.0.mlp.up_proj.weight"]
    rows = (len(up) + 1) // 2
    up[rows:] = up[: len(up) - rows]
    query = tensors[f"{ATTENTION}.q_proj.weight"]
    head = HEAD
    heads = query.reshape(-1, head, query.shape[1])
    order = np.arange(head).reshape(2, -1).T.reshape(-1)
    tensors[f"{ATTENTION}.q_proj.weight"] = np.ascontiguousarray(heads[:, order].reshape(query.shape))
    tensors["lm_head.weight"][7, 3] = np.nan


def main() -> None:
    run, model = (Path(path).resolve() for path in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        os.symlink(run, "run")
        os.symlink(model, "model")
        found = verify("model", against="run", logits=True, prompt="The ")
        save("verify-logits", f'{show.command(found)} --logits --prompt "The "', show.screen(found, WIDTH))
        damaged(model, "broken", wrong_slices)
        found = verify("broken", against="run")
        save("verify-damage", show.command(found), show.screen(found, WIDTH))
        shutil.copytree(model, "untrained")
        found = verify("untrained", base="model")
        save("verify-base", f"{show.command(found)} --base model", show.screen(found, WIDTH))


if __name__ == "__main__":
    main()
