"""The second process of commands/merge/beside_copy.py: builds a class on the meta device, compares names and shapes with it.

It reads one JSON document from stdin, {"config": …, "shapes": {name: [sizes]}}, and prints one: {"why": …} where the class
cannot be built, else {"architecture", "version", "foreign", "missing", "wrong": [[name, found, wanted], …]}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from ckptconv.commands.verify.expected import Expected, expect, is_beside
from ckptconv.errors import CkptconvError
from ckptconv.models.installed import installed_version

_MOST = 50  # names of each kind; the error shows three


def main() -> None:
    question = json.load(sys.stdin)
    with redirect_stdout(sys.stderr):  # libraries print
        answer = compared(question["config"], {name: tuple(s) for name, s in question["shapes"].items()})
    print(json.dumps(answer))


def compared(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """How tensors differ from the class that the installed transformers builds from a config."""
    try:
        expected = expect(config, shapes)
    except CkptconvError as error:
        return {"why": error.what}
    if not isinstance(expected, Expected):
        return {"why": getattr(expected, "why", "") or getattr(expected, "what", "")}
    stored_once = {name for name, source in expected.tied.items() if name not in shapes and source in shapes}
    wrong = [
        [name, list(shape), list(expected.shapes[name])]
        for name, shape in shapes.items()
        if name in expected.shapes and not expected.has_shape(name, shape)
    ]
    foreign = [name for name in shapes if name not in expected.shapes and not is_beside(name, expected)]
    missing = [name for name in expected.shapes if name not in shapes and name not in stored_once]
    return {
        "architecture": expected.architecture,
        "version": installed_version(),
        "foreign": foreign[:_MOST],
        "missing": missing[:_MOST],
        "wrong": wrong[:_MOST],
    }


if __name__ == "__main__":
    main()
