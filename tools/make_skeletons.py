"""Writes skeletons.zip from the installed transformers: `python tools/make_skeletons.py [--cache DIR] [--jobs N]`.

Takes about half an hour on two cores. With --cache the builds of each class are kept, and a second run goes on there.
The module skeletons.builds builds the classes, skeletons.derive finds what follows which key.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import multiprocessing
import os
import pickle
import re
import signal
import sys
import tempfile
import warnings
import zipfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[1] / "ckptconv/models/skeletons.zip"
_SECONDS = 600  # for one class; a config class with hundreds of keys takes longest
_NAMED_BY_CONFIG = ("xmod",)  # names with the languages that the config lists
_WHOLE = re.compile(
    r"(Model|For[A-Z]\w+|LMHeadModel|WithLMHead|DoubleHeadsModel)$"
)  # other classes are parts of models


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--no-builds", action="store_true", help="use the builds that the cache has")
    parser.add_argument("--only", nargs="+", metavar="PACKAGE", help="keep the others' part of the archive")
    arguments = parser.parse_args()
    cache = arguments.cache or Path(tempfile.mkdtemp())
    only = frozenset(arguments.only or ())
    steps = (derive,) if arguments.no_builds else (build, derive)
    for step in steps:
        with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
            pool.starmap(step, [(job, arguments.jobs, cache, only) for job in range(arguments.jobs)])
    pack(cache, only)


def build(job: int, jobs: int, cache: Path, only: frozenset[str]) -> None:
    """Build the classes of one job. Classes with one config class are in one job: keys without effect are tried once."""
    import zlib

    from skeletons.builds import Builder, aliases

    _quiet()
    cache.mkdir(exist_ok=True, parents=True)
    listed = _in_auto_maps()
    for name, (package, cls, made_from) in sorted(_classes().items(), key=_rank):
        config_class = made_from.__name__
        kept, keys = cache / f"{name}.pkl", cache / f"_eff_{config_class}.pkl"
        if zlib.crc32(config_class.encode()) % jobs != job or (only and package not in only):
            continue
        if not (cls.__name__ in listed or _WHOLE.search(name)):
            continue
        if kept.exists():
            builds = pickle.loads(kept.read_bytes())[2]
            if builds[0].config["transformers_version"] == version("transformers"):
                continue
            if Builder(cls, made_from).is_still(builds[0]):
                continue
            print(f"{name}: another model than in {builds[0].config['transformers_version']}", flush=True)
            kept.with_suffix(".json").unlink(missing_ok=True)
            keys.unlink(missing_ok=True)
        known = pickle.loads(keys.read_bytes()) if keys.exists() else None
        builder = Builder(cls, made_from)
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(_SECONDS)
        try:
            effective = builder.run(
                lambda path, known=known: known is None or path in {*known, ("num_labels",)}
            )
            found = list(aliases(builder._config({})))
        except Exception as error:  # a class that cannot be built from its defaults, in whatever way
            print(f"{name}: {type(error).__name__}", file=sys.stderr, flush=True)
            continue
        finally:
            signal.alarm(0)
        if known is None:
            keys.write_bytes(pickle.dumps(effective))
        ignored = list(getattr(cls, "_keys_to_ignore_on_load_unexpected", None) or ())
        prefix = getattr(cls, "base_model_prefix", "") or ""
        kept.write_bytes(
            pickle.dumps((package, name, builder.builds, builder.optional, found, ignored, prefix))
        )


def derive(job: int, jobs: int, cache: Path, only: frozenset[str]) -> None:
    """Skeletons from the builds of one job's classes, each in a file of its own; what is there already stays."""
    import zlib

    import make_table
    from skeletons.builds import _plain
    from skeletons.derive import skeleton

    _quiet()
    gc.disable()  # builds are many small tuples without circles
    classes = _classes()
    for file in sorted(cache.glob("[!_]*.pkl")):
        made = file.with_suffix(".json")
        if zlib.crc32(file.name.encode()) % jobs != job or made.exists():
            continue
        package, name, builds, optional, aliases, ignored, prefix = pickle.loads(file.read_bytes())
        if only and package not in only:
            continue
        config_class = classes[name][2]
        arguments = make_table._CONFIG_ARGUMENTS.get(config_class.__name__, {})
        defaults = _plain(config_class(**arguments).to_dict())
        try:
            record = skeleton(builds, optional, ignored, prefix, defaults, package)
        except (RuntimeError, KeyError, IndexError) as error:  # names that no pattern covers
            print(f"{name}: {error!r}", file=sys.stderr, flush=True)
            continue
        record["aliases"] = [[list(path), other] for path, other in aliases]
        made.write_text(json.dumps({"package": package, "record": record}))


def pack(cache: Path, only: frozenset[str] = frozenset()) -> None:
    """The archive, with one member per package; those of other packages than `only` stay as they are."""
    packages: dict[str, dict[str, Any]] = defaultdict(dict)
    for file in sorted(cache.glob("[!_]*.json")):
        made = json.loads(file.read_text())
        if made["package"] in _NAMED_BY_CONFIG:
            continue
        if not only or made["package"] in only:
            packages[made["package"]][file.stem] = made["record"]
    kept = _kept(only) if only else {}
    with zipfile.ZipFile(OUT, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        parts = kept | {package: _shared(records) for package, records in packages.items()}
        listed = {name: package for package in sorted(parts) for name in sorted(parts[package]["classes"])}
        _write(archive, "classes.json", {"transformers": version("transformers"), "classes": listed})
        for package, data in sorted(parts.items()):
            _write(archive, f"{package}.json", data)
    print(f"{OUT.name}: {len(listed):,} classes, {OUT.stat().st_size:,} bytes")


def _kept(only: frozenset[str]) -> dict[str, Any]:
    """The data of the packages in the archive that are not made anew."""
    with zipfile.ZipFile(OUT) as archive:
        names = [name.removesuffix(".json") for name in archive.namelist() if name != "classes.json"]
        return {name: json.loads(archive.read(f"{name}.json")) for name in names if name not in only}


def _shared(records: dict[str, Any]) -> dict[str, Any]:
    """The package's classes with their expressions in one list."""
    exprs: dict[str, int] = {}

    def index(expression: Any) -> int:
        return -1 if expression is None else exprs.setdefault(json.dumps(expression), len(exprs))

    for record in records.values():
        record["stacks"] = [[context, index(count), form] for context, count, form in record["stacks"]]
        record["keys"] = [
            [p, default, index(derived), follows] for p, default, derived, follows in record["keys"]
        ]
        record["groups"] = [
            [stack, when, [[p, kind, [*map(index, dims or ())]] for p, kind, dims in members]]
            for stack, when, members in record["groups"]
        ]
    return {"classes": records, "exprs": [json.loads(text) for text in exprs]}


def _write(archive: zipfile.ZipFile, name: str, data: Any) -> None:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # the same bytes from the same data
    info.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(info, json.dumps(data, separators=(",", ":"), sort_keys=True), compresslevel=9)


def _classes() -> dict[str, tuple[str, Any, Any]]:
    """The name of each class -> its package, the class, and its config's class; "type:Class" for a borrowed class."""
    import make_table
    import transformers
    from skeletons.shown import BORROWED
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        MODEL_MAPPING_NAMES,
    )

    found = {
        cls.__name__: (cls.__module__.split(".")[2], cls, cls.config_class)
        for cls in make_table._model_classes()
    }
    for kind in BORROWED:
        for names in (
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES
        ):  # fmt: skip
            if kind in names:
                cls = getattr(transformers, names[kind])
                found[f"{kind}:{cls.__name__}"] = (kind, cls, CONFIG_MAPPING[kind])
    return found


def _rank(named: tuple[str, Any]) -> tuple[int, str]:
    """Whole models with a head first: their keys are those of the others. Then bare models, then other heads."""
    name = named[0]
    heads = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
    classifiers = ("ForSequenceClassification", "ForTokenClassification")
    order = (heads, ("Model",), classifiers)
    return next((n for n, ends in enumerate(order) if name.endswith(ends)), len(order)), name


def _in_auto_maps() -> set[str]:
    """The classes that an AutoModel class loads."""
    from transformers.models.auto import modeling_auto

    from ckptconv.models import installed

    maps = [value for name, value in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")]
    return {cls for each in maps for names in each.values() for cls in installed.names_of(names)}


def _too_long(*_: object) -> None:
    raise TimeoutError


def _quiet() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)


if __name__ == "__main__":
    main()
