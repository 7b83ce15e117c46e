"""The model card of a push: what the receipt and the folder say, as front matter and one page."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from ckptconv.commands.push_folder import ModelFolder
from ckptconv.version import __version__

README = "README.md"
_MARK = "<!-- made by ckptconv push, sha256 of the text above: {} -->"
# A repository's name on the Hub; a base model that is a local folder stays out of the front matter.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PIPELINES = {"ForCausalLM": "text-generation", "ForImageTextToText": "image-text-to-text"}


def model_card(folder: ModelFolder, repo_id: str) -> str:
    """The text of a README.md for a folder that has none."""
    from huggingface_hub import ModelCard, ModelCardData

    receipt, source = folder.receipt, _table(folder.receipt.get("source"))
    base = receipt.get("base_model")
    trainer = source.get("trainer")
    data = ModelCardData(
        library_name="peft" if folder.is_adapter else "transformers",
        base_model=base if isinstance(base, str) and _HUB_NAME.fullmatch(base) else None,
        pipeline_tag=_pipeline(folder),
        tags=["ckptconv", *([_tag(trainer)] if _tag(trainer) else [])],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {_plain(repo_id.rsplit('/', 1)[-1])}\n",
        _introduction(receipt, trainer),
        _facts(folder, source),
        _loading(folder, repo_id),
        _hashes(receipt),
    ]
    text = ModelCard("\n".join(part for part in parts if part)).content.rstrip()
    return f"{text}\n\n{_mark(text)}\n"


def is_untouched(card: str) -> bool:
    """True for a card that a push made and nobody has changed since, so that the next push may replace it."""
    text, _, mark = card.replace("\r\n", "\n").rstrip().rpartition("\n")
    return mark == _mark(text.rstrip())


def _mark(text: str) -> str:
    return _MARK.format(hashlib.sha256(text.encode()).hexdigest())


def _introduction(receipt: Mapping[str, Any], trainer: object) -> str:
    if not receipt:
        return "Pushed with `ckptconv`.\n"
    origin = f"a sharded {_plain(trainer)} checkpoint" if trainer else "a sharded checkpoint"
    version = _plain(receipt.get("ckptconv") or __version__)
    return (
        f"Converted from {origin} with `ckptconv` {version}. "
        "`ckptconv.json` is the receipt: what was read and what was written, tensor by tensor.\n"
    )


def _facts(folder: ModelFolder, source: Mapping[str, Any]) -> str:
    """The table of what is known; a row whose value is unknown is left out."""
    names = _texts(folder.config.get("architectures"))
    rows = (
        ("Architecture", ", ".join(names) or folder.config.get("peft_type")),
        ("Base model", folder.receipt.get("base_model") or folder.config.get("base_model_name_or_path")),
        ("Trainer", source.get("trainer")),
        ("Checkpoint layout", source.get("layout")),
        ("Step", source.get("step")),
        ("Saved by", _ranks(source)),
        ("Tensors", f"{folder.tensors:,}"),
        ("Elements", ", ".join(f"{count:,} {dtype}" for dtype, count in sorted(folder.dtypes.items()))),
        ("Conversion", _conversion(folder.receipt.get("dtype"))),
    )
    known = [f"| {name} | {_plain(value)} |" for name, value in rows if value not in (None, "", {}, [])]
    return "\n".join(["| | |", "|---|---|", *known]) + "\n"


def _ranks(source: Mapping[str, Any]) -> str:
    size, mesh = source.get("world_size"), source.get("mesh")
    ranks = f"{size} rank{'' if size == 1 else 's'}" if size else ""
    return ", ".join(text for text in (ranks, _mesh(mesh)) if text)


def _mesh(mesh: object) -> str:
    if isinstance(mesh, Mapping):
        return " × ".join(f"{name} {size}" for name, size in mesh.items())
    return " × ".join(_texts(mesh)) if isinstance(mesh, list) else str(mesh or "")


def _conversion(dtype: object) -> str:
    if isinstance(dtype, Mapping):
        changes = ((old, new) for old, new in dtype.items() if isinstance(new, str) and new != old)
        return ", ".join(f"{old} → {new}" for old, new in changes)
    return dtype if isinstance(dtype, str) else ""


def _loading(folder: ModelFolder, repo_id: str) -> str:
    library, auto = "transformers", "AutoModel"
    if folder.is_adapter:
        library, auto = "peft", "AutoPeftModelForCausalLM"
    elif _pipeline(folder) == "text-generation":
        auto = "AutoModelForCausalLM"
    lines = (f"from {library} import {auto}", "", f'model = {auto}.from_pretrained("{repo_id}")')
    return "\n".join(["```python", *lines, "```", ""])


def _hashes(receipt: Mapping[str, Any]) -> str:
    rows = []
    for name, said in _table(receipt.get("files")).items():
        digest = said if isinstance(said, str) else _table(said).get("sha256") or _table(said).get("hash")
        if digest:
            rows.append(f"| `{_plain(name)}` | `{_plain(digest)}` |")
    return "\n".join(["## Files", "", "| File | Hash |", "|---|---|", *rows, ""]) if rows else ""


def _pipeline(folder: ModelFolder) -> str | None:
    names = _texts(folder.config.get("architectures"))
    return next((tag for end, tag in _PIPELINES.items() for name in names if name.endswith(end)), None)


def _tag(value: object) -> str:
    return re.sub(r"[^a-z0-9.-]+", "-", value.lower()).strip("-") if isinstance(value, str) else ""


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _plain(value: object) -> str:
    """One line that cannot break a Markdown table."""
    return " ".join(str(value).replace("|", "\\|").split())
