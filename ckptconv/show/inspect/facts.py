"""Shows the facts above the pictures, and the verdict below them."""

from __future__ import annotations

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ckptconv.commands.inspect import Inspection, Next
from ckptconv.errors import listed
from ckptconv.show.lines import Command, Hanging
from ckptconv.show.sink import NO, OK
from ckptconv.show.units import count, size

_HEADS = 3


def facts(found: Inspection) -> RenderableType:
    """The format, who saved it, the model, the sharding, what is stored and what is skipped."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in _rows(found):
        table.add_row(label, Text(_printable(text)))
    return table


def _printable(text: str) -> str:
    """Replace unprintable characters: text from a file may contain terminal commands."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _rows(found: Inspection) -> list[tuple[str, str]]:
    step = [f"step {found.step}"] if found.step is not None else []
    rows = [("format", " · ".join([found.layout, *step, *([found.role] if found.role else [])]))]
    if found.saved_by:
        parts = (f"{item.what} {item.value}".removeprefix("trainer ") for item in found.saved_by)
        rows.append(("saved", " · ".join(parts)))
    rows.append(("model", _model(found)))
    if found.heads:
        rows.append(("head", listed(found.heads, _HEADS)))
    if found.is_sharded:
        rows.append(_mesh(found))
    dtypes = ", ".join(f"{name} {size(nbytes)}" for name, _, nbytes in found.dtypes)
    files = sum(len(rank.files) for rank in found.ranks)
    stored = f"{found.tensors:,} tensors in {files:,} file{'s' * (files != 1)}"
    rows.append(("stores", f"{stored}, {count(found.parameters)} parameters: {dtypes}"))
    if found.replica_bytes:
        rows.append(("replicas", f"{size(found.replica_bytes)} on other ranks (ignored)"))
    if found.lora:
        rows.append(("LoRA", found.lora))
    if found.skipped:
        rows.append(("skipped", ", ".join(_skipped(*item) for item in found.skipped)))
    return rows


def _skipped(what: str, nbytes: int, reason: str) -> str:
    if what.endswith(" entries"):
        return f"{reason} {size(nbytes)} in {what}"
    return f"{what} {size(nbytes)}" + ("" if reason == "not part of the model" else f" ({reason})")


def _mesh(found: Inspection) -> tuple[str, str]:
    """The label and the text of the line that tells how tensors are sharded over the ranks."""
    ranks = f"{found.world_size:,} rank{'s' * (found.world_size != 1)}"
    storing = sum(rank.nbytes + rank.copies > 0 for rank in found.ranks)
    if storing < found.world_size:
        ranks += f", {storing} of them with weights"
    if found.meshes:
        return "mesh", f"{', '.join(found.meshes)} · {ranks}"
    if any("flat" in row.placement for row in found.rows):
        return "sharding", f"flat partitions · {ranks}"
    if any(row.cut_dims for row in found.rows):
        return "mesh", f"not recorded · {ranks}"
    return "mesh", f"none (unsharded, {ranks})"


def _model(found: Inspection) -> str:
    config = found.config
    if not config:
        return "unknown (no config.json found)"
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else config
    parts = [found.architecture or f"{config.get('model_type', 'unknown')} (config names no architecture)"]
    if isinstance(text.get("num_hidden_layers"), int):
        parts.append(f"{text['num_hidden_layers']} layers")
    if isinstance(text.get("hidden_size"), int):
        parts.append(f"hidden {text['hidden_size']}")
    if isinstance(text.get("vocab_size"), int):
        parts.append(f"vocabulary {text['vocab_size']:,}")
    return "  ".join(parts)


def end(found: Inspection) -> list[RenderableType]:
    """The verdict (complete or not), the notes, and the next command."""
    lines: list[RenderableType] = [_verdict(found)]
    lines += [Padding(Text(note, "yellow"), (0, 0, 0, 2)) for note in found.notes]
    if found.next is not None:
        lines.append(Command(found.next.command, Text("  next: ", "dim")))
        lines += [Padding(text, (0, 0, 0, 8)) for text in _what_for(found.next)]
    return lines


def _verdict(found: Inspection) -> Hanging:
    if found.complete:
        sentence = " complete: no element is missing, and replicas have the same shape and dtype"
        return Hanging(Text.assemble((OK, "green"), sentence), 2)
    if found.complete is None:
        sentence = f" every stored element is there; not compared with a model: {found.why_not}"
        return Hanging(Text.assemble((OK, "green"), _printable(sentence)), 2)
    return Hanging(Text.assemble((NO, "red"), _printable(f" not a whole model: {found.why_not}")), 2)


def _what_for(next_: Next) -> list[Text]:
    if next_.writes:
        files = f"{next_.files:,} file{'s' * (next_.files != 1)}"
        return [Text(f"writes {next_.tensors:,} tensors, {next_.writes}, {size(next_.nbytes)} in {files}")]
    lines = [Text(f"not planned: {next_.why_not}", "yellow")] if next_.why_not else []
    return [*lines, Text.assemble(("hint: ", "dim"), next_.hint)] if next_.hint else lines
