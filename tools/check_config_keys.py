"""Proves config_keys.json: both transformers read the same values from a config, whichever of them wrote it.

    python -m tools.check_config_keys --old PYTHON4 --new PYTHON5 [--types TYPE ...]

Every config class is built in both, and each of its keys is changed in turn. A config that transformers 4 wrote goes to
5, and from there with the added keys back to 4; a config that 5 wrote goes with the added keys to 4; and 5 reads each
config with and without them. Differences of transformers' own making are named in config_differences.json; the exit code
is 1 if another one is found.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptconv.models.config_keys import for_both
from tools.config_stages import ASIDE, Config, flat, run

_NAMED = Path(__file__).with_name("config_differences.json")
# transformers 5 refuses types and values that 4 takes: some of the values that a key is given are no values of a model.
_REFUSED = "StrictDataclass"
_ASIDE = ASIDE | {"dtype", "torch_dtype"}
Variant = list[Any]  # class, changed key, its value, the config as saved, all values
Read = list[Any] | str  # the config as saved, all values; or what was raised


@dataclass(frozen=True)
class Difference:
    """One value that comes out otherwise: which way the config went, its class, the path, and what was read."""

    way: str
    kind: str
    path: str
    what: str


def check(python: dict[str, str], only: list[str], classes: dict[str, set[str]]) -> Iterator[Difference]:
    """Every difference; `classes` gets the classes that were compared, by way."""
    variants: dict[str, list[Variant]] = {
        "old": run(python["old"], "variants", {"only": only, "few": False}),
        "new": run(python["new"], "variants", {"only": only, "few": True}),
    }

    def read(which: str, configs: list[tuple[Variant, Config]]) -> list[tuple[Variant, Read]]:
        found: list[Read] = run(python[which], "read", [[variant[0], config] for variant, config in configs])
        return [(variant, r) for (variant, _), r in zip(configs, found, strict=True) if r != "no such class"]

    def compared(
        way: str, found: list[tuple[Variant, Read]], wanted: list[Config], shared: bool
    ) -> Iterator[Difference]:
        for (variant, got), values in zip(found, wanted, strict=True):
            kind, key, value = variant[:3]
            classes[way].add(kind)
            if way == "4 -> 5" and isinstance(got, str) and _REFUSED in got:
                continue
            if isinstance(got, str):
                yield Difference(way, kind, "stops", f"{key}={value}: {got}")
                continue
            for path, was, now in differences(values, got[1], shared):
                yield Difference(way, kind, path, f"{key}={str(value)[:40]}: {was!r} -> {now!r}"[:150])

    for which, name in (("old", "4"), ("new", "5")):
        plain = read("new", [(variant, variant[3]) for variant in variants[which]])
        readable = [(variant, got) for variant, got in plain if not isinstance(got, str)]
        keyed = read("new", [(variant, for_both(variant[3]).config) for variant, _ in readable])
        yield from compared(
            f"{name} -> keys -> 5, against 5 without", keyed, [got[1] for _, got in readable], False
        )
        if which == "old":
            yield from compared("4 -> 5", plain, [variant[4] for variant, _ in plain], True)
            both = [(variant, for_both(got[0]).config) for variant, got in readable]
            back = read("old", both)
            yield from compared("4 -> 5 -> keys -> 4", back, [variant[4] for variant, _ in back], False)
            again = read("new", both)
            values = {id(variant): got[1] for variant, got in readable}
            yield from compared(
                "4 -> 5 -> keys -> 5", again, [values[id(variant)] for variant, _ in again], False
            )
        else:
            there = read("old", [(variant, for_both(variant[3]).config) for variant in variants[which]])
            yield from compared("5 -> keys -> 4", there, [variant[4] for variant, _ in there], True)


def differences(wanted: Config, found: Config, shared: bool) -> Iterator[tuple[str, Any, Any]]:
    """(path, value, other value).

    Args:
        wanted: the values that were there.
        found: the values that were read.
        shared: True to compare only the paths that both have, since one generation moved keys.
    """
    one, two = flat(wanted), flat(found)
    for path, value in one.items():
        if path[-1] in _ASIDE or two.get(path) == value or (value is None and path not in two):
            continue
        if path in two or not shared:
            yield ".".join(path), value, two.get(path, "nothing")


def reason(each: Difference, named: list[dict[str, Any]]) -> str:
    """Why transformers itself makes the difference; "" if it is not named."""
    for entry in named:
        ways = entry.get("ways", [each.way])
        last = each.path.rpartition(".")[2]
        here = each.way in ways and each.kind in entry.get("types", [each.kind])
        if here and not {each.path, last}.isdisjoint(entry["paths"]):
            return f"{entry['whose']}: {entry['why']}"
    return ""


def main() -> None:
    """Print what differs, by reason, and stop with 1 if there is a difference without a reason."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--old", required=True)
    parser.add_argument("--new", required=True)
    parser.add_argument("--types", nargs="*", default=[])
    arguments = parser.parse_args()
    classes: dict[str, set[str]] = defaultdict(set)
    named = json.loads(_NAMED.read_text("utf-8"))
    by_reason: dict[str, set[str]] = defaultdict(set)
    examples: dict[tuple[str, str, str], str] = {}
    counts: Counter[tuple[str, str, str]] = Counter()
    for each in check({"old": arguments.old, "new": arguments.new}, arguments.types, classes):
        why = reason(each, named)
        if why:
            by_reason[why].add(each.kind)
        else:
            where = (each.way, each.kind, each.path)
            counts[where] += 1
            examples.setdefault(where, each.what)
    for way, kinds in classes.items():
        print(f"{way}: {len(kinds)} classes")
    for why, kinds in sorted(by_reason.items()):
        print(f"{len(kinds)} classes ({', '.join(sorted(kinds))}): {why}")
    for (way, kind, path), number in sorted(counts.items()):
        print(f"NOT NAMED {way}: {kind} {path}, {number} times; {examples[way, kind, path]}")
    if counts:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
