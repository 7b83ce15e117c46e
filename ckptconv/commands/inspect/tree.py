"""Arranges the tensors by module, with sizes. Consecutive equal modules share a node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

from ckptconv.commands.inspect.records import Node
from ckptconv.commands.inspect.rows import ordered
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.names import natural

_Nested = dict[str, Any]


def tree_of(checkpoint: Checkpoint, sort: str | None = None, reverse: bool = False) -> Node:
    """The root of the tree, whose children are the outermost modules.

    Args:
        checkpoint: the checkpoint.
        sort: the order of siblings; see `ordered`.
        reverse: reverse that order.
    """
    nested: _Nested = {}
    for name, tensor in checkpoint.tensors.items():
        at = nested
        *modules, last = name.split(".")
        for module in modules:
            at = at.setdefault(f"{module}.", {})  # a module and a tensor may share a name
        view = tensor.view
        at[last] = Node(last, 1, 1, view.numel, view.nbytes, view.shape, view.dtype)
    return _node("", nested, sort, reverse)


def _node(name: str, nested: _Nested, sort: str | None, reverse: bool) -> Node:
    children = []
    for key, value in nested.items():
        child = value if isinstance(value, Node) else _node(key.removesuffix("."), value, sort, reverse)
        children.append(_short(child))
    return _total(name, ordered(_collapsed(children), sort, reverse))


def _short(node: Node) -> Node:
    """Join a module with its only child into one line: `q_proj.weight`, `layers.0–23`."""
    if len(node.children) != 1 or (node.children[0].count > 1 and _number(node.name) is not None):
        return node
    (child,) = node.children
    return replace(child, name=f"{node.name}.{child.name}")


def _total(name: str, children: tuple[Node, ...]) -> Node:
    return Node(
        name,
        1,
        sum(child.tensors for child in children),
        sum(child.parameters for child in children),
        sum(child.nbytes for child in children),
        children=children,
    )


def _collapsed(children: list[Node]) -> Iterator[Node]:
    """Join consecutive numbered children that are equal: `0`, `1`, .. `23` become `0–23`."""
    numbered = sorted((c for c in children if _number(c.name) is not None), key=lambda c: natural(c.name))
    yield from (child for child in children if _number(child.name) is None)
    for _, group in groupby(numbered, key=_form):
        same = list(group)
        first, last, count = same[0], same[-1], len(same)
        if count == 1:
            yield first
            continue
        tail = first.name[len(str(_number(first.name))) :]
        name = f"{_number(first.name)}–{_number(last.name)}{tail}"
        totals = (first.tensors * count, first.parameters * count, first.nbytes * count)
        yield Node(name, count, *totals, first.shape, first.dtype, first.children)


def _number(name: str) -> int | None:
    head = name.partition(".")[0]
    return int(head) if head.isdigit() else None


def _form(node: Node) -> tuple[Any, ...]:
    """A value that is equal for equal modules with different numbers."""
    tail = node.name.partition(".")[2] if _number(node.name) is not None else node.name
    return tail, node.count, node.shape, node.dtype, tuple(_form(child) for child in node.children)
