"""Mamba-2 layers in rank files: each tensor parallel rank has its own rows of every part of in_proj and conv1d.

A rank's in_proj has the rows [z, x, B, C, dt] of its heads and groups, its conv1d those of [x, B, C]
(megatron/core/ssm/mamba_mixer.py, MambaMixer). The shapes of the layer's other tensors tell how many rows each part has:
out_proj has a column per row of z, and A_log has an element per row of dt. The parts get the names that torch_dist files
give them (MambaMixer.sharded_state_dict).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckptconv.errors import CkptconvError
from ckptconv.tensors.view import View, split

_MIXER = re.compile(r"^(.*\.(?:mamba_)?mixer\.)in_proj\.weight$")
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
    for mixer in [found[1] for name in chunk if (found := _MIXER.match(name))]:
        in_proj, convs = _rows(chunk, mixer, where)
        _split(made, mixer + "in_proj.weight", mixer + "in_proj.weight", _IN_PROJ, in_proj)
        for name in convs:
            _split(made, mixer + name, mixer + _CONV1D_NAMES[name], _CONV1D, in_proj[1:4])
    return made


def _rows(chunk: Mapping[str, View], mixer: str, where: str) -> tuple[tuple[int, ...], list[str]]:
    """Return the rows of z, x, B, C and dt on this rank, and the names of the layer's convolution."""
    convs = [name for name in _CONV1D_NAMES if mixer + name in chunk]
    wanted = {name: chunk.get(mixer + name) for name in ("out_proj.weight", "A_log", *convs[:1])}
    rows = chunk[mixer + "in_proj.weight"].shape[0]
    absent = [name for name, view in wanted.items() if view is None or not view.shape]
    if not convs or absent:
        raise CkptconvError(
            "a Mamba layer is not whole", where=f"{mixer}{(*absent, 'conv1d.weight')[0]} in {where}"
        )
    out_proj, a_log, conv = (view for view in wanted.values() if view is not None)
    inner, heads = out_proj.shape[-1], a_log.shape[0]
    state, odd = divmod(conv.shape[0] - inner, 2)
    if odd or state <= 0 or rows != 2 * (inner + state) + heads or len(out_proj.shape) != 2:
        raise CkptconvError(
            "the tensors of a Mamba layer do not fit together",
            where=f"{mixer}in_proj.weight in {where}",
            found=f"{rows} rows",
            wanted=f"2 x {inner} of out_proj, {conv.shape[0] - inner} of conv1d and {heads} of A_log",
        )
    return (inner, inner, state, state, heads), convs


def _split(
    made: dict[str, View], stored: str, named: str, parts: tuple[str, ...], rows: tuple[int, ...]
) -> None:
    """Replace a tensor by its parts along dim 0."""
    pieces = split(made.pop(stored), 0, list(rows))
    made.update({f"{named}.{part}": piece for part, piece in zip(parts, pieces, strict=True)})
