"""Check that one save wrote a checkpoint's optimizer files and model files.

An Adam state holds the number of its steps, as a tensor or a number per parameter group (torch/optim/adam.py,
deepspeed/ops/adam/); the model files hold the engine's `global_steps`, of which `skipped_steps` had an overflow and changed
nothing (deepspeed/runtime/engine.py, `_common_checkpoint_state`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from ckptconv.errors import CkptconvError
from ckptconv.formats.stand_ins import TensorRecord
from ckptconv.formats.torch_zip import TorchZip
from ckptconv.tensors.look import opened

_FORMATS = {"float32": "<f", "float64": "<d", "int64": "<q", "int32": "<i"}
_MOST_STEPS = 10_000  # the number of counters that are read per rank
_DEEPEST = 6


def steps_of(file: TorchZip, state: Mapping[str, Any]) -> dict[str, int]:
    """Return the step counters in a rank's optimizer state: place in the state -> steps."""
    found: dict[str, int] = {}
    for place, value in _counters(state, ""):
        if len(found) == _MOST_STEPS:
            break
        steps = _number(file, value)
        if steps is not None:
            found[place] = steps
    return found


def check_steps(
    ranks: Mapping[str, dict[str, int]], global_steps: int | None, skipped_steps: int, model: str
) -> list[str]:
    """Compare the ranks' counters with each other and with the engine's.

    Args:
        ranks: file -> its counters.
        global_steps, skipped_steps: as the model file has them.
        model: the model file.

    Returns:
        A note if the optimizer counts fewer steps than the model, as it does after a restart of the optimizer.

    Raises:
        CkptconvError: ranks differ, or the optimizer is ahead of the model.
    """
    path, first = next(iter(ranks.items()))
    for other, steps in ranks.items():
        for place in steps.keys() & first.keys():
            if steps[place] != first[place]:
                raise CkptconvError(
                    "the optimizer files are of different steps",
                    where=other,
                    found=f"{steps[place]:,} steps",
                    wanted=f"{first[place]:,}, as in {path}",
                    hint="copy all of one step again",
                )
    most = max((count for steps in ranks.values() for count in steps.values()), default=None)
    if most is None or global_steps is None:
        return []
    if most > global_steps:
        raise CkptconvError(
            "the optimizer files are of a later step than the model file",
            where=path,
            found=f"{most:,} steps",
            wanted=f"at most global_steps {global_steps:,}, as in {model}",
            hint="copy all of one step again",
        )
    if most < global_steps - skipped_steps:
        return [
            f"the optimizer counts {most:,} steps, the model file {global_steps - skipped_steps:,}: the files are of "
            "different saves, unless the optimizer began anew in between"
        ]
    return []


def _counters(value: Any, place: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield every value under a key `step`, with its place."""
    if depth > _DEEPEST:
        return
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list | tuple)
        else ()
    )
    for key, inner in pairs:
        if key == "step":
            yield place, inner
        else:
            yield from _counters(inner, f"{place}.{key}", depth + 1)


def _number(file: TorchZip, value: Any) -> int | None:
    if isinstance(value, TensorRecord):
        view = file.view(value)
        layout = _FORMATS.get(view.dtype)
        if view.numel != 1 or layout is None:
            return None
        with opened(file.path) as stored:
            (value,) = struct.unpack(layout, stored.read(view.chunks[0].start, struct.calcsize(layout)))
    whole = type(value) in (int, float) and 0 <= value < 1 << 53 and value == int(value)
    return int(value) if whole else None
