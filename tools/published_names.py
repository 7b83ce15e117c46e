"""Lists the classes whose names on the Hub have a prefix that transformers 5's modules lack: published_names.json.

    python tools/published_names.py --old PYTHON4 --new PYTHON5

transformers 4 names its modules as the published files do. So each class with a prefix rule is built in both versions,
without memory; it is listed where the names with the prefixes are those of transformers 4, and the names without are not.
Run it in ckptconv's own environment; PYTHON4 and PYTHON5 are interpreters with transformers 4.57 and the newest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUT = ROOT / "ckptconv/models/published_names.json"


def stage_new(classes: list[str]) -> dict[str, Any]:
    """Class -> its default config and the shapes of its tensors by name."""
    sys.path.insert(0, str(ROOT))
    from tools import make_table

    found = {}
    for cls in make_table._model_classes():
        if cls.__name__ in classes:
            try:
                model = make_table._on_meta(cls)
            except Exception:  # an optional library is missing, or the default config is not a model
                continue
            config = json.loads(model.config.to_json_string()) | {"architectures": [cls.__name__]}
            found[cls.__name__] = [config, {name: list(t.shape) for name, t in model.state_dict().items()}]
    return found


def stage_old(configs: dict[str, Any]) -> dict[str, Any]:
    """Class -> the names of its tensors, and the patterns by which it renames what it loads; only where it exists."""
    import torch
    import transformers

    found = {}
    for name, config in configs.items():
        try:
            cls = getattr(transformers, name)
            with torch.device("meta"):
                model = cls._from_config(
                    cls.config_class.from_dict(config)
                )  # whatever it calls the model type
        except Exception:  # the class is newer, or cannot be built from this config
            continue
        renames = getattr(cls, "_checkpoint_conversion_mapping", None) or {}
        found[name] = [sorted(model.state_dict()), renames, cls.base_model_prefix]
    return found


def compare(python: dict[str, str]) -> dict[str, list[str]]:
    """Verdict -> classes."""
    from ckptconv.models import hub_names, table
    from ckptconv.models.config_keys import for_both
    from ckptconv.tensors.view import stored

    rules = table.load()["rules"]
    classes = [name for name, found in table.load()["classes"].items() if found and _has_prefix(name, rules)]
    new = run(python["new"], "new", classes)
    configs = {name: for_both(config).config for name, (config, _) in new.items()}
    old = run(python["old"], "old", configs)
    verdicts: dict[str, list[str]] = {"with": [], "either": [], "without": [], "neither": [], "unknown": []}
    for name, (config, shapes) in new.items():
        if name not in old:
            verdicts["unknown"].append(name)
            continue
        views = {key: stored("", 0, tuple(shape), "uint8") for key, shape in shapes.items()}
        fits = []
        for prefixes in (True, False):
            names = hub_names.to_hub(views, config, prefix_changes=prefixes).tensors
            fits.append(_loads(set(names), *old[name]))
        verdict = {(True, True): "either", (True, False): "with", (False, True): "without"}.get(
            (fits[0], fits[1]), "neither"
        )
        verdicts[verdict].append(name)
    return verdicts


def _has_prefix(cls: str, rules: dict[str, Any], seen: tuple[str, ...] = ()) -> bool:
    from ckptconv.models import table

    def entry(name: str) -> bool:
        return any(rule.get("prefix") for rule in table._entry({"rules": rules}, name))

    found = table.load()["classes"].get(cls)
    if entry(cls) or not found or cls in seen:
        return entry(cls)
    inner = (entry(kind) or _has_prefix(part, rules, (*seen, cls)) for _, part, _, kind, _ in found["parts"])
    return entry(found["type"]) or any(inner)


def _loads(names: set[str], wanted: list[str], renames: dict[str, str], prefix: str) -> bool:
    """Whether transformers 4 finds all its tensors under these names."""
    import re

    found = set()
    for name in names:
        for pattern, target in renames.items():
            new, count = re.subn(pattern, target, name)
            if count:
                name = new
                break
        found.add(name)
    return not set(wanted) - found - {n for n in wanted if n.endswith(("lm_head.weight", "position_ids"))}


def run(python: str, stage: str, data: Any) -> Any:
    """The result of a stage in another environment."""
    done = subprocess.run(
        [python, __file__, "--stage", stage],
        input=json.dumps(data),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run a stage, or write the list."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--old")
    parser.add_argument("--new")
    parser.add_argument("--stage")
    arguments = parser.parse_args()
    if arguments.stage:
        stages = {"new": stage_new, "old": stage_old}
        print(json.dumps(stages[arguments.stage](json.load(sys.stdin))))
        return
    verdicts = compare({"old": arguments.old, "new": arguments.new})
    for verdict, classes in verdicts.items():
        print(f"{verdict}: {' '.join(sorted(classes))}")
    OUT.write_text(json.dumps(sorted(verdicts["with"]), indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
