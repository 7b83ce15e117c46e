"""Checks that one save wrote all rank files, and that each is in the folder of the rank that wrote it.

Megatron-LM's files have `iteration` and, in `args`, the number of the rank that wrote them
(megatron/training/checkpointing.py, generate_state_dict). verl's model.pt has neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ckptconv.backends.megatron.settings import args_of, check_iteration, iteration_of, number
from ckptconv.backends.megatron.stages import Coordinate
from ckptconv.errors import CkptconvError
from ckptconv.formats.torch_zip import TorchZip

# Settings that all ranks of a run share, by their names in `args`.
_SHARED = (
    "num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "kv_channels", "norm_epsilon",
    "layernorm_epsilon", "rotary_base", "padded_vocab_size", "world_size", "tensor_model_parallel_size",
    "pipeline_model_parallel_size", "expert_model_parallel_size", "expert_tensor_parallel_size",
)  # fmt: skip
_COPY_AGAIN = "the files are of different saves or ranks: copy all of one step again"


def check_one_save(files: Sequence[tuple[Coordinate, TorchZip]], home: Path) -> None:
    """Compare what the rank files state about the save and about their ranks.

    Args:
        files: each rank file with the coordinate that its folder's name gives.
        home: the folder with the mp_rank_* folders.

    Raises:
        CkptconvError: files are of different iterations or settings, or a file is in another rank's folder.
    """
    first = files[0][1]
    shared = _arguments(first)
    for _, file in files:
        check_iteration(file.root, file.path, home)
        _same("iteration", iteration_of(file.root), iteration_of(first.root), file, first)
        arguments = _arguments(file)
        for name in _SHARED:
            _same(name, arguments.get(name), shared.get(name), file, first)
    _check_ranks(files)


def _same(name: str, found: Any, wanted: Any, file: TorchZip, first: TorchZip) -> None:
    """Refuse two different numbers for one setting; values that are not numbers are not compared."""
    plain = all(isinstance(value, int | float) for value in (found, wanted))
    if plain and found != wanted:
        raise CkptconvError(
            f"two rank files have different values of {name}",
            where=file.path,
            found=found,
            wanted=f"{wanted}, as in {first.path}",
            hint=_COPY_AGAIN,
        )


def _check_ranks(files: Sequence[tuple[Coordinate, TorchZip]]) -> None:
    """Compare `args.rank` with the coordinate of each file.

    In every order that Megatron supports, the rank modulo the TP size is the TP rank, and the rank grows along each axis
    (megatron/core/parallel_state.py).
    """
    ranks: dict[int, TorchZip] = {}
    # (axis, the coordinate without that axis) -> (the coordinate along the axis, rank, file) of each rank file on that line
    lines: dict[tuple[int, Coordinate], list[tuple[int, int, TorchZip]]] = {}
    for coordinate, file in files:
        arguments = _arguments(file)
        rank, size = (number(arguments.get(name)) for name in ("rank", "tensor_model_parallel_size"))
        if rank is None:
            continue
        if size and rank % size != coordinate.tp:
            raise _wrong_folder(
                file, f"rank {rank}, which is TP rank {rank % size} of {size}", f"TP rank {coordinate.tp}"
            )
        first = ranks.setdefault(rank, file)
        if first is not file:
            raise _wrong_folder(file, f"rank {rank}, as in {first.path}", "a file of another rank")
        for axis in range(len(coordinate)):
            others = Coordinate(*(0 if n == axis else at for n, at in enumerate(coordinate)))
            lines.setdefault((axis, others), []).append((coordinate[axis], rank, file))
    for line in lines.values():
        line.sort(key=lambda each: each[0])
        for (_, before, _), (_, rank, file) in pairwise(line):
            if rank < before:
                raise _wrong_folder(file, f"rank {rank}", f"a rank after {before}")


def _wrong_folder(file: TorchZip, found: str, wanted: str) -> CkptconvError:
    return CkptconvError(
        "a rank file is in the folder of another rank",
        where=file.path,
        found=found,
        wanted=wanted,
        hint=_COPY_AGAIN,
    )


def _arguments(file: TorchZip) -> Mapping[str, Any]:
    """Megatron-LM's arguments in a rank file; {} if it has none."""
    found = args_of(file.root, file.path)
    return found[0].values if found else {}
