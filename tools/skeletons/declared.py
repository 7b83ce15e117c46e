"""The rules that skeletons.shown declares for a class, each compared with all of its builds."""

from __future__ import annotations

import re
from typing import Any

from ckptconv.models.skeleton import Skeleton
from ckptconv.models.values import Values
from skeletons.builds import Build
from skeletons.fit import Key
from skeletons.shown import shown


class Declared:
    """The rules that skeletons.shown declares for a class, each compared with all builds.

    Args:
        builds: The builds of the class.
        package: The class's package of transformers.
    """

    def __init__(self, builds: list[Build], package: str) -> None:
        config = builds[0].config
        self._rules = shown(package, ("text_config",) if isinstance(config.get("text_config"), dict) else ())
        nothing = Skeleton("", "", (), (), (), (), {}, {})
        self._values = [Values(nothing, build.config) for build in builds]

    def rule_of(self, pattern: str) -> str:
        """The regular expression that covers a pattern; "" if none does."""
        return next((rule for rule, _ in self._rules.when if re.search(rule, pattern)), "")

    def when(self, rule: str, keys: frozenset[Key], everywhere: set[Key]) -> Any:
        """The condition of a rule, which must tell where the tensors are in every build."""
        condition = dict(self._rules.when)[rule]
        needed = condition[1] if condition[0] == "may" else condition
        uncertain = 0
        for build, index in everywhere:
            holds = self._values[build].holds(needed, index)
            uncertain += holds is None
            if holds is ((build, index) not in keys):
                raise RuntimeError(f"{rule} is wrong in build {build} at {index}")
        if uncertain * 10 > len(everywhere):
            raise RuntimeError(f"{rule} is not certain in {uncertain} of {len(everywhere)} modules")
        return condition

    def dims(self, pattern: str) -> dict[int, Any]:
        """The declared expressions of a pattern, by dim."""
        return next((dims for rule, dims in self._rules.dims if re.search(rule, pattern)), {})

    def checked(self, pattern: str, expression: Any, sizes: dict[Key, int]) -> Any:
        """An expression, which must give the size of every tensor."""
        for (build, index), size in sizes.items():
            if self._values[build].number(expression, index) not in (size, None):
                raise RuntimeError(f"a size of {pattern} is wrong in build {build} at {index}: {size}")
        return expression
