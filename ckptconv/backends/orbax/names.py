"""Which arrays of an Orbax checkpoint are the model's, and MaxText's scanned layers as one tensor per layer.

MaxText stacks the layers of a model along dim 1 of every array (`scan_layers` with `param_scan_axis: 1`, its defaults), and
writes `layers_N` without. Both become `layers.N` here. Sources: AI-Hypercomputer/maxtext, src/maxtext/configs/base.yml;
src/maxtext/checkpoint_conversion/utils/utils.py, detect_and_extract_checkpoint and process_maxtext_param.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.view import View, unbind

SIGN = "token_embedder.embedding"  # every model of MaxText has it
_SCANNED = re.compile(r"^decoder\.layers\.(?!\d+(?:\.|$))(.+)$")
_UNSCANNED = re.compile(r"^decoder\.layers_(\d+)\.(.+)$")
_AXIS = 1  # of the layers in a scanned array

Keys = tuple[str, ...]


def of_model(arrays: Iterable[Keys]) -> dict[Keys, str]:
    """Choose the model's arrays and name them.

    Args:
        arrays: the keys that lead to each array of the checkpoint.

    Returns:
        The keys of an array of the model -> its name: the keys joined with dots, without the `params` around all of them
        (a train state's and Flax's) and without the `value` that NNX puts around each.
    """
    chosen = {keys: keys for keys in arrays}
    while any(rest[0] == "params" and len(rest) > 1 for rest in chosen.values()):
        chosen = {keys: rest[1:] for keys, rest in chosen.items() if rest[0] == "params" and len(rest) > 1}
    if chosen and all(rest[-1] == "value" and len(rest) > 1 for rest in chosen.values()):
        chosen = {keys: rest[:-1] for keys, rest in chosen.items()}
    return {keys: ".".join(rest) for keys, rest in chosen.items()}


def by_layer(tensors: Mapping[str, View], where: object) -> dict[str, View]:
    """MaxText's tensors with one tensor per layer, named `decoder.layers.N.…`.

    Args:
        tensors: name -> view. A scanned one has the shape (first dim, layers, …).
        where: the folder, for error messages.

    Raises:
        CkptconvError: the scanned arrays do not have the same number of layers along dim 1.
    """
    counts = {view.shape[_AXIS : _AXIS + 1] for name, view in tensors.items() if _SCANNED.match(name)}
    if len(counts) > 1 or () in counts:
        raise CkptconvError(
            "the scanned arrays do not have their layers along dim 1",
            where=where,
            found="sizes of dim 1: " + ", ".join(sorted(str(size[0]) if size else "none" for size in counts)),
            wanted="the number of layers in each (MaxText's param_scan_axis: 1)",
            kind=Kind.UNSUPPORTED,
        )
    found: dict[str, View] = {}
    for name, view in tensors.items():
        if match := _SCANNED.match(name):
            layers = unbind(view, _AXIS)
            found |= {f"decoder.layers.{number}.{match[1]}": layer for number, layer in enumerate(layers)}
        elif match := _UNSCANNED.match(name):
            found[f"decoder.layers.{int(match[1])}.{match[2]}"] = view
        else:
            found[name] = view
    return found
