"""What a skeleton's keys are in a config.json, and the expressions and conditions over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ckptconv.models import facts
from ckptconv.models.skeleton import KeyPath, Numbers, Skeleton

_PER_LAYER = "per_layer_config"


class Values:
    """The values of a skeleton's keys in a config.json, including defaults and derived values.

    Args:
        skeleton: the class.
        config: the parsed config.json.
    """

    def __init__(self, skeleton: Skeleton, config: Mapping[str, Any]) -> None:
        self._skeleton, self._config = skeleton, config

    def of(self, path: KeyPath, depth: int = 0, *, stated: bool = False) -> Any:
        """The value of a key; None if it is not certain.

        Args:
            path: the key, with the parts of the config that lead to it.
            depth: the number of derived values that were computed to get here, which is bounded.
            stated: ignore the class's default.
        """
        default, derived, follows = self._skeleton.keys.get(path, (None, None, True))
        found = next(iter(self.stated(path).values()), None)
        if found is not None:
            return found
        if follows:
            return self.number(derived, depth=depth + 1) if derived and depth < 3 else None
        return None if stated else default

    def stated(self, path: KeyPath) -> dict[str, Any]:
        """Each name under which the config states a key -> its value there, without null."""
        names = (path[-1], *self._skeleton.aliases.get(path, ()))
        return {
            name: part[name]
            for part in self._parts(path[:-1])
            for name in names
            if part.get(name) is not None
        }

    def switched(self, path: KeyPath) -> bool | None:
        """Whether a key is on: true, or a number other than 0. null is off. None if it is not certain."""
        names = (path[-1], *self._skeleton.aliases.get(path, ()))
        held = [part[name] for part in self._parts(path[:-1]) for name in names if name in part]
        value = held[0] if held else self.of(path)
        if held and value is None:
            return False
        return bool(value) if isinstance(value, bool | int) else None

    def _parts(self, path: Iterable[str]) -> list[Mapping[str, Any]]:
        """The part of the config that a path leads to, or []. Older configs have the text model's keys at the top level."""
        part: Any = self._config
        for key in path:
            inner = part.get(key)
            if isinstance(inner, dict):
                part = inner
            elif key != "text_config":
                return []
        return [part]

    def holds(self, condition: Any, numbers: Numbers) -> bool | None:
        """Whether a condition is true of a module; None if it is not certain. `Group.when` lists the conditions.

        Args:
            condition: the condition.
            numbers: the numbers in the module's name.
        """
        if condition == "always":
            return True
        kind, *rest = condition
        if kind in ("not", "all", "any"):
            inner = rest[0] if kind != "not" else rest
            return _joined(kind, [self.holds(each, numbers) for each in inner])
        if kind == "outer":
            return self.holds(rest[0], numbers[:-1])
        if kind == "if":
            return self.switched(tuple(rest[0]))
        if kind == "stated":
            return bool(self.stated(tuple(rest[0])))
        if kind == "text":
            text = self.of(tuple(rest[0]))
            return text.startswith(rest[1]) if isinstance(text, str) else None
        if not numbers:
            return None
        return numbers[rest[0]] == rest[1] if kind == "at" else self._numbered(kind, rest, numbers[-1])

    def _numbered(self, kind: str, rest: list[Any], number: int) -> bool | None:
        """A condition on the last number: "before", "step", "from", "in", "list"."""
        if kind == "before":
            bound = self.number(rest[0])
            return None if bound is None or bound < 0 else number < bound
        stated = self.of(tuple(rest[0]))
        if kind == "list":
            value = stated[number] if isinstance(stated, list) and number < len(stated) else None
            found: bool | None = rest[1].get(str(value), rest[1].get(str(facts.kind_today(value))))
            return found
        if kind == "in":
            return (number in stated) is rest[1] if isinstance(stated, list) else None
        if type(stated) is not int:
            return None
        if kind == "from":
            return (number >= stated) is rest[1]
        return stated > 0 and number % stated == rest[1] % stated

    def reason(self, condition: Any) -> str:
        """The keys that a condition reads, with a single one's value, as text for the user."""
        paths = list(dict.fromkeys(paths_in(condition)))
        if len(paths) != 1:
            return "by " + " and ".join(path[-1] for path in paths)
        value = self.of(paths[0])
        if condition[0] == "if":
            return f"{paths[0][-1]} is {str(value).lower() if isinstance(value, bool) else value}"
        return f"by {paths[0][-1]}" + (f" {value}" if type(value) is int else "")

    def chosen(self, expression: Any, numbers: Numbers) -> Any:
        """The expression itself, or that of its cases which holds for a module; None if that is not certain."""
        if not isinstance(expression, dict):
            return expression
        for condition, inner in expression["cases"]:
            holds = self.holds(condition, numbers)
            if holds is None:
                return None
            if holds:
                return inner
        return None

    def number(self, expression: Any, numbers: Numbers = (), depth: int = 0) -> int | None:
        """The value of an expression, which is a sum of products of keys; None if a key is not a number.

        Args:
            expression: the expression.
            numbers: the numbers in the name of the module that it is for.
            depth: see `of`.
        """
        total = 0
        expression = self.chosen(expression, numbers)
        if expression is None:
            return None
        for factor, tops, bottoms in expression:
            part: Any = factor
            for kind, path in tops:
                value = self._feature(kind, tuple(path), numbers, depth)
                if value is None:
                    return None
                part *= value
            for kind, path in bottoms:
                value = self._feature(kind, tuple(path), numbers, depth)
                if not value:
                    return None
                part //= value
            total += part
        return int(total)

    def _feature(self, kind: str, path: KeyPath, numbers: Numbers, depth: int) -> int | float | None:
        value = self.of(path, depth, stated=True)
        if kind == "layer":  # transformers' per_layer_config: a layer's own values by its number
            kind, value = "v", self._layers_own(path, numbers, value)
        if kind == "v":
            return value if type(value) in (int, float) and abs(value) < 1 << 63 else None  # not inf, not NaN
        if not isinstance(value, list | dict):
            return None
        if kind == "len":
            return len(value)
        if not isinstance(value, list) or not value or not all(type(v) is int for v in value):
            return None
        if kind == "item":
            return value[numbers[-1]] if numbers and numbers[-1] < len(value) else None
        return sum(value) if kind == "sum" else value[-1]

    def _layers_own(self, path: KeyPath, numbers: Numbers, value: Any) -> Any:
        """The value of a key for one layer. transformers writes the layer's number as "05" where others have two digits."""
        own = self.of((*path[:-1], _PER_LAYER), stated=True)
        if not isinstance(own, dict) or not numbers:
            return value
        mine = next((m for n, m in own.items() if str(n).isdecimal() and int(n) == numbers[-1]), None)
        return mine.get(path[-1], value) if isinstance(mine, dict) else value

    def text(self, expression: Any, numbers: Numbers = ()) -> str:
        """An expression as text for the user, in the config's names."""
        parts = []
        for factor, tops, bottoms in self.chosen(expression, numbers) or ():
            names = [path[-1] if kind in ("v", "layer") else f"{kind} of {path[-1]}" for kind, path in tops]
            product = " × ".join(([str(factor)] if factor != 1 or not names else []) + names)
            parts.append(product + "".join(f" / {path[-1]}" for _, path in bottoms))
        return " + ".join(parts)


def differs_by_layer(expression: Any) -> bool:
    """Whether an expression may have another value for another layer."""
    return isinstance(expression, dict) or any(
        kind in ("item", "layer") for _, tops, bottoms in expression or () for kind, _ in (*tops, *bottoms)
    )


def paths_in(condition: Any) -> Iterable[KeyPath]:
    """Yield the keys that a condition or an expression, or None, reads."""
    if isinstance(condition, dict):
        for inner, expression in condition["cases"]:
            yield from paths_in(inner)
            yield from paths_in(expression)
    elif condition and not isinstance(condition, str) and not isinstance(condition[0], str):  # an expression
        for _, tops, bottoms in condition:
            for kind, path in (*tops, *bottoms):
                yield tuple(path)
                if kind == "layer":
                    yield (*path[:-1], _PER_LAYER)
    elif condition and not isinstance(condition, str):
        kind, *rest = condition
        inner = rest[0] if kind in ("all", "any") else rest if kind in ("not", "may", "outer") else ()
        for each in inner:
            yield from paths_in(each)
        if kind == "before":
            yield from paths_in(rest[0])
        elif kind in ("if", "stated", "text", "list", "in", "from", "step"):
            yield tuple(rest[0])


def _joined(kind: str, found: list[bool | None]) -> bool | None:
    """ "not", "all" or "any" of answers that may be uncertain."""
    if kind == "not":
        return None if found[0] is None else not found[0]
    decisive = kind == "any"
    if decisive in found:
        return decisive
    return None if None in found else not decisive
