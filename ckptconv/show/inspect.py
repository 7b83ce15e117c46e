"""An Inspection as a screen: the facts, who stores what, the tensors, and what to do next."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ckptconv.commands.inspect import Inspection
from ckptconv.show.ranks import colour, coverage, picture
from ckptconv.show.sink import NO, OK
from ckptconv.show.units import count, shape, size

_MAX_RANKS = 16


def screen(found: Inspection, width: int) -> RenderableType:
    """The whole screen for a terminal of `width` columns."""
    parts: list[RenderableType] = [_facts(found), Text()]
    if found.backend != "huggingface":
        parts += [*_map(found, width), Text()]
    parts += [_tensors(found, width), *_end(found)]
    return Group(*parts)


def _facts(found: Inspection) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="bold")
    table.add_column(overflow="fold")
    place = "".join(
        [f", step {found.step}" if found.step is not None else "", f", {found.role}" if found.role else ""]
    )
    table.add_row("format", f"{found.layout}{place}")
    table.add_row("model", _model(found))
    if found.backend != "huggingface":
        cut = any(row.cut_dims for row in found.rows)
        meshes = ", ".join(found.meshes) or ("not stated" if cut else "none: every rank holds whole tensors")
        table.add_row("mesh", f"{meshes}  →  {found.world_size} rank{'s' if found.world_size != 1 else ''}")
    dtypes = ", ".join(f"{name} {size(nbytes)}" for name, _, nbytes in found.dtypes)
    files = sum(len(rank.files) for rank in found.ranks)
    table.add_row(
        "stores",
        f"{found.tensors} tensors in {files} files, {count(found.parameters)} parameters: {dtypes}",
    )
    if found.replica_bytes:
        table.add_row("copies", f"{size(found.replica_bytes)} on other ranks, left out")
    if found.lora:
        table.add_row("LoRA", found.lora)
    for what, nbytes, reason in found.skipped:
        table.add_row("skipped", f"{what} {size(nbytes)} ({reason})")
    return table


def _model(found: Inspection) -> str:
    config = found.config
    if not config:
        return "unknown: no config.json beside it"
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else config
    facts = [found.architecture or f"{config.get('model_type', 'unknown')} (config names no architecture)"]
    if isinstance(text.get("num_hidden_layers"), int):
        facts.append(f"{text['num_hidden_layers']} layers")
    if isinstance(text.get("hidden_size"), int):
        facts.append(f"hidden {text['hidden_size']}")
    if isinstance(text.get("vocab_size"), int):
        facts.append(f"vocabulary {text['vocab_size']:,}")
    return "  ".join(facts)


def _map(found: Inspection, width: int) -> list[RenderableType]:
    layers = [int(part) for part in found.parts if part.isdigit()]
    named = [part for part in found.parts if not part.isdigit()]
    span = f"layers {min(layers)}–{max(layers)}" if layers else ""
    order = (
        [part for part in ("embedding",) if part in named]
        + [span] * bool(span)
        + [p for p in named if p != "embedding"]
    )
    title = Text.assemble(("who stores what", "bold"), f"     {', '.join(order)}")
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    cells = max(min(40, len(found.parts) * 2, width - 34), 8)
    for rank in found.ranks[:_MAX_RANKS]:
        copies = f"  + {size(rank.copies)} copies" if rank.copies else ""
        name = Text(f"  rank {rank.rank}", colour(rank.rank))
        table.add_row(name, coverage(rank.parts, rank.rank, cells), f"{size(rank.nbytes)}{copies}")
    more = len(found.ranks) - _MAX_RANKS
    rest = [Text(f"  and {more} more ranks (--json lists all)", "dim")] if more > 0 else []
    return [title, table, *rest]


def _tensors(found: Inspection, width: int) -> RenderableType:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("tensor", overflow="fold", ratio=1)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("dtype", no_wrap=True)
    wide = width >= 100
    if found.backend != "huggingface":
        table.add_column("sliced", no_wrap=True)
        if wide:
            table.add_column("ranks", no_wrap=True)
    for row in found.rows:
        times = f"{row.count}×" if row.count > 1 else ""
        cells: list[RenderableType] = [Text(row.pattern), times, shape(row.shape), row.dtype]
        if found.backend != "huggingface":
            cells.append("dim " + ", ".join(map(str, row.cut_dims)) if row.cut_dims else "whole")
            if wide:
                cells.append(picture(row, 28))
        table.add_row(*cells)
    return table


def _end(found: Inspection) -> list[RenderableType]:
    mark = (OK, "green") if found.complete else (NO, "red")
    lines: list[RenderableType] = [
        Text.assemble(
            mark, " complete: every element of every tensor is stored, copies agree in shape and dtype"
        )
    ]
    lines += [Text(f"  {note}", "yellow") for note in found.notes]
    if found.backend != "huggingface":
        lines.append(Text.assemble(("  next: ", "dim"), f"ckptconv merge {found.path} MODEL"))
    else:
        lines.append(Text.assemble(("  next: ", "dim"), f"ckptconv verify {found.path}"))
    return lines
