"""Writes the model card of a push, from the receipt and the folder: front matter and one page."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from ckptconv import __version__
from ckptconv.backends.registry import trainer_named
from ckptconv.commands.push import loading
from ckptconv.commands.push.folder import ModelFolder
from ckptconv.errors import listed
from ckptconv.hub.names import model_name

README = "README.md"
_MARK = "<!-- made by ckptconv push, sha256 of the text above: {} -->"
# A repository's name on the Hub. A base model that is a local folder is not put into the front matter.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MARKS = re.compile(r"[\\\\`*\[\]<>&|#~!$]|(?<![^\W_])_|_(?![^\W_])")
_LINKED = re.compile(r"(?:https?|ftp|mailto):|www\.|(?<=\w)@", re.IGNORECASE)
_PATH = re.compile(r"(?:^|[\s(\"'])(?:~?/|[A-Za-z]:\\)")


def model_card(folder: ModelFolder, repo_id: str, sent: bytes | None = None) -> str:
    """The text of a README.md for a folder that has none.

    Args:
        folder: the model folder.
        repo_id: the repository.
        sent: the receipt as it is sent, if that is not the file.
    """
    from huggingface_hub import ModelCard, ModelCardData

    receipt, source = folder.receipt, _table(folder.receipt.get("source"))
    base = model_name(receipt.get("base_model") or folder.config.get("base_model_name_or_path"))
    trainer = trainer_of(source)
    tags = ["ckptconv", *([_tag(trainer)] if trainer else []), *(["lora"] if folder.is_adapter else [])]
    data = ModelCardData(
        library_name="peft" if folder.is_adapter else "transformers",
        base_model=base if base and _HUB_NAME.fullmatch(base) else None,
        pipeline_tag=loading.pipeline(folder),
        tags=tags,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {_plain(repo_id.rsplit('/', 1)[-1])}\n",
        _introduction(receipt, trainer),
        _facts(folder, source, base, trainer),
        loading.snippet(folder, repo_id, base),
        _notes(receipt),
        _hashes(folder, repo_id, sent),
    ]
    text = ModelCard("\n".join(part for part in parts if part)).content.rstrip()
    return f"{text}\n\n{_mark(text)}\n"


def trainer_of(source: Mapping[str, Any]) -> str | None:
    """The trainer that wrote the checkpoint, from the receipt's description of the layout; None if it names none."""
    trainer = source.get("trainer")
    if isinstance(trainer, str) and trainer:
        return trainer
    return trainer_named(str(source.get("layout") or ""))


def is_untouched(card: str) -> bool:
    """True for a card that a push wrote and nobody has changed since, so that the next push may replace it."""
    text, _, mark = card.replace("\r\n", "\n").rstrip().rpartition("\n")
    return mark == _mark(text.rstrip())


def _mark(text: str) -> str:
    return _MARK.format(hashlib.sha256(text.encode()).hexdigest())


def _introduction(receipt: Mapping[str, Any], trainer: str | None) -> str:
    if not receipt:
        return "Pushed with `ckptconv`.\n"
    version = _plain(receipt.get("ckptconv") or __version__)
    return (
        f"Converted from a {_plain(trainer or 'trainer')} checkpoint with `ckptconv` {version}. "
        "`ckptconv.json` is the receipt: what was read and what was written, tensor by tensor.\n"
    )


def _facts(folder: ModelFolder, source: Mapping[str, Any], base: str | None, trainer: str | None) -> str:
    """The table of known facts; a row without a value is omitted."""
    names = _texts(folder.config.get("architectures"))
    rows = (
        ("Architecture", ", ".join(names) or folder.config.get("peft_type")),
        ("Base model", base),
        ("Trainer", trainer),
        ("Checkpoint", source.get("layout")),
        ("Step", source.get("step")),
        ("Role", source.get("role")),
        ("Saved by", _ranks(source)),
        ("Tensors", f"{folder.tensors:,}"),
        ("Elements", ", ".join(f"{count:,} {dtype}" for dtype, count in sorted(folder.dtypes.items()))),
        ("Conversion", _conversion(folder.receipt.get("dtype"))),
        ("Left out", _left_out(folder.receipt)),
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
    return ", ".join(_texts(mesh)) if isinstance(mesh, list) else str(mesh or "")


def _conversion(dtype: object) -> str:
    """The dtype changes as text: "310 tensors float32 → bfloat16, 2 tensors float32 as stored"."""
    casts = _table(dtype).get("casts")
    changes = []
    for cast in casts if isinstance(casts, list) else ():
        if isinstance(cast, list) and len(cast) == 4:
            stored, written, tensors, _ = cast
            change = f"{stored} as stored" if stored == written else f"{stored} → {written}"
            changes.append(f"{tensors} tensors {change}")
    return ", ".join(changes)


def _left_out(receipt: Mapping[str, Any]) -> str:
    """What the model lacks from the checkpoint: each reason with its first names."""
    reasons: dict[str, list[str]] = {}
    for key in ("dropped", "skipped"):
        items = receipt.get(key)
        for item in items if isinstance(items, list) else ():
            if isinstance(item, Mapping):
                reasons.setdefault(str(item.get("reason")), []).append(str(item.get("name")))
    return "; ".join(f"{listed(names)} ({reason})" for reason, names in reasons.items())


def _notes(receipt: Mapping[str, Any]) -> str:
    """The notes of the merge, without those that name a path of the machine that it ran on."""
    notes = [note for note in _texts(receipt.get("notes")) if not _PATH.search(note)]
    return (
        "\n".join(["## Notes of the conversion", "", *(f"- {_plain(note)}" for note in notes), ""])
        if notes
        else ""
    )


def _hashes(folder: ModelFolder, repo_id: str, sent: bytes | None) -> str:
    """The section on hashes: the receipt has a hash of every tensor, and the card has the hash of the receipt."""
    path, tensors = folder.root / "ckptconv.json", _table(folder.receipt.get("tensors"))
    if not tensors:
        return ""
    digest = hashlib.sha256(path.read_bytes() if sent is None else sent).hexdigest()
    kind = _plain(folder.receipt.get("hash") or "hash").split("/")[0]
    lines = (
        f"`ckptconv.json` holds the {kind} of each of the {len(tensors):,} tensors; its own sha256 is `{digest}`.",
        f"To compare all of them: `ckptconv verify {repo_id}`",
    )
    return "\n".join(["## Hashes", "", *lines, ""])


def _tag(value: object) -> str:
    return re.sub(r"[^a-z0-9.-]+", "-", value.lower()).strip("-") if isinstance(value, str) else ""


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _plain(value: object) -> str:
    """A value as one line of text, which Markdown and HTML show as it is: no link, image, tag, table cell or heading.

    An underscore inside a word is none of Markdown's marks, and an address that Markdown would link gets a gap of no width.
    """
    line = " ".join(str(value).split())
    line = _MARKS.sub(lambda found: f"&#{ord(found[0])};" if found[0] in "<>&" else f"\\{found[0]}", line)
    return _LINKED.sub(lambda found: f"{found[0][:-1]}&#8203;{found[0][-1]}", line)
