"""Writes config_keys.json: which keys transformers 4 reads where a config of transformers 5 states the value under another.

    python -m tools.make_config_keys --old PYTHON4 --new PYTHON5

PYTHON4 and PYTHON5 are interpreters of two environments, with transformers 4.57 and with the newest. The program makes
variants of every config class in the first, lets the second read and save them, and notes under which other key a value
comes out. tools/check_config_keys.py proves the table.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from tools.config_stages import ASIDE, Config, flat, run, version

TABLE = Path(__file__).parents[1] / "ckptconv/models/config_keys.json"
# UMT5: transformers 5 has what it scales by under another key, and always ties.
_NOT_MOVED = ASIDE | {"tie_word_embeddings"}


def derive(python: dict[str, str]) -> dict[str, Any]:
    """The table."""
    variants = run(python["old"], "variants", {"only": [], "few": False})
    read = run(python["new"], "read", [[name, saved] for name, _, _, saved, _ in variants])
    plain: dict[str, Config] = {}
    moved: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for (name, key, value, _, _), found in zip(variants, read, strict=True):
        if isinstance(found, str):
            continue
        if not key:
            plain[name] = flat(found[0])
        elif name in plain and name not in moved[key].get(
            path := _moved_to(key, value, plain[name], found[0]), ()
        ):
            moved[key][path].append(name)
    table: dict[str, dict[str, list[str]]] = {}
    for key in sorted(moved.keys() - _NOT_MOVED):
        here: set[str] = set()
        for path in sorted(moved[key]):
            kinds = [
                kind
                for kind in moved[key][path]
                if path and kind not in moved[key].get("", ()) and kind not in here
            ]
            here.update(kinds)
            if kinds:
                table.setdefault(key, {})[path] = sorted(kinds)
    return {"old": version(python["old"]), "new": version(python["new"]), "keys": table}


def _moved_to(key: str, value: Any, before: Config, after: Config) -> str:
    """Where the new config has the value of a key, "" where it is under the key itself or nowhere."""
    now = flat(after)
    changed = [
        path for path in now if before.get(path) != now[path] and path[0] not in ("torch_dtype", "dtype")
    ]
    if (key,) in changed:
        return ""
    if key == "rope_scaling":
        tops = {path[:-1] for path in changed if path[0] == "rope_parameters"}
        inner = [top for top in tops if all(top == other[: len(top)] for other in tops)]
        return ".".join(inner[0]) if inner else ""
    hits = [path for path in changed if now[path] == value]
    hits.sort(
        key=lambda path: (path[0] != "rope_parameters", path)
    )  # gpt_neox: its other copies are not saved
    return ".".join(hits[0]) if hits else ""


def dump(table: dict[str, Any]) -> str:
    """JSON with one line per key and path, so that two versions can be compared."""
    lines = [
        f"{json.dumps(key)}: {{\n"
        + ",\n".join(f"  {json.dumps(p)}: {json.dumps(t)}" for p, t in paths.items())
        + "\n}"
        for key, paths in table["keys"].items()
    ]
    head = "".join(f"{json.dumps(k)}: {json.dumps(table[k])},\n" for k in ("old", "new"))
    return "{\n" + head + '"keys": {\n' + ",\n".join(lines) + "\n}\n}\n"


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--old", required=True)
    parser.add_argument("--new", required=True)
    arguments = parser.parse_args()
    TABLE.write_text(dump(derive({"old": arguments.old, "new": arguments.new})), encoding="utf-8")
    print(f"{TABLE.name}: {TABLE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
