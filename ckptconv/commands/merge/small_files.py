"""Chooses the files next to the weights before a byte is written, and writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ckptconv.commands.merge import token_ids
from ckptconv.commands.merge.notes import nonfinite_notes
from ckptconv.copy.run import Copied
from ckptconv.errors import CkptconvError, Kind, listed
from ckptconv.hub.names import cached_name, model_name
from ckptconv.models import facts, quantised
from ckptconv.models.nested import text_of
from ckptconv.plan import Plan, shards
from ckptconv.plan.records import ADAPTER_FOLDER
from ckptconv.publish import assets
from ckptconv.publish.known_files import named_code
from ckptconv.publish.receipt import RECEIPT, SMALL_FILES, as_text, receipt, small_hashes
from ckptconv.publish.tokenizer import added_ids, replaced_by, tokenizer_files
from ckptconv.publish.tokenizer_config import TOKENIZER_CONFIG, for_both
from ckptconv.tensors.look import is_file, read_bytes, size_of

_CARD, _GENERATION = "README.md", "generation_config.json"


class SmallFiles(NamedTuple):
    """The files that will be copied next to the weights.

    Args:
        model: the folder with the config.json from which the output's is made; None if there is none.
        copies: (folder, name in it, name in the output).
        notes: what the user must know.
        left: files next to the weights that are not known to belong to a model, at most assets.MOST_LEFT.
        changed: name in the output -> its content, for a copy that is not byte for byte the same.
        summaries: what these changes are.
    """

    model: Path | None
    copies: tuple[tuple[Path, str, str], ...] = ()
    notes: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    changed: Mapping[str, bytes] = MappingProxyType({})
    summaries: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all these files and of config.json."""
        sizes = sum(size_of(folder / name) for folder, name, _ in self.copies)
        config = self.model / "config.json" if self.model else None
        return sizes + (size_of(config) if config and is_file(config) else 0)


def choose(
    plan: Plan, model: Path | None, own: Path | None, include: Sequence[str] = (), keep: bool = False
) -> SmallFiles:
    """Choose the tokenizer, the processor, templates, custom code and modules that go with the weights.

    Args:
        plan: what is written.
        model: the folder of the model with the small files; None if there is none.
        own: the folder with the tokenizer and chat template of the training, which replace the model's: that of an
            adapter, or of a trainer that keeps them apart. None if there is none.
        include: globs of further files of `model` to copy.
        keep: whether tokenizer_config.json is copied as it is. Else values that transformers 4 cannot read are spelled
            in a way that both generations read.

    Raises:
        CkptconvError: a glob matches no file.
    """
    beside = assets.beside(model, include) if model else assets.Beside([], [])
    names = [path.relative_to(model).as_posix() for path in beside.belong] if model else []
    _require_use(include, names, model)
    names = [name for name in names if name != "config.json" and not _is_left(name, plan, model)]
    mine = tokenizer_files(own) if own is not None else []
    replaced = replaced_by(mine, own, names) if own is not None else []
    copies = [(model, name, name) for name in names if name not in replaced] if model is not None else []
    copies += [(own, name, name) for name in mine] if own is not None else []
    notes = [
        *_replaced(mine, replaced, own, model),
        *_without_rows(own, model, plan),
        *_modules(names, plan, model),
        *_without_code(plan, names),
    ]
    if f"{ADAPTER_FOLDER}/adapter_config.json" in plan.texts:
        chosen = {name: folder for folder, name, _ in copies}
        used = [name for folder in dict.fromkeys(chosen.values()) for name in tokenizer_files(folder)]
        own_files = [(chosen[n], n, f"{ADAPTER_FOLDER}/{n}") for n in dict.fromkeys(used) if n in chosen]
        copies += own_files
        with_it = " with the tokenizer" if own_files else ""
        notes.append(
            f"the adapter is written to {ADAPTER_FOLDER}/{with_it}; the model above it has it merged"
        )
    changed: dict[str, bytes] = {}
    summaries: list[str] = []
    for folder, name, target in () if keep else copies:
        if Path(name).name == TOKENIZER_CONFIG:
            found = for_both(folder / name)
            if found is not None:
                changed[target] = found.content
                summaries.append(f"{target}: {found.summary}")
    notes += token_ids.notes_of(plan, copies)
    return SmallFiles(model, tuple(copies), tuple(notes), tuple(beside.left), changed, tuple(summaries))


def _without_code(plan: Plan, names: Sequence[str]) -> Iterator[str]:
    """A note on code that the written config.json names and that is not next to it, as `verify` reports it.

    Where transformers has the class itself, it takes the code only with trust_remote_code, and ends with an error.
    """
    if plan.config is None or plan.is_adapter or facts.in_transformers(plan.config):
        return
    if lacking := sorted(named_code(plan.config) - {*names}):
        yield (
            f"config.json names {listed(lacking)} in auto_map, which is not in the model's folder: "
            "without this code no reader can build the model"
        )


def _require_use(include: Sequence[str], names: list[str], model: Path | None) -> None:
    for glob in include:
        if not any(fnmatchcase(name, glob) or fnmatchcase(name.rpartition("/")[2], glob) for name in names):
            raise CkptconvError(
                "--include matches no file that may be copied",
                where=model,
                found=glob,
                hint="weights have to be named in full, and files of the trainer are never copied",
                kind=Kind.USAGE,
            )


def write(work: Path, plan: Plan, copied: Copied, small: SmallFiles) -> list[str]:
    """Write the small files, config.json, the index and the receipt.

    Args:
        work: the folder to write to.
        plan: the plan.
        copied: the result of the copy.
        small: what was chosen.

    Returns:
        The names of the files that were copied.
    """
    _clear(work, {file.name for file in plan.files})
    for folder, name, target in small.copies:
        assets.copy_asset(folder / name, work / target)
        if target in small.changed:
            (work / target).write_bytes(small.changed[target])
    if plan.config is not None:
        assets.write_config(work, plan.config, small.model)
    for name, data in plan.texts.items():
        (work / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    main = [file for file in plan.files if "/" not in file.name]
    index = shards.index(main, {key: plan.outputs[key] for file in main for key in file.offsets})
    if index is not None and not plan.is_adapter:
        (work / shards.INDEX).write_bytes(index)
    record = receipt(plan, copied.hashes)
    record["notes"] += nonfinite_notes(copied, plan)
    record["base_model"] = model_name(record["base_model"]) or cached_name(small.model)
    record[SMALL_FILES] = small_hashes(work, {file.name for file in plan.files})
    (work / RECEIPT).write_text(as_text(record), encoding="utf-8")
    return [target for _, _, target in small.copies]


def _is_left(name: str, plan: Plan, model: Path | None) -> bool:
    """True for a file whose content would not be true for the output."""
    if plan.is_adapter:
        return name in (_CARD, _GENERATION, *assets.QUANTISERS) or assets.is_module_weight(Path(name))
    if name in assets.QUANTISERS:
        return plan.config is None or quantised.stated_in(plan.config) is None
    return name == _CARD and model != plan.checkpoint.root  # the card of another model


def _replaced(
    mine: Sequence[str], replaced: Sequence[str], own: Path | None, model: Path | None
) -> list[str]:
    if own is None or model is None or not mine:
        return []
    changed = [
        name
        for name in dict.fromkeys((*mine, *replaced))
        if not (is_file(model / name) and is_file(own / name) and _same(model / name, own / name))
    ]
    if not changed:
        return []
    return [
        f"the tokenizer and chat template of the training replace those of the model's folder: {', '.join(changed)}"
    ]


def _without_rows(own: Path | None, model: Path | None, plan: Plan) -> list[str]:
    """A note on tokens that the training added and for which the weights have no row."""
    rows = text_of(plan.config or {}).get("vocab_size")
    if own is None or model is None or type(rows) is not int:
        return []
    without = sorted(number for number in added_ids(own) - added_ids(model) if number >= rows)
    if not without:
        return []
    return [
        f"the training's tokenizer has {len(without)} added tokens (from id {without[0]:,}) for which the weights have no "
        f"row: vocab_size is {rows:,}. Was the resized embedding saved?"
    ]


def _same(one: Path, two: Path) -> bool:
    return size_of(one) == size_of(two) and read_bytes(one) == read_bytes(two)


def _modules(names: Sequence[str], plan: Plan, model: Path | None) -> list[str]:
    """Notes on weights outside of the plan: those that are copied as they are, and those that are not copied."""
    if model is None or plan.is_adapter:
        return []
    notes = [
        f"{name} is copied as it is: a sentence-transformers module with weights of its own"
        for name in names
        if assets.is_module_weight(Path(name))
    ]
    behind = assets.left_with_weights(model)
    if behind:
        notes.append(f"not copied, since it is not part of the model's own weights: {listed(behind)}")
    return notes


def _clear(work: Path, weights: set[str]) -> None:
    """Remove the small files of a killed run, since their sources may have changed or disappeared since."""
    for path in work.rglob("*"):
        if is_file(path) and str(path.relative_to(work)) not in weights:
            path.unlink()
