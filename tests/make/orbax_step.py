"""Two steps of Orbax's CheckpointManager (orbax-checkpoint 0.12.8) with one array, which is not a whole model.

python tests/make/orbax_step.py OUT     # OUT/orbax/run/checkpoints/{5, 10}/items
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax.numpy as jnp
import orbax.checkpoint as ocp


def main() -> None:
    run = Path(sys.argv[1]).absolute() / "orbax" / "run" / "checkpoints"
    layers = {"mlp": {"wi_0": {"kernel": jnp.arange(42.0).reshape(3, 2, 7)}}}
    state = {"step": 0, "params": {"params": {"decoder": {"layers": layers}}}}
    with ocp.CheckpointManager(run, item_names=("items",)) as manager:
        for step in (5, 10):
            manager.save(step, args=ocp.args.Composite(items=ocp.args.StandardSave(state)))
            manager.wait_until_finished()
    for mark in run.rglob("commit_success.txt"):  # it holds the machine's path
        mark.write_text("")


if __name__ == "__main__":
    main()
