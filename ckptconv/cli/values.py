"""Converts plain values of the command line without pydantic, whose import takes longer than a small `inspect`.

typer converts every value through pydantic. A text, a path and a number need none of it. Everything else goes to typer's
own conversion, and so does a value that is wrong, so that typer words the error.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

_PLAIN: dict[Any, Callable[[str], Any]] = {str: str, Path: Path, int: int, float: float}


def convert_plainly(params: list[Any]) -> list[Any]:
    """Let typer's parameters convert their values without pydantic where they can; older typers have none of it."""
    for param in params:
        if hasattr(param, "get_runtime_param") and "get_runtime_param" not in vars(param):
            setattr(param, "get_runtime_param", _PlainValue(param).get)  # noqa: B010 - typer has no setting for it
    return params


class _PlainValue:
    """The conversion of one parameter's values, in the place of typer's (`typer/_coercion.py`, RuntimeParam).

    Args:
        param: typer's parameter, before its `get_runtime_param` is replaced by `get`.
    """

    def __init__(self, param: Any) -> None:
        self._others, self._kind = param.get_runtime_param, param.type_descriptor

    def get(self) -> _PlainValue:
        return self

    def coerce(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        """The value that the command gets.

        Args:
            value: a text, a list of texts for a repeatable option, a default, or None where the option is missing.
            args, kwargs: what typer passes to its own conversion.
        """
        info, kind = self._kind.parameter_info, self._kind.annotation
        if value is None:
            return () if self._kind.is_list else None
        if isinstance(value, str) and info.parser is None and kind in _PLAIN and not _is_checked(info):
            try:
                found = _PLAIN[kind](value)
            except ValueError:
                found = None
            lowest = info.min if info.min is not None else found
            if found is not None and (kind in (str, Path) or found >= lowest) and info.max is None:
                return found
        return self._others().coerce(value, *args, **kwargs)


def _is_checked(info: Any) -> bool:
    """True for a path that typer itself looks up on the disk."""
    return bool(info.exists or info.resolve_path or info.path_type)
