"""Names with holes: a rule matches one name and fills the holes of the other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import ClassVar


@dataclass(frozen=True)
class Pattern:
    """A name with holes: `model.layers.{layer}.mlp.{gate,up}_proj.weight`.

    A hole `{layer}` matches digits, `{what}` matches weight or bias, `{rest}` matches all further segments, except those
    of an adapter, and any other hole matches one segment. `{gate,up}` stands for several tensors that belong together,
    in this order.
    """

    text: str
    NUMBERS: ClassVar[tuple[str, ...]] = ("layer", "expert", "block", "index", "mtp")
    KINDS: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(NUMBERS, r"\d+"),
        "what": "weight|bias",
        "rest": r"(?:(?!(?<![^.])(?:lora_|adapter\.|base_layer\.|to_wrap\.)).)+",
    }

    @cached_property
    def holes(self) -> tuple[str, ...]:
        """Return the names of the holes, in order."""
        return tuple(re.findall(r"\{(\w+)\}", self.text))

    @cached_property
    def names(self) -> tuple[Pattern, ...]:
        """Return one pattern for each item of the list in braces; the pattern itself if it has no such list."""
        found = re.search(r"\{([^{}]*,[^{}]*)\}", self.text)
        if not found:
            return (self,)
        heads, tail = self.text[: found.start()], self.text[found.end() :]
        return tuple(chain(*(Pattern(heads + one + tail).names for one in found[1].split(","))))

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        parts = re.split(r"\{(\w+)\}", self.text)
        for i in range(1, len(parts), 2):
            parts[i] = rf"(?P<{parts[i]}>{self.KINDS.get(parts[i], r'[^.]+')})"
        parts[::2] = map(re.escape, parts[::2])
        return re.compile("".join(parts))

    def match(self, name: str) -> dict[str, str] | None:
        """Return the text of each hole in a name, or None if the name does not match."""
        found = self._regex.fullmatch(name)
        return found.groupdict() if found else None

    def spans(self, name: str) -> dict[str, tuple[int, int]] | None:
        """Return where in a name the text of each hole begins and ends, or None if the name does not match."""
        found = self._regex.fullmatch(name)
        return {hole: found.span(hole) for hole in found.groupdict()} if found else None

    def fill(self, holes: Mapping[str, str | int]) -> str:
        """Return the name with its holes filled."""
        return self.text.format(**holes)
