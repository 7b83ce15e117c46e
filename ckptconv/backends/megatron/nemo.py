"""NeMo 2's folders: NAME/weights/ is a torch_dist checkpoint, NAME/context/ says how the model was built.

Tensors carry the prefix `module.`, the attribute of the Lightning module. `context/` has the model's settings as YAML and
the tokenizer's files; it is data here, and nothing that it names is imported.
Sources: nemo/lightning/ckpt_utils.py, nemo/lightning/io/pl.py (MegatronCheckpointIO.save_checkpoint),
nemo/lightning/io/mixin.py (io_dump), nemo/lightning/io/connector.py (save_hf_tokenizer_assets),
nemo/lightning/pytorch/callbacks/model_checkpoint.py (the mark of an unfinished save), nemo_toolkit 2.4.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ckptconv.errors import Incomplete
from ckptconv.tensors.checkpoint import StoredTensor
from ckptconv.tensors.look import exists, is_dir, is_file, paths_in

WEIGHTS, CONTEXT, MODEL = "weights", "context", "model.yaml"
_PREFIX = "module."
_TOKENIZER = "nemo_tokenizer"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_UNFINISHED = "-unfinished"


def context_of(shards: Path) -> Path | None:
    """Return the context next to a folder of weights; None if there is none."""
    context = shards.parent / CONTEXT
    return context if shards.name == WEIGHTS and is_dir(context) else None


def tokenizer_of(context: Path) -> Path | None:
    """Return the folder in the context that holds the tokenizer's files; None if none does."""
    folders = [context / _TOKENIZER, *filter(is_dir, paths_in(context)), context]
    return next((f for f in folders if any(is_file(f / name) for name in _TOKENIZER_FILES)), None)


def check_finished(folder: Path) -> None:
    """Raise Incomplete if NeMo's mark of a save in progress is next to the checkpoint's folder."""
    mark = folder.with_name(folder.name + _UNFINISHED)
    if exists(mark):
        raise Incomplete(
            "incomplete save: NeMo has not removed its in-progress marker",
            where=folder,
            found=mark.name,
            hint="take an earlier step with --step",
        )


def without_prefix(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors without the prefix that all of them carry."""
    if not all(name.startswith(_PREFIX) for name in tensors):
        return dict(tensors)
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
