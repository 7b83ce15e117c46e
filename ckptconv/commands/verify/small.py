"""Layer files: what is next to the weights of a model folder, and what other software would make of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ckptconv.backends.huggingface.weight_files import ADAPTER_CONFIG
from ckptconv.commands.merge import token_ids
from ckptconv.commands.verify.integrity import Found, read_json
from ckptconv.commands.verify.records import Layer, Problem
from ckptconv.commands.verify.sides import Side
from ckptconv.copy.hashing import HASH
from ckptconv.errors import listed
from ckptconv.formats.torch_zip import SUFFIXES as TORCH_SUFFIXES
from ckptconv.models import facts, quantised
from ckptconv.plan.shards import INDEX
from ckptconv.publish import assets
from ckptconv.publish.known_files import named_code
from ckptconv.publish.receipt import RECEIPT
from ckptconv.publish.receipt_check import changed_small_files, is_receipt
from ckptconv.publish.tokenizer_config import TOKENIZER_CONFIG
from ckptconv.tensors.look import is_file, paths_in, size_of

_PROVES = "the files next to the weights can be read, and belong to this model"
_LARGEST = 256 << 20  # bytes of a JSON file that is parsed
_NUMBERED = re.compile(r"^model-\d{5}-of-\d{5}\.safetensors$")
_NO_CODE = "auto_map in config.json names it, and it is not here"
_TOKENIZER = "tokenizer.json"
_OF_ONE_FILE = ("PreTrainedTokenizerFast", "TokenizersBackend")
_OTHER_WEIGHTS = (".safetensors", *TORCH_SUFFIXES)


def files_layer(side: Side) -> list[Layer]:
    """The layer for a model folder, where there is something to report.

    A file that differs from the one that the merge wrote is no problem, since people edit these files; but the layer does
    not pass then. Nothing is imported or run.
    """
    root = side.checkpoint.root
    if not side.is_folder or side.is_adapter or side.config is None:
        return []
    beside = assets.beside(root).belong
    problems = [*_broken(beside), *_missing(side, root), *_other_model(root)]
    lacking = [file for file in sorted(named_code(side.config)) if not is_file(root / file)]
    known = facts.in_transformers(side.config)
    problems += [Problem(file, _NO_CODE, "config.json") for file in lacking if not known]
    changed = changed_since_merge(root)
    notes = [f"{each} since the merge, by {RECEIPT}" for each in changed]
    notes += token_ids.notes_on(
        side.config,
        side.tensors,
        [(path.parent, path.name, path.name) for path in beside if path.parent == root],
    )
    notes += [f"{file}: {_NO_CODE}; readers with trust_remote_code stop" for file in lacking if known]
    notes += _quantisers(side.config, root)
    if others := _other_weights(side, root):
        notes.append(
            f"next to the model, which transformers opens without them, and not checked: {listed(others)}"
        )
    if not problems and not notes:
        return []
    ok = False if problems else None if changed else True
    found = f"{len(beside):,} files" + (f", {len(changed):,} not as they were written" if changed else "")
    return [Layer("files", ok, _PROVES, found, tuple(problems), tuple(notes))]


def changed_since_merge(root: Path) -> list[str]:
    """What the receipt of a folder states about its small files and does not hold; nothing without a receipt."""
    receipt = read_json(root / RECEIPT, Found())
    if receipt is None or not is_receipt(receipt) or receipt.get("hash") != HASH:
        return []
    return changed_small_files(receipt, root)


def _broken(paths: list[Path]) -> Iterator[Problem]:
    """A problem for each JSON file that no reader can parse."""
    for path in paths:
        if path.suffix == ".json" and size_of(path) <= _LARGEST:
            found = Found()
            if path.name not in ("vocab.json", "modules.json"):  # lists, or of any form
                read_json(path, found)
            yield from found.problems


def _missing(side: Side, root: Path) -> Iterator[Problem]:
    """A problem for each file without which transformers does not find the weights or the tokenizer.

    Sources: transformers/modeling_utils.py, _get_resolved_checkpoint_files; tokenization_utils_tokenizers.py.
    """
    names = {Path(file.path).name for file in side.checkpoint.files}
    if any(_NUMBERED.search(name) for name in names) and not is_file(root / INDEX):
        hint = "write the folder again: ckptconv merge FOLDER OUT"
        yield Problem(INDEX, "is missing: transformers finds numbered weight files by it alone", "", hint)
    settings = read_json(root / TOKENIZER_CONFIG, Found()) or {}
    if settings.get("tokenizer_class") in _OF_ONE_FILE and not is_file(root / _TOKENIZER):
        found = f"the class in {TOKENIZER_CONFIG}, {settings['tokenizer_class']}, has no other file"
        yield Problem(_TOKENIZER, f"is missing: {found}")


def _other_model(root: Path) -> Iterator[Problem]:
    """transformers with PEFT opens the base model that adapter_config.json names, and not the weights of this folder.

    Source: transformers/modeling_utils.py, PreTrainedModel.from_pretrained, and utils/peft_utils.py.
    """
    if is_file(root / ADAPTER_CONFIG):
        yield Problem(
            ADAPTER_CONFIG,
            "is next to a whole model: where PEFT is installed, transformers loads the adapter's base in its place",
            hint="move the adapter to a folder of its own",
        )


def _quantisers(config: dict[str, Any], root: Path) -> list[str]:
    """A note on a quantiser's settings next to a model that is not quantised."""
    if quantised.stated_in(config) is not None:
        return []
    return [
        f"{name} is here, and config.json states no quantization: vLLM and others take the model for a quantised one"
        for name in assets.QUANTISERS
        if is_file(root / name)
    ]


def _other_weights(side: Side, root: Path) -> list[str]:
    """Files of weights at the top of the folder of which no tensor was read."""
    used = {Path(file.path).name for file in side.checkpoint.files}
    return sorted(
        path.name
        for path in paths_in(root)
        if is_file(path) and path.name.endswith(_OTHER_WEIGHTS) and path.name not in used
    )
