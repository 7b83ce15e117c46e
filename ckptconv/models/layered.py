"""The names of a sequential model, `LAYER.name`, as those of a class of transformers: which layer is which module?

A pipeline numbers its layers from the embedding to the head, and a layer has its module's own names
(deepspeed/runtime/pipe/module.py), which are those of the class where the layer is the class's own block. A layer whose
names all fit under one numbered stack of the class (`model.layers.*.`) is that stack's next block; every other tensor must
fit exactly one name outside the stacks, by the end of its name and by its shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ckptconv.errors import CkptconvError, Kind, listed
from ckptconv.models.skeleton import Member, Skeleton, skeleton_of
from ckptconv.models.values import Values
from ckptconv.tensors.view import Shape

NAMING = "pipeline"
_Layer = dict[str, Shape]  # the layer's own names -> shapes


def names_of_class(shapes: Mapping[str, Shape], config: Mapping[str, Any]) -> dict[str, str]:
    """Return stored name -> name in the class that the config names.

    Args:
        shapes: `LAYER.name` -> shape.
        config: the model's config.json.

    Raises:
        CkptconvError: the class is not known, or a layer is none of its modules.
    """
    skeleton = skeleton_of(config)
    if skeleton is None:
        raise CkptconvError(
            "the layers of a pipeline have numbers for names, and config.json names no class that ckptconv knows",
            found=listed(list(shapes)),
            hint="name the model whose layers they are: --config DIR or --config org/name",
            kind=Kind.UNSUPPORTED,
        )
    return _Namer(skeleton, Values(skeleton, config)).names(shapes)


class _Namer:
    """Names layers after the modules of one class, in order."""

    def __init__(self, skeleton: Skeleton, values: Values) -> None:
        self._class = skeleton.architecture
        members = [member for group in skeleton.groups for member in group.members]
        self._members = {member.pattern: member for member in members if not member.pattern.endswith(".**")}
        self._sizes = {name: tuple(map(values.number, member.dims)) for name, member in self._members.items()}
        self._stacks = [f"{stack.context}.*." for stack in skeleton.stacks[1:] if "*" not in stack.context]

    def names(self, shapes: Mapping[str, Shape]) -> dict[str, str]:
        layers: dict[int, _Layer] = {}
        for stored, shape in shapes.items():
            before, _, rest = stored.partition(".")
            layers.setdefault(int(before), {})[rest] = shape
        found: dict[str, str] = {}
        counts: dict[str, int] = {}
        others = {}
        for number, layer in sorted(layers.items()):
            block = self._block(layer)
            if block is None:
                others[number] = layer
                continue
            stack, inner = block
            index = counts[stack] = counts.get(stack, -1) + 1
            begin = stack.replace("*", str(index))
            found |= {f"{number}.{rest}": begin + rest.removeprefix(inner) for rest in layer}
        first = min((int(stored.partition(".")[0]) for stored in found), default=0)
        used: set[str] = set()
        for number, layer in others.items():
            for rest, shape in layer.items():
                used.add(name := self._single(f"{number}.{rest}", rest, shape, number < first, used))
                found[f"{number}.{rest}"] = name
        return found

    def _block(self, layer: _Layer) -> tuple[str, str] | None:
        """Return (the stack of which the layer is a block, what its names have in front of the class's), or None."""
        if len(layer) < 2:
            return None
        for inner in _fronts(layer):
            for stack in self._stacks:
                if all(
                    self._fits(stack + _starred(rest.removeprefix(inner)), shape)
                    for rest, shape in layer.items()
                ):
                    return stack, inner
        return None

    def _single(self, stored: str, rest: str, shape: Shape, is_before: bool, used: set[str]) -> str:
        """Return the one name outside the stacks that a tensor can have.

        A head and an embedding have one shape: the embedding comes before the blocks, the head (which a tied model omits)
        after them.
        """
        wanted: list[Member] = []
        for end in (rest.split(".", n)[-1] for n in range(rest.count(".") + 1)):
            fitting = [
                member
                for name, member in self._members.items()
                if "*" not in name
                and name not in used
                and f".{name}".endswith(f".{end}")
                and self._fits(name, shape)
            ]
            wanted = [member for member in fitting if _is_head(member) != is_before] or fitting
            if len(wanted) == 1:
                return wanted[0].pattern
            if wanted:
                break
        which = f", which may be {listed([member.pattern for member in wanted])}" if wanted else ""
        raise CkptconvError(
            f"a layer of the pipeline is not a module of {self._class}, whose names it would get",
            found=f"{stored} {list(shape)}{which}",
            wanted=f"the names of {self._class} after the layer's number",
            hint="name the model whose layers they are: --config DIR; ckptconv.open(…) reads the tensors as they are named",
            kind=Kind.UNSUPPORTED,
        )

    def _fits(self, pattern: str, shape: Shape) -> bool:
        sizes = self._sizes.get(pattern)
        if sizes is None or (sizes and len(sizes) != len(shape)):
            return sizes is not None and not sizes
        return all(size is None or size == own for size, own in zip(sizes, shape, strict=True))


def _is_head(member: Member) -> bool:
    return member.kind == "tied"


def _fronts(layer: _Layer) -> Iterator[str]:
    """Yield what all names of a layer begin with, segment by segment: "", "layer.", …: a wrapper's attribute."""
    yield ""
    first = next(iter(layer)).split(".")
    front = ""
    for segment in first[:-1]:
        front += f"{segment}."
        if not all(name.startswith(front) for name in layer):
            return
        yield front


def _starred(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
