"""Undoes the `*_glu_interleave_size` settings of Megatron-Core, which alternate blocks of gate rows and of up rows.

With such a setting, the rows of a rank's linear_fc1 are [gate block, up block, gate block, …]. The save does not reorder
them: it joins the first halves of the ranks' rows, then the second halves, as if they were gate and up
(megatron/core/transformer/moe/experts.py, _remove_glu_interleaving; mlp.py, apply_swiglu_sharded_factory). The weights do
not show this, so the trainer's settings decide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ckptconv.backends.megatron.settings import RUN_CONFIG, number
from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.checkpoint import StoredTensor, TrainerSettings
from ckptconv.tensors.view import View, cat, narrow, split

# A setting, the tensors that it affects, and the settings that give the number of ranks over which they are sharded; the
# first of those that is recorded counts.
_SETTINGS = (
    (
        "moe_mlp_glu_interleave_size",
        re.compile(r"\.experts\.\d+\.linear_fc1\.(weight|bias)$"),
        ("expert_tensor_parallel_size", "tensor_model_parallel_size"),
    ),
    (
        "moe_shared_expert_glu_interleave_size",
        re.compile(r"\.shared_experts\.linear_fc1\.(weight|bias)$"),
        ("tensor_model_parallel_size",),
    ),
)


def refuse_bridges_blocks(settings: Sequence[TrainerSettings]) -> None:
    """Refuse a checkpoint of Megatron-Bridge whose run_config.yaml has such a setting.

    Megatron-Bridge reorders the rows before a save, but not those of the tensors that Megatron-Core only joins during the
    save (megatron/bridge/training/checkpointing.py). Its files do not tell which tensors are still interleaved.

    Args:
        settings: the trainer's settings, by file.

    Raises:
        CkptconvError: names the setting.
    """
    for one in settings:
        for name, _, _ in _SETTINGS:
            if one.where.endswith(RUN_CONFIG) and (size := number(one.values.get(name))):
                raise CkptconvError(
                    "gate and up of the experts may be interleaved; Megatron-Bridge's files do not say which",
                    where=one.where,
                    found=f"{name}: {size}",
                    hint="export it with Megatron-Bridge, or save it once more with the setting off",
                    kind=Kind.UNSUPPORTED,
                )


def uninterleaved(
    tensors: dict[str, StoredTensor], stated: Mapping[str, Any]
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Put all gate rows before all up rows.

    Args:
        tensors: the tensors by canonical name.
        stated: the trainer's settings.

    Returns:
        The tensors, and one note for each setting that changed some.

    Raises:
        CkptconvError: the number of ranks is not recorded, or a tensor does not consist of whole blocks.
    """
    done, notes = dict(tensors), []
    for name, which, ranks in _SETTINGS:
        size = stated.get(name)
        if type(size) is not int or not size:
            continue
        over = next((stated[key] for key in ranks if type(stated.get(key)) is int), None)
        if over is None:
            raise CkptconvError(
                f"{name} is {size}, but the number of ranks is not recorded",
                wanted=" or ".join(ranks),
                kind=Kind.UNSUPPORTED,
            )
        count = 0
        for key, tensor in tensors.items():
            if which.search(key):
                count += 1
                done[key] = tensor._replace(view=_halves(key, tensor.view, size, over), replicas=())
        if count:
            notes.append(f"{name} is {size}: gate and up of {count} tensors are put one after the other")
    return done, notes


def _halves(name: str, view: View, size: int, ranks: int) -> View:
    """One tensor with all gate rows before all up rows.

    Args:
        name: the tensor.
        view: the stored tensor, (rows, …).
        size: the rows of a block.
        ranks: the number of ranks over which it was sharded.
    """
    rows = view.shape[0] if view.shape else 0
    if not 0 < size <= rows or not 0 < ranks <= rows:
        raise CkptconvError(
            f"{name} has no whole blocks of rows",
            found=f"{rows} rows",
            wanted=f"blocks of {size} over {ranks} ranks",
        )
    part, left = divmod(rows, 2 * ranks)
    if left or 2 * part % (2 * size):
        raise CkptconvError(
            f"{name} has no whole blocks of {size} rows", found=f"{rows} rows over {ranks} ranks"
        )
    pieces = split(view, 0, [part] * 2 * ranks)
    local = [cat([pieces[rank], pieces[ranks + rank]], 0) for rank in range(ranks)]
    starts = range(0, 2 * part, 2 * size)
    return cat(
        [narrow(one, 0, start + side * size, size) for side in (0, 1) for one in local for start in starts], 0
    )
