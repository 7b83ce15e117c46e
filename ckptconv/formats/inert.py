"""Inert records for objects whose classes are never imported, and what may be read of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckptconv.errors import CkptconvError, Kind

_made = object.__new__
_MOST_ARGS = 255  # of a call: arguments are copied, and a pickle can pass one object a million times


def check_few(count: int) -> None:
    """Refuse a call with more arguments than any class or function of a checkpoint takes."""
    if count > _MOST_ARGS:
        raise CkptconvError("a pickle passes too many arguments to a call", found=count, kind=Kind.DAMAGED)


class Inert:
    """An object of a class that is never imported: `kind` is "module.Class", `args` and `state` hold what was pickled.

    The items of a list or dict of such a class are not kept.
    """

    kind = ""
    __slots__ = ("args", "state")
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **named: Any) -> Inert:
        if args or named:
            check_few(len(args) + len(named))
        self = _made(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """Take an item of a list."""

    def extend(self, items: Any) -> None:
        """Take several items of a list."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Take an item of a dict."""

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field of the state; for a class with slots, pickle writes the state as a pair of dicts (dict, slots)."""
        state = self.state
        if type(state) is dict:
            return state.get(name, default)
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict) and name in part:
                return part[name]
        return default

    def __repr__(self) -> str:
        return f"<{self.kind}>"


class _Fixed(type):
    """The type of classes that a pickle cannot change. Classes of `Inert` are safe by their own __setstate__."""

    def __setstate__(cls, state: Any) -> None:
        raise CkptconvError("a pickle tries to change a class", kind=Kind.DAMAGED)


class Fields(metaclass=_Fixed):
    """An object of one of DCP's dataclasses, of which a large `.metadata` has hundreds of thousands.

    It has no methods, so that the C unpickler makes it and fills its `__dict__` without a call into Python. Only `fields_of`
    reads it, since a pickle may give a field any name, even that of a method.
    """


def fields_of(record: Any) -> Mapping[Any, Any]:
    """Return the fields of a pickled object; empty for anything else."""
    if isinstance(record, Fields):
        return vars(record)
    state = record.state if isinstance(record, Inert) else None
    parts = [part for part in (state if isinstance(state, tuple) else (state,)) if isinstance(part, dict)]
    return parts[0] if len(parts) == 1 else {key: part[key] for part in reversed(parts) for key in part}


def field_of(record: Any, name: str) -> Any:
    """Return a field of a pickled object, or None if the record is not an object or lacks the field."""
    return record.get(name) if isinstance(record, Inert) else fields_of(record).get(name)


def items(value: Any) -> Sequence[Any]:
    """Return the items of a pickled list or tuple, or an empty tuple for None.

    Raises:
        CkptconvError: the value has another type.
    """
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise CkptconvError(
            "a pickle has another type where a list is expected", found=value, kind=Kind.DAMAGED
        )
    return value
