"""Token ids for which the model has no row: in config.json, generation_config.json and the tokenizer's files.

A tokenizer.json of 10 MB and more is not parsed, which takes 0.2 s: its added tokens and its last entry tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptconv.errors import CkptconvError
from ckptconv.formats.json import read_table
from ckptconv.models.nested import parts_of
from ckptconv.plan import Output, Plan
from ckptconv.tensors.look import is_file, read_bytes, size_of

# The embedding of a language model; other towers have tables under other names.
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|shared|backbone\.embeddings)\.weight$"
)
_FURTHER = re.compile(
    r"embed.*(?:additional|extra|new_)|(?:additional|extra|new_).*embed"
)  # rows beyond the table's
_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_GENERATION, _TOKENIZER = "generation_config.json", "tokenizer.json"
_LARGEST = 64 << 20  # bytes of a tokenizer's file that is looked at
_TAIL = 512  # bytes that hold the last entry of a vocabulary
# tokenizers writes a BPE vocabulary in the order of its ids, then the merges (tokenizers/src/models/bpe/serialization.rs).
_LAST = re.compile(rb":\s*(\d{1,9})\s*\}\s*,?\s*$")
_END = re.compile(
    rb':\s*(\d{1,9})\s*\}\s*(?:,\s*"unk_token"\s*:\s*"[^"]*"\s*)?[\s}]*$'
)  # WordLevel has it last
_ID = re.compile(rb'"id"\s*:\s*(\d{1,9})\b')


def notes_of(plan: Plan, copies: Sequence[tuple[Path, str, str]]) -> list[str]:
    """A note for each file with ids beyond the embedding's rows: no text with such a token can be read or written.

    Args:
        plan: what is written.
        copies: (folder, name in it, name in the output) of the small files.
    """
    if plan.config is None or plan.is_adapter:
        return []
    return notes_on(plan.config, plan.outputs, copies)


def notes_on(
    config: dict[str, Any], outputs: Mapping[str, Output], files: Sequence[tuple[Path, str, str]]
) -> list[str]:
    """A note for each file of a model with ids beyond the embedding's rows.

    Args:
        config: the model's config.json.
        outputs: the model's tensors.
        files: (folder, name in it, name in the model folder) of the small files.
    """
    rows = _rows(outputs)
    if rows is None:
        return []
    notes = [*_stated("config.json", parts_of(config), rows)]
    for folder, name, target in files:
        if target == _GENERATION:
            notes += _stated(name, [_read(folder / name)], rows)
        elif target in (_TOKENIZER, "vocab.json", "added_tokens.json"):
            highest = _highest(folder / name)
            if highest is not None and highest >= rows:
                notes.append(
                    f"{name} has ids up to {highest:,}, and the model's embedding has {rows:,} rows: "
                    "texts with a token beyond them cannot be read"
                )
    return notes


def _rows(outputs: Mapping[str, Output]) -> int | None:
    """The rows of the largest embedding that is written; None where an id may mean something else."""
    if any(_FURTHER.search(name) for name in outputs):
        return None
    tables = [output for name, output in outputs.items() if _EMBEDDING.search(name)]
    return max((t.shape[0] for t in tables if len(t.shape) == 2 and "float" in t.dtype), default=None)


def _stated(file: str, parts: Any, rows: int) -> Iterator[str]:
    """A note for each special token of a config that no row stands for. Negative ids switch a token off."""
    told: set[str] = set()
    for part in parts:
        for key in _KEYS:
            ids = part.get(key)
            beyond = [i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int and i >= rows]
            if beyond and key not in told:
                told.add(key)
                yield f"{file} states {key} {beyond[0]:,}, and the model's embedding has {rows:,} rows"


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return read_table(path)
    except CkptconvError:  # transformers reports it
        return {}


def _highest(path: Path) -> int | None:
    """The highest id that the beginning and the end of a tokenizer's file show; None if they show none."""
    try:
        text = read_bytes(path) if is_file(path) and size_of(path) <= _LARGEST else b""
    except (OSError, CkptconvError):  # the copy reports it
        return None
    found = [*_added(text)] if path.name == _TOKENIZER else []
    return max((*found, *_of_vocabulary(text)), default=None)


def _added(text: bytes) -> Iterator[int]:
    """The ids of the added tokens, which tokenizers writes before the normalizer."""
    begin = text.find(b'"added_tokens"')
    end = text.find(b'"normalizer"', begin)
    if 0 <= begin < end:
        yield from (int(found[1]) for found in _ID.finditer(text[begin:end]))


def _of_vocabulary(text: bytes) -> Iterator[int]:
    """The last id of a vocabulary that maps tokens to ids."""
    merges = text.rfind(b'"merges"')
    found = _LAST.search(text[max(0, merges - _TAIL) : merges]) if merges > 0 else _END.search(text[-_TAIL:])
    if found:
        yield int(found[1])
