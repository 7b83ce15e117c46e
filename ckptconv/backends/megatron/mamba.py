"""Mamba-2 layers in rank files: each tensor parallel rank has its own rows of every part of in_proj and conv1d.

A rank's in_proj has the rows [z, x, B, C, dt] of its heads and groups, its conv1d those of [x, B, C]
(megatron/core/ssm/mamba_mixer.py, MambaMixer). The shapes of the layer's other tensors tell how many rows each part has:
out_proj has a column per row of z, and A_log has an element per row of dt. The parts get the names that torch_dist files
give them (MambaMixer.sharded_state_dict). The linear_out of in_proj's adapter has the same rows, and Megatron-Bridge saves
it in the same parts (megatron/bridge/peft/utils.py, ParallelLinearAdapter.sharded_state_dict).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckptconv.errors import CkptconvError
from ckptconv.tensors.checkpoint import StoredTensor
from ckptconv.tensors.view import View, cat, split

_WRAPPERS = ("", "to_wrap.", "base_layer.")  # of a module with an adapter
_MIXER = re.compile(r"^(.*\.(?:mamba_)?mixer\.)in_proj\.(?:to_wrap\.|base_layer\.)?weight$")
_ADAPTER = re.compile(r"^(.*\.(?:mamba_)?mixer\.in_proj\.adapter\.linear_out\.weight)\.(?:z|x|B|C|dt)$")
_LINEAR_OUT = "in_proj.adapter.linear_out.weight"
_IN_PROJ, _CONV1D = ("z", "x", "B", "C", "dt"), ("x", "B", "C")
# Newer releases of Megatron-Core hold the convolution in the mixer itself, and keep the name in torch_dist files.
_CONV1D_NAMES = {
    "conv1d.weight": "conv1d.weight",
    "conv1d.bias": "conv1d.bias",
    "conv1d_weight": "conv1d.weight",
    "conv1d_bias": "conv1d.bias",
}


def taken_apart(chunk: Mapping[str, View], where: str) -> dict[str, View]:
    """Split in_proj and conv1d of every Mamba layer into their parts.

    Args:
        chunk: name -> view of one rank's model chunk.
        where: the rank file, for error messages.

    Returns:
        The chunk, with `in_proj.weight.z` and its like in place of `in_proj.weight`.

    Raises:
        CkptconvError: the shapes of a layer do not fit together.
    """
    made = dict(chunk)
    for name, mixer in [(name, found[1]) for name in chunk if (found := _MIXER.match(name))]:
        in_proj, convs = _rows(chunk, name, mixer, where)
        _split(made, name, mixer + "in_proj.weight", _IN_PROJ, in_proj)
        if mixer + _LINEAR_OUT in made:
            _split(made, mixer + _LINEAR_OUT, mixer + _LINEAR_OUT, _IN_PROJ, in_proj)
        for conv in convs:
            _split(made, mixer + conv, mixer + _CONV1D_NAMES[conv], _CONV1D, in_proj[1:4])
    return made


def with_whole_adapters(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Join the parts of every adapter of a Mamba layer's in_proj: z, x, B, C and dt, in this order.

    Raises:
        CkptconvError: a part is missing.
    """
    made, whole = dict(tensors), {found[1]: None for name in tensors if (found := _ADAPTER.match(name))}
    for name in whole:
        if absent := [part for part in _IN_PROJ if f"{name}.{part}" not in made]:
            raise CkptconvError(f"{name}.{absent[0]} is missing: the adapter of a Mamba layer is not whole")
        parts = [made.pop(f"{name}.{part}") for part in _IN_PROJ]
        made[name] = StoredTensor(cat([part.view for part in parts], 0), parts[0].placement)
    return made


def _rows(chunk: Mapping[str, View], name: str, mixer: str, where: str) -> tuple[tuple[int, ...], list[str]]:
    """Return the rows of z, x, B, C and dt on this rank, and the names of the layer's convolution."""
    convs = [conv for conv in _CONV1D_NAMES if mixer + conv in chunk]
    out_projs = (chunk.get(f"{mixer}out_proj.{wrapper}weight") for wrapper in _WRAPPERS)
    wanted = {
        "out_proj.weight": next((view for view in out_projs if view is not None), None),
        "A_log": chunk.get(mixer + "A_log"),
        "conv1d.weight": chunk[mixer + convs[0]] if convs else None,
    }
    absent = [part for part, view in wanted.items() if view is None or not view.shape]
    if absent:
        raise CkptconvError("a Mamba layer is not whole", where=f"{mixer}{absent[0]} in {where}")
    out_proj, a_log, conv1d = (view for view in wanted.values() if view is not None)
    rows, inner, heads = chunk[name].shape[0], out_proj.shape[-1], a_log.shape[0]
    state, odd = divmod(conv1d.shape[0] - inner, 2)
    if odd or state <= 0 or rows != 2 * (inner + state) + heads or len(out_proj.shape) != 2:
        raise CkptconvError(
            "the tensors of a Mamba layer do not fit together",
            where=f"{name} in {where}",
            found=f"{rows} rows",
            wanted=f"2 x {inner} of out_proj, {conv1d.shape[0] - inner} of conv1d and {heads} of A_log",
        )
    return (inner, inner, state, state, heads), convs


def _split(
    made: dict[str, View], stored: str, named: str, parts: tuple[str, ...], rows: tuple[int, ...]
) -> None:
    """Replace a tensor by its parts along dim 0."""
    pieces = split(made.pop(stored), 0, list(rows))
    made.update({f"{named}.{part}": piece for part, piece in zip(parts, pieces, strict=True)})
