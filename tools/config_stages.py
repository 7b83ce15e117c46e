"""What one transformers makes of config.json: stages of make_config_keys and check_config_keys, which run them.

PYTHON tools/config_stages.py variants|read < IN.json > OUT.json
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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
_ROPE_KEYS = ("rope_scaling", "rope_parameters")  # of which every value is tried
_WORDS = ("problem_type",)  # null, or one of a few words
# Keys that are no property of the model.
ASIDE = {
    "transformers_version",
    "_name_or_path",
    "architectures",
    "_attn_implementation",
    "attn_implementation",
}


def stage_variants(asked: dict[str, Any]) -> list[list[Any]]:
    """[class, key or "", value, config as saved, all values] for each class and each of its keys with another value.

    Args:
        asked: "only", the model types, all if it is empty; "few", true for one other value per key.
    """
    made: list[list[Any]] = []
    for name, cls in _classes().items():
        if asked["only"] and name not in asked["only"]:
            continue
        try:
            base = _values(cls())
            made.append([name, "", None, _saved(cls()), base])
        except Exception:  # a class that needs arguments or a download, or cannot save its defaults
            continue
        for key in _keys_of(cls):
            others = [] if key in _WORDS else _others(key, base)
            for value in others[:1] if asked["few"] and key not in _ROPE_KEYS else others:
                try:
                    config = cls.from_dict(json.loads(json.dumps({key: value})))
                    made.append([name, key, value, _saved(config), _values(config)])
                except Exception:  # the class refuses the value
                    continue
    return made


def _keys_of(cls: Any) -> list[str]:
    """The arguments of a config class; and rope_scaling, which many models look for in a config whose class has no such one.

    Mistral and Mixtral of transformers 4 do: a class keeps what it does not know (PretrainedConfig.__init__).
    """
    keys = list(inspect.signature(cls.__init__).parameters)
    model = Path(inspect.getfile(cls).replace("configuration_", "modeling_"))
    asks = model.is_file() and 'hasattr(config, "rope_scaling")' in model.read_text(encoding="utf-8")
    return keys + [_ROPE_KEYS[0]] * (asks and _ROPE_KEYS[0] not in keys)


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
    if key == "rope_parameters" and isinstance(value, dict) and value:
        if all(isinstance(inner, dict) for inner in value.values()):  # per kind of layer
            return [
                {kind: inner | {"rope_theta": 54321.0 + n} for n, (kind, inner) in enumerate(value.items())}
            ]
        own = {name: item for name, item in value.items() if name in ("rope_theta", "partial_rotary_factor")}
        scaled = [own | rope | {"rope_theta": 54321.0} for rope in _ROPES if "rope_type" in rope]
        return [value | {"rope_theta": 54321.0}, *scaled]
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


def flat(config: Config, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """The values of a config by their path."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= flat(value, (*path, key))
        else:
            found[(*path, key)] = value
    return found


def run(python: str, stage: str, data: Any) -> list[Any]:
    """The result of a stage in another environment."""
    command = [python, __file__, stage]
    done = subprocess.run(command, input=json.dumps(data), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def version(python: str) -> str:
    """transformers' version in an environment."""
    code = "from importlib.metadata import version; print(version('transformers'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Run a stage."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    stages: dict[str, Any] = {"variants": stage_variants, "read": stage_read}
    print(json.dumps(stages[sys.argv[1]](json.load(sys.stdin))))


if __name__ == "__main__":
    main()
