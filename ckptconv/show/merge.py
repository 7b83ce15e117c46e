"""Shows a merge on the screen: phases, the plan of a dry run, the notes, the last line."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from shlex import quote
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ckptconv.commands.merge.run import Merged
from ckptconv.errors import listed
from ckptconv.plan import Plan
from ckptconv.publish.receipt import receipt
from ckptconv.publish.tokenizer import is_tokenizer_file
from ckptconv.show.lines import Hanging, Name
from ckptconv.show.ranks import spans
from ckptconv.show.sink import OK, Sink
from ckptconv.show.units import as_typed, seconds, shape, size
from ckptconv.tensors.checkpoint import without_submeshes
from ckptconv.tensors.view import View


def summary(plan: Plan) -> str:
    """A few words on what is read."""
    source = plan.checkpoint
    parts = [source.layout]
    if source.meshes:
        parts.append(f"mesh {', '.join(map(str, without_submeshes(source.meshes)))}")
    if source.step is not None:
        parts.append(f"step {source.step}")
    if source.role:
        parts.append(source.role)
    model = (
        (plan.config or {}).get("architectures") or ["PEFT adapter" if plan.is_adapter else "unknown model"]
    )[0]
    return f"{' · '.join(parts)}: {model}"


def files_of(count: int) -> str:
    """ "1 file", "3 files"."""
    return f"{count:,} file{'s' * (count != 1)}"


def files(plan: Plan) -> str:
    """The number of files that a plan writes: "1 file", "3 files"."""
    return files_of(len(plan.files))


def planned(plan: Plan) -> str:
    """The numbers of stored and of written tensors."""
    stored = len(plan.checkpoint.tensors)
    return f"{stored:,} tensors → {len(plan.outputs):,} tensors, {written(plan)}"


def written(plan: Plan) -> str:
    """How much a plan writes: "2.0 GB in 3 files"."""
    return f"{size(plan.nbytes)} in {files(plan)}"


def every_tensor(plan: Plan) -> Iterator[str]:
    """A line for each tensor that a plan writes: its name, dtype and shape, what it is made of, and the ranks it is on."""
    for key, entry in receipt(plan, {})["tensors"].items():
        source = plan.outputs[key].source
        how = "" if isinstance(source, View) else f" by {type(source).__name__.lower()}"
        stored = entry["stored"] if entry["stored"] != entry["dtype"] else ""
        on = f"rank{'s' * (len(entry['ranks']) != 1)} {spans(entry['ranks'])}" if entry["ranks"] else ""
        details = ", ".join(filter(None, (stored, on)))
        about = f" ({details})" if details else ""
        yield f"{key}  {entry['dtype']} {shape(entry['shape'])}  <- {', '.join(entry['from'])}{how}{about}"


def done(result: Merged) -> RenderableType:
    """The last line of a merge, or the plan of a dry run."""
    if result.dry_run:
        return dry_run(result)
    plan, rate = result.plan, result.plan.nbytes / max(result.seconds, 1e-9)
    resumed = f"   {files_of(len(result.resumed))} resumed from an earlier run" if result.resumed else ""
    return Text.assemble(
        (f"{OK} ", "green"),
        (str(result.target), "bold"),
        f"   {size(plan.nbytes)} in {files(plan)}   {seconds(result.seconds)} ({size(rate)}/s)"
        f"   peak memory {size(result.peak_memory)}{resumed}",
    )


def next_command(result: Merged, config: object = None, base: object = None) -> str | None:
    """The command to type next; None after a dry run and for an adapter, whose checkpoint is not a model.

    Args:
        result: the merge.
        config: the value of --config, which the checkpoint needs again.
        base: the value of --base.
    """
    if result.dry_run or result.plan.is_adapter:
        return None
    needs = [(flag, value) for flag, value in (("--config", config), ("--base", base)) if value is not None]
    source = result.plan.checkpoint.one_file or result.plan.checkpoint.root
    words = ["ckptconv", "verify", result.target, "--against", source, *chain(*needs)]
    return " ".join(quote(as_typed(word)) for word in words)


def dry_run(result: Merged) -> RenderableType:
    """The plan of a dry run: files, dtype changes, what is left out and why, the disk and memory it needs."""
    plan = result.plan
    listed = _table("file", "tensors", "bytes")
    for file in plan.files:
        listed.add_row(file.name, f"{len(file.offsets):,}", f"{file.nbytes:,}")
    casts = _table("stored as", "written as", "tensors", "bytes")
    for stored, written, number, nbytes in plan.casts:
        casts.add_row(stored, written if written != stored else "unchanged", f"{number:,}", f"{nbytes:,}")
    parts: list[RenderableType] = [
        Text(f"would write {result.target}", "bold"),
        Text(),
        listed,
        Text(),
        casts,
        Text(),
    ]
    if plan.dropped or plan.checkpoint.skipped:
        left = _table("left out", "bytes", "reason")
        for name, nbytes, reason in plan.left_out:
            left.add_row(Name(name), f"{nbytes:,}", reason)
        for skipped in plan.checkpoint.skipped:
            left.add_row(skipped.what, f"{skipped.nbytes:,}", skipped.reason)
        parts += [left, Text()]
    if plan.rules:
        parts += [Text("renamed", "bold"), *(Hanging(Text(f"  {rule}"), 6) for rule in plan.rules), Text()]
    parts.append(
        Text(
            f"needs {size(plan.nbytes)} of disk and {size(result.buffers)} of memory with {result.workers} workers"
        )
    )
    parts.append(
        Hanging(
            Text.assemble(
                (f"{OK} ", "green"),
                f"all {plan.balanced:,} stored bytes accounted for: each used once or listed above as left out",
            ),
            2,
        )
    )
    return Group(*parts)


def _table(*columns: str) -> Table:
    """A plain table with numbers aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column, justify="right" if column in ("tensors", "bytes") else "left", overflow="fold"
        )
    return table


def record(result: Merged) -> dict[str, Any]:
    """The result as plain data for --json; with the plan's tensors as the receipt lists them."""
    plan = result.plan
    data = receipt(plan, {})
    for tensor in data["tensors"].values():
        del tensor["hash"]
    return {
        "target": str(result.target),
        "dry_run": result.dry_run,
        "seconds": round(result.seconds, 3),
        "workers": result.workers,
        "buffer_bytes": result.buffers,
        "peak_memory": result.peak_memory,
        "bytes_read": result.read,
        "resumed": list(result.resumed),
        "assets": list(result.assets),
        "left": list(result.left),
        "checked_tensors": result.checked,
        "found": list(result.notes),
        "balanced_bytes": plan.balanced,
        "rules": list(plan.rules),
        **data,
    }


def notes(sink: Sink, result: Merged) -> None:
    """Report what the merge found while it wrote and checked."""
    if result.left:
        named = listed(result.left)
        sink.phase("Left", f"{named}: not known as files of a model (--include NAME copies them)")
    if result.checked:
        text = f"{files(result.plan)}: all {result.checked:,} tensors match the checkpoint bit for bit"
        sink.phase("Checked", text)
    if _lacks_tokenizer(result):
        sink.phase(
            "Tokenizer",
            "none next to config.json; --config org/name takes config and tokenizer from that model",
        )
    for note in result.notes:
        sink.note(note)


def _lacks_tokenizer(result: Merged) -> bool:
    """True for a language model that was written without a tokenizer."""
    config = result.plan.config or {}
    parts = (config, config.get("text_config"))
    has_words = any(isinstance(part, dict) and isinstance(part.get("vocab_size"), int) for part in parts)
    return has_words and not result.dry_run and not any(map(is_tokenizer_file, result.assets))
