"""Lists the entries in which two versions of a table differ: `python -m tools.compare_tables BEFORE AFTER`.

A table is facts.json or transformers_table.json. Writes the lines to changed.txt too, which stays absent where none differs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """One line per entry that is new, gone or different, by section."""
    for section in sorted(before.keys() | after.keys()):
        one, two = before.get(section), after.get(section)
        if isinstance(one, list) and isinstance(two, list):
            one, two = dict.fromkeys(one), dict.fromkeys(two)
        if not isinstance(one, dict) or not isinstance(two, dict):
            if one != two and section != "transformers":
                yield f"{section}: {one} -> {two}"
            continue
        for name in sorted(one.keys() | two.keys()):
            if name not in one:
                yield f"{section}: {name} is new"
            elif name not in two:
                yield f"{section}: {name} is gone"
            elif one[name] != two[name]:
                yield f"{section}: {name} is different"


def main() -> None:
    """Print the differences of two files."""
    before, after = (json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:3])
    lines = list(changes(before, after))
    print(f"transformers {before['transformers']} -> {after['transformers']}: {len(lines)} entries differ")
    if lines:
        print("\n".join(lines))
        with open("changed.txt", "a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
