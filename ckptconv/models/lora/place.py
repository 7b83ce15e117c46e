"""Finds the Hub weights that LoRA updates belong to, by applying the weights' own rules to the updates.

`left` (out, r) has the rows of its weight (out, in). A layout change that only moves rows therefore turns `left` into the
updates of the weight's pieces, and `right` (r, in) is the same for all of them. A probe, a made-up tensor of two columns,
shows whether a change only moves rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models.hub_names import Named, Renamed
from ckptconv.models.lora.factors import Factors
from ckptconv.tensors.view import Shape, View, stored, unbind, unflatten

Rename = Callable[[Mapping[str, View]], Renamed[View]]
Turned = Callable[[str], bool]
_PARTS = (("q", "k", "v"), ("gate", "up"))  # in the order of the rows of a fused weight
_PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Placed:
    """The update of one Hub weight.

    Args:
        weight: the weight's name.
        shape: the shape of the update.
        left: (rows, r), in C order.
        right: (r, columns).
        factors: the stored pair.
        magnitude: DoRA's magnitude of each row, in C order, or of each column if `by_column`.
        by_column: the weight is (in, out), or an embedding.
        bias: (the bias's name, what is added to it).
        parameter: the trained name of the stack of experts; "" for an ordinary layer.
    """

    weight: str
    shape: Shape
    left: View
    right: View
    factors: Factors
    magnitude: View | None = None
    by_column: bool = False
    bias: tuple[str, View] | None = None
    parameter: str = ""

    @property
    def module(self) -> str:
        """The Hub name of the module."""
        return self.weight.removesuffix(".weight")

    @property
    def views(self) -> tuple[View, ...]:
        """All stored elements of the update."""
        found = (self.left, self.right, self.magnitude, self.bias[1] if self.bias else None)
        return tuple(view for view in found if view is not None)


@dataclass(frozen=True, slots=True)
class Placement:
    """The updates by Hub weight.

    Args:
        placed: the updates.
        left_out: (trained name, view, reason) of rows that no Hub weight has, such as those of a padded vocabulary.
    """

    placed: tuple[Placed, ...]
    left_out: tuple[tuple[str, View, str], ...] = ()


def place(factors: Iterable[Factors], rename: Rename, turned: Turned = lambda module: False) -> Placement:
    """Find the Hub weights of ordinary layers; see `place_experts` for stacks of experts.

    Args:
        factors: the LoRA layers.
        rename: renames and splits weights.
        turned: whether the weight of a module, by its name, is (in, out).

    Raises:
        CkptconvError: a weight's layout change does more than move rows.
    """
    plain: list[Factors] = []
    parts: dict[str, dict[str, Factors]] = {}
    for each in factors:
        if each.part:
            parts.setdefault(each.module, {})[each.part] = each
        else:
            plain.append(each)
    made, left_out = _rows(plain, rename, turned)
    for module, found in parts.items():
        made += _in_parts(module, found, rename)
    return Placement(tuple(made), tuple(left_out))


def place_experts(
    factors: Factors, parameter: str, rank: int, turned: bool, rename: Rename
) -> tuple[Placed, ...]:
    """Find the Hub weights of a stack of experts.

    Args:
        factors: the pair of the stack; see `Factors.stacked`.
        parameter: the trained name of the stack.
        rank: r.
        turned: each expert's weight is (in, out).
        rename: renames and splits weights.

    Returns:
        The updates. If the Hub keeps the stack, `left` is (E * rows, r) in C order, and `right` (E, r, columns).

    Raises:
        CkptconvError: a Hub weight has rows of several experts.
    """
    left, right = factors.stacked(rank, turned)
    experts, rows, _ = left.shape
    columns, ones = right.shape[2], unbind(right, 0)
    made = rename({parameter: left}).tensors
    found = []
    for name, probe in rename({parameter: stored(_PROBE, 0, (experts, rows, 2), "uint8")}).tensors.items():
        _check_probe(name, probe)
        value, count = made[name].value, prod(probe.shape) // 2
        if probe.shape == (experts, rows, 2) and probe.value.chunks[0].sizes == probe.shape:
            found.append(Placed(name, (experts, rows, columns), value, right, factors, parameter=parameter))
            continue
        owners = {chunk.start // (2 * rows) for chunk in probe.value.chunks}
        if len(owners) != 1:
            raise CkptconvError(
                f"LoRA on the stacked experts {parameter} cannot follow them to {name}", kind=Kind.UNSUPPORTED
            )
        one = ones[owners.pop()]
        found.append(Placed(name, (count, columns), value, one, factors, parameter=parameter))
    return tuple(found)


def _rows(
    factors: list[Factors], rename: Rename, turned: Turned
) -> tuple[list[Placed], list[tuple[str, View, str]]]:
    """The updates of layers that each have one pair, and the rows that no Hub weight has."""
    sides = {each.weight: each.sides(turned(each.module)) for each in factors}
    by_column = {each.weight: each.embedding or turned(each.module) for each in factors}
    lefts = rename({weight: left for weight, (left, _) in sides.items()})
    probes = rename(
        {weight: stored(_PROBE, 0, (left.shape[0], 2), "uint8") for weight, (left, _) in sides.items()}
    )
    lengths = rename(
        {
            each.weight: unflatten(each.magnitude[1], 0, (each.magnitude[1].numel, 1))
            for each in factors
            if each.magnitude and not by_column[each.weight]
        }
    ).tensors
    biases = rename({f"{each.module}.bias": each.bias[1] for each in factors if each.bias}).tensors
    by_weight = {each.weight: each for each in factors}
    made = []
    for name, left in lefts.tensors.items():
        probe = probes.tensors[name]
        _check_probe(name, probe)
        each = by_weight[left.sources[0]]
        rows, right = prod(probe.shape) // 2, sides[each.weight][1]
        magnitude = lengths[name].value if name in lengths else None
        if each.magnitude and by_column[each.weight]:
            magnitude = each.magnitude[1]
        bias = f"{name.removesuffix('.weight')}.bias"
        made.append(
            Placed(
                weight=name,
                shape=(rows, right.shape[1]),
                left=left.value,
                right=right,
                factors=each,
                magnitude=magnitude,
                by_column=by_column[each.weight],
                bias=(bias, biases[bias].value) if bias in biases else None,
            )
        )
    left_out = [(by_weight[name].b[0], view, reason) for name, view, reason in lefts.left_out]
    return made, left_out


def _in_parts(module: str, found: Mapping[str, Factors], rename: Rename) -> list[Placed]:
    """The updates of Megatron-Bridge's canonical LoRA, which has one adapter for each part of a fused weight.

    The adapters of gate and up are saved as halves of every TP rank, like a fused weight (megatron/bridge/peft/utils.py,
    ParallelLinearAdapter.sharded_state_dict), so with several ranks their rows are not in order.

    Args:
        module: the fused module.
        found: part -> its pair.
        rename: renames and splits weights.
    """
    order = next((names for names in _PARTS if set(names) == set(found)), None)
    if order is None:
        raise CkptconvError(
            f"adapters for only some parts of {module} are not supported",
            found=sorted(found),
            kind=Kind.UNSUPPORTED,
        )
    if "gate" in order and any(len({c.offsets[0] for c in f.b[1].chunks}) > 2 for f in found.values()):
        raise CkptconvError(
            f"canonical LoRA on {module}, saved with tensor parallelism, is not supported",
            hint="save it with tensor parallelism 1, or export it with Megatron-Bridge",
            kind=Kind.UNSUPPORTED,
        )
    lengths = [found[part].b[1].shape[0] for part in order]
    probes = rename({f"{module}.weight": stored(_PROBE, 0, (sum(lengths), 2), "uint8")}).tensors
    made = []
    for (name, probe), part, rows in zip(probes.items(), order, lengths, strict=True):
        _check_probe(name, probe)
        left, right = found[part].sides(False)
        if prod(probe.shape) != 2 * rows:
            raise CkptconvError(f"the adapter {part} of {module} does not fit {name}", found=f"{rows} rows")
        made.append(Placed(name, (rows, right.shape[1]), left, right, found[part]))
    return made


def _check_probe(name: str, probe: Named[View]) -> None:
    """Require that every row of the probe is still a row: two adjacent elements in the last dim."""
    whole = probe.value.shape[-1:] == probe.shape[-1:] == (2,)
    rows = all(c.sizes[-1] == 2 and c.strides[-1] == 1 and c.start % 2 == 0 for c in probe.value.chunks)
    if not whole or not rows or len(probe.sources) != 1:
        raise CkptconvError(
            f"LoRA on {' and '.join(probe.sources)} cannot follow its weight to {name}",
            found="a layout change that does more than move rows",
            hint="merge it with the trainer's own tools",
            kind=Kind.UNSUPPORTED,
        )
