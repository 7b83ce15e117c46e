"""A merge on the screen: phases, the bar, the plan of a dry run, the last line."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ckptconv.commands.merge.run import Merged
from ckptconv.plan import Plan
from ckptconv.publish.receipt import receipt
from ckptconv.show.bar import Bar
from ckptconv.show.sink import OK, Sink
from ckptconv.show.units import seconds, size


def summary(plan: Plan) -> str:
    """What is read, in a few words."""
    source = plan.checkpoint
    mesh = f", mesh {', '.join(map(str, source.meshes))}" if source.meshes else ""
    step = f", step {source.step}" if source.step is not None else ""
    role = f", {source.role}" if source.role else ""
    model = (
        (plan.config or {}).get("architectures") or ["PEFT adapter" if plan.is_adapter else "unknown model"]
    )[0]
    return f"{source.layout}{mesh}{step}{role}: {model}"


def files(plan: Plan) -> str:
    """ "1 file", "3 files"."""
    return f"{len(plan.files)} file{'s' if len(plan.files) != 1 else ''}"


def planned(plan: Plan) -> str:
    """How many tensors become how many."""
    stored = len(plan.checkpoint.tensors)
    said = f"; {plan.dtype_said}" if plan.dtype_said else ""
    return f"{stored} stored → {len(plan.outputs)} model tensors, {size(plan.nbytes)} in {files(plan)}{said}"


def done(result: Merged) -> RenderableType:
    """The last line of a merge, or the plan of a dry run."""
    if result.dry_run:
        return dry_run(result)
    plan, rate = result.plan, result.plan.nbytes / max(result.seconds, 1e-9)
    resumed = f"   {len(result.resumed)} were there from an earlier run" if result.resumed else ""
    return Text.assemble(
        (f"{OK} ", "green"),
        (str(result.target), "bold"),
        f"   {size(plan.nbytes)} in {files(plan)}   {seconds(result.seconds)} ({size(rate)}/s)"
        f"   peak memory {size(result.peak_memory)}{resumed}",
    )


def dry_run(result: Merged) -> RenderableType:
    """The plan: files, dtype changes, what is dropped and why, what it needs."""
    plan = result.plan
    listed = _table("file", "tensors", "bytes")
    for file in plan.files:
        listed.add_row(file.name, str(len(file.offsets)), f"{file.nbytes:,}")
    casts = _table("stored as", "written as", "tensors", "bytes")
    for stored, written, number, nbytes in plan.casts:
        casts.add_row(stored, written if written != stored else "the same", str(number), f"{nbytes:,}")
    parts: list[RenderableType] = [
        Text(f"would write {result.target}", "bold"),
        Text(),
        listed,
        Text(),
        casts,
        Text(),
    ]
    if plan.dropped or plan.checkpoint.skipped:
        left = _table("left out", "bytes", "because")
        for name, nbytes, reason in plan.left_out:
            left.add_row(name, f"{nbytes:,}", reason)
        for skipped in plan.checkpoint.skipped:
            left.add_row(skipped.what, f"{skipped.nbytes:,}", skipped.reason)
        parts += [left, Text()]
    if plan.rules:
        parts += [Text("renamed", "bold"), *(Text(f"  {rule}") for rule in plan.rules), Text()]
    parts.append(
        Text(
            f"needs {size(plan.nbytes)} of disk and {size(result.buffers)} of buffers on {result.workers} workers"
        )
    )
    parts.append(
        Text.assemble(
            (f"{OK} ", "green"),
            f"the ledger balances: {plan.balanced:,} stored bytes, each used once or left out above",
        )
    )
    return Group(*parts)


def _table(*columns: str) -> Table:
    """A plain table; numbers to the right."""
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
        "checked_tensors": result.checked,
        "balanced_bytes": plan.balanced,
        "rules": list(plan.rules),
        **data,
    }


class Writing:
    """The bar while a plan is copied, and while it is read again."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._bar = Bar(sink, "Writing", names=True)

    def start(self, plan: Plan) -> None:
        """Begin to draw, once the plan is known. Anew for each plan."""
        self._start(plan, "Writing", f"{size(plan.nbytes)} in {files(plan)}")

    def check(self, plan: Plan, tensors: int | None) -> None:
        """The second pass, of what was written; tensors: how many were equal, once it is over."""
        if tensors is None:
            self._start(plan, "Checking")
            return
        self._bar.end()
        said = f"{files(plan)} read again by safetensors: {tensors:,} tensors are the source's, bit for bit"
        self._sink.phase("Checking", said)

    def _start(self, plan: Plan, word: str, said: str = "") -> None:
        self._bar.end()
        self._bar = Bar(self._sink, word, names=True)
        self._bar.begin(plan.nbytes)
        if said and not self._sink.live:
            self._sink.phase(word, said)

    def on_bytes(self, nbytes: int, file: str) -> None:
        """Bytes written, or read again, of a file."""
        self._bar.add(nbytes, file)

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.end()
