"""AReaL's own savers on CPUs (inclusionAI/AReaL at 4aef98d8d): `FSDPEngine.save`, into the folders that `Saver` names.

RecoverHandler saves in the form "dcp" to `recover_checkpoint`, Saver in the form "hf" to `epochEepochstepSglobalstepN`; a
caller may ask for "dcp" there as well. The engine is made without its constructor, which asks for a GPU.
"""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any

import torch.distributed as dist


def areal(run: Path, model: Any, optimizer: Any) -> None:
    """The trial's folder of an actor and a critic's: two steps, the recover checkpoint."""
    getpass.getuser = lambda: "user"
    from areal.api import SaveLoadMeta
    from areal.engine.fsdp_engine import FSDPEngine
    from areal.utils.saver import Saver

    engine = object.__new__(FSDPEngine)
    engine.model, engine.optimizer = model, optimizer
    engine._offload_depth, engine.is_offload = 0, False
    engine._per_layer_optim_wrapper = None
    trial = ("exp", "trial", str(run))
    steps = (Saver.get_model_save_path(*trial, 0, 4, 4, name="actor"),)
    steps += (Saver.get_model_save_path(*trial, 1, 2, 7, name="actor"),)
    steps += (Saver.get_recover_checkpoint_path(*trial, name="actor"),)
    for path in steps:
        meta = SaveLoadMeta(
            path=path,
            weight_format="dcp",
            with_optim="recover" in path,
            tokenizer=None,
            processor=None,
            base_model_path=None,
        )
        engine.save(meta)
    if dist.get_rank() == 0:
        model.config.save_pretrained(Path(steps[0]).parents[1])
