"""Writes config_keys.json: which keys transformers 4 reads where a config of transformers 5 states the value under another.

    python tools/make_config_keys.py --old PYTHON4 --new PYTHON5 [--check [--types TYPE ...]]

PYTHON4 and PYTHON5 are interpreters of two environments, with transformers 4.57 and with the newest. The program makes
variants of every config class in the first, lets the second read and save them, and notes under which other key a value
comes out. With --check it writes nothing: it adds the keys of the table to every config that the second saved, and proves
that the first reads the values that it began with, and that the second reads what it read without the added keys.
"""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[1] / "ckptconv/models/config_keys.json"
Config = dict[str, Any]

# Rope settings of each kind, as the Hub has them; each is tried on every class that has rope_scaling.
_ROPES: list[Config] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    {"type": "mrope", "mrope_section": [2, 3, 3]},
]  # fmt: skip
_LONGROPE: Config = {"type": "longrope", "short_factor": [], "long_factor": []}
# Keys that are no property of the model.
_ASIDE = {
    "transformers_version",
    "_name_or_path",
    "architectures",
    "_attn_implementation",
    "attn_implementation",
}
_ASIDE |= {
    "tie_word_embeddings"
}  # UMT5: transformers 5 has what it scales by under another key, and always ties


# What runs in the other environments: `--stage NAME`, JSON in, JSON out.


def stage_variants(only: list[str]) -> list[list[Any]]:
    """[class, key or "", value, config as saved, all values] for each class and each of its keys with another value."""
    made: list[list[Any]] = []
    for name, cls in _classes().items():
        if only and name not in only:
            continue
        try:
            base = _values(cls())
            made.append([name, "", None, _saved(cls()), base])
        except Exception:  # a class that needs arguments or a download, or cannot save its defaults
            continue
        for key in inspect.signature(cls.__init__).parameters:
            for value in _others(key, base):
                try:
                    given = {k: v for k, v in base.items() if k not in _copies_of(cls, key)}
                    config = cls.from_dict({**json.loads(json.dumps(given)), key: value})
                    made.append([name, key, value, _saved(config), _values(config)])
                except Exception:  # the class refuses the value
                    continue
    return made


def stage_read(configs: list[list[Any]]) -> list[list[Any] | str]:
    """[class, config] -> [config as saved, all values], or what was raised."""
    classes, out = _classes(), []
    for name, config in configs:
        if name not in classes:
            out.append("no such class")
            continue
        try:
            read = classes[name].from_dict(json.loads(json.dumps(config), object_hook=_float))
            out.append([_saved(read), _values(read)])
        except Exception as error:  # whatever a class makes of a config
            out.append(f"{type(error).__name__}: {error}"[:200])
    return out


def _classes() -> dict[str, Any]:
    """Model type -> config class, with the sub-configs that have a model type of their own."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    found: dict[str, Any] = {}
    for kind in CONFIG_MAPPING_NAMES:
        try:
            found[kind] = CONFIG_MAPPING[kind]
        except Exception:  # an optional library is missing
            continue
    queue = list(found.values())
    while queue:
        inner = queue.pop().sub_configs
        for cls in inner.values() if isinstance(inner, dict) else ():
            kind = getattr(cls, "model_type", "")
            if kind and kind not in found:
                found[kind] = cls
                queue.append(cls)
    return found


def _copies_of(cls: Any, key: str) -> list[str]:
    """Other names of a key, which would give it its old value again."""
    names = cls.attribute_map if isinstance(cls.attribute_map, dict) else {}
    return [name for name, target in names.items() if target == key]


def _others(key: str, base: Config) -> list[Any]:
    value = base.get(key)
    if key == "rope_scaling":
        heads, size = base.get("num_attention_heads"), base.get("hidden_size")
        half = (
            (base.get("head_dim") or size // heads) // 2
            if isinstance(heads, int) and isinstance(size, int)
            else 4
        )
        factors = [1.0 + n for n in range(half)]
        return [*_ROPES, _LONGROPE | {"short_factor": factors, "long_factor": factors}]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value * 2 or 2, value + 1, value // 2]
    if isinstance(value, float):
        return [value * 1.5 or 0.25, value / 2]
    if value is None and key in base:
        return [3, 0.25, True]
    return []


def _saved(config: Any) -> Config:
    """The config.json that save_pretrained writes."""
    return dict(json.loads(config.to_json_string(use_diff=True)))


def _float(inner: Config) -> Any:
    """transformers 5 decodes its own floats when it reads config.json, before from_dict."""
    new = hasattr(__import__("transformers"), "TokenizersBackend")
    return float(inner["__float__"]) if new and inner.keys() == {"__float__"} else inner


def _values(config: Any) -> Config:
    return dict(json.loads(json.dumps(config.to_dict(), default=str)))


# What runs here.


def derive(python: dict[str, str]) -> dict[str, Any]:
    """The table."""
    variants = run(python["old"], "variants", [])
    read = run(python["new"], "read", [[name, saved] for name, _, _, saved, _ in variants])
    plain: dict[str, Config] = {}
    moved: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for (name, key, value, _, _), found in zip(variants, read, strict=True):
        if isinstance(found, str):
            continue
        if not key:
            plain[name] = _flat(found[0])
        elif name in plain and name not in moved[key].get(
            path := _moved_to(key, value, plain[name], found[0]), ()
        ):
            moved[key][path].append(name)
    table: dict[str, dict[str, list[str]]] = {}
    for key in sorted(moved.keys() - _ASIDE):
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
    flat = _flat(after)
    changed = [
        path for path in flat if before.get(path) != flat[path] and path[0] not in ("torch_dtype", "dtype")
    ]
    if (key,) in changed:
        return ""
    if key == "rope_scaling":
        tops = {path[:-1] for path in changed if path[0] == "rope_parameters"}
        inner = [top for top in tops if all(top == other[: len(top)] for other in tops)]
        return ".".join(inner[0]) if inner else ""
    hits = [path for path in changed if flat[path] == value]
    hits.sort(
        key=lambda path: (path[0] != "rope_parameters", path)
    )  # gpt_neox: its other copies are not saved
    return ".".join(hits[0]) if hits else ""


def _flat(config: Config, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    found: dict[tuple[str, ...], Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, (*path, key))
        else:
            found[(*path, key)] = value
    return found


def check(python: dict[str, str], only: list[str]) -> Iterator[str]:
    """Every difference, as a line: what the old reads of a config with the added keys, and what the new does."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from ckptconv.models.config_keys import for_both

    variants = run(python["old"], "variants", only)
    read = run(python["new"], "read", [[name, saved] for name, _, _, saved, _ in variants])
    usable = [(v, r) for v, r in zip(variants, read, strict=True) if not isinstance(r, str)]
    both = [[v[0], for_both(r[0]).config] for v, r in usable]
    again = [run(python[which], "read", both) for which in ("old", "new")]
    counts = defaultdict(set)
    for (variant, (_, new_values)), old, new in zip(usable, *again, strict=True):
        name, key, value, _, old_values = variant
        for which, found, wanted in (("old", old, old_values), ("new", new, new_values)):
            wrong = found if isinstance(found, str) else ", ".join(_differences(wanted, found[1]))
            counts[f"{which} wrong" if wrong else which].add(name)
            if wrong:
                yield f"{which}: {name} with {key}={value}: {wrong}"
    yield ", ".join(f"{which}: {len(names)} classes" for which, names in sorted(counts.items()))


def _differences(wanted: Config, found: Config) -> Iterator[str]:
    one, two = _flat(wanted), _flat(found)
    for path, value in one.items():
        if path[-1] in _ASIDE or two.get(path) == value or (value is None and path not in two):
            continue
        yield f"{'.'.join(path)} {value!r} -> {two.get(path, 'nothing')!r}"[:120]


def run(python: str, stage: str, data: Any) -> list[Any]:
    """The result of a stage in another environment."""
    command = [python, __file__, "--stage", stage]
    done = subprocess.run(command, input=json.dumps(data), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def version(python: str) -> str:
    """transformers' version in an environment."""
    code = "from importlib.metadata import version; print(version('transformers'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


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
    """Run a stage, check the table, or write it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--old")
    parser.add_argument("--new")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--types", nargs="*", default=[], help="with --check: these model types only")
    parser.add_argument("--stage")
    arguments = parser.parse_args()
    if arguments.stage:
        import logging
        import warnings

        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        stages = {"variants": stage_variants, "read": stage_read}
        print(json.dumps(stages[arguments.stage](json.load(sys.stdin))))
        return
    python = {"old": arguments.old, "new": arguments.new}
    if arguments.check:
        for line in check(python, arguments.types):
            print(line)
        return
    table = derive(python)
    TABLE.write_text(dump(table), encoding="utf-8")
    print(f"{TABLE.name}: {TABLE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
