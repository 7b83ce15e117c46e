"""A run's results as rows, in a terminal's table and in the README's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
_COLUMNS = ("", "writes", "wall s", "min to max", "CPU s", "peak MiB", "× verl", "× floor", "× synced")
_START = 0.4  # seconds that a process may take to begin
_FLOORS = {
    (dtype, synced): ("cat-ranks", f"{'sync' if synced else 'write'}-{dtype}")
    for dtype in ("bf16", "fp32")
    for synced in (False, True)
}


@dataclass(frozen=True, slots=True)
class Row:
    """A line: medians over the rounds. to_verl, to_floor, to_synced: ratios of wall medians, None where unsaid."""

    label: str
    dtype: str
    walls: tuple[float, ...]
    cpu: float
    peak: float | None
    to_verl: float | None = None
    to_floor: float | None = None
    to_synced: float | None = None

    def cells(self) -> tuple[str, ...]:
        spread = f"{min(self.walls):.2f} to {max(self.walls):.2f}"
        peak = f"{self.peak / 2**20:,.0f}" if self.peak is not None else ""
        ratios = [
            f"{ratio:.2f}" if ratio is not None else ""
            for ratio in (self.to_verl, self.to_floor, self.to_synced)
        ]
        return (self.label, self.dtype, f"{median(self.walls):.2f}", spread, f"{self.cpu:.2f}", peak, *ratios)


def rows(result: dict[str, Any]) -> list[Row]:
    """The contenders, the floors made of `cat` and `dd`, their parts, and the start-up times."""
    by_key = {entry["key"]: entry for entry in result["contenders"]}
    walls = {key: _walls(entry) for key, entry in by_key.items()}
    floors = {
        kind: tuple(read + write + _START for read, write in zip(*(walls[key] for key in keys), strict=True))
        for kind, keys in _FLOORS.items()
        if all(key in walls for key in keys)
    }
    verl = median(walls["verl"]) if "verl" in walls else None
    found = []
    for key, entry in by_key.items():
        if entry["is_floor"]:
            continue
        wall, dtype = median(walls[key]), entry["dtype"]
        to_verl = wall / verl if verl and dtype == "bf16" else None
        times = [
            wall / median(floors[kind]) if (kind := (dtype, synced)) in floors else None
            for synced in (False, True)
        ]
        found.append(_row(entry, to_verl, *times))
    for (dtype, synced), sums in floors.items():
        cpu = sum(_cpu(by_key[key]) for key in _FLOORS[dtype, synced])
        label = f"floor: {_START} s + cat + dd{' conv=fsync' if synced else ''}"
        found.append(Row(label, dtype, sums, cpu, None))
    found += [_row(entry) for entry in by_key.values() if entry["is_floor"]]
    return found + [_row(entry | {"dtype": ""}) for entry in result["startup"]]


def _row(
    entry: dict[str, Any],
    to_verl: float | None = None,
    to_floor: float | None = None,
    to_synced: float | None = None,
) -> Row:
    peak = None if entry.get("is_floor") else max(run["peak"] for run in entry["runs"])
    return Row(entry["label"], entry["dtype"], _walls(entry), _cpu(entry), peak, to_verl, to_floor, to_synced)


def _walls(entry: dict[str, Any]) -> tuple[float, ...]:
    return tuple(run["wall"] for run in entry["runs"])


def _cpu(entry: dict[str, Any]) -> float:
    return float(median(run["user"] + run["system"] for run in entry["runs"]))


def title(result: dict[str, Any]) -> str:
    """One line about the run: what was read, how often, on what machine and how busy it was."""
    machine = result["machine"]
    loads = [run["load"] for entry in result["contenders"] for run in entry["runs"]]
    return (
        f"Qwen2 {result['size']}, {result['bytes_in'] / 1e9:.2f} GB of fp32 over {result['world']} ranks;"
        f" {result['rounds']} rounds on {result['date']};"
        f" {machine['cores']} cores, {machine['memory_gib']} GiB;"
        f" load before a run {min(loads):.1f} to {max(loads):.1f}"
    )


def notes(result: dict[str, Any]) -> list[str]:
    """What else the run found out: how warm the inputs were, and whether the tools agree."""
    found = []
    if result["warm"] is not None:
        found.append(f"at least {result['warm']:.1%} of every input lay in the page cache before its run")
    for pair, same in result["agree"].items():
        found.append(f"{pair}: {'the same tensors, byte for byte' if same else 'THE TENSORS DIFFER'}")
    return found


def show(result: dict[str, Any]) -> None:
    """Print the table to the terminal."""
    table = Table(title=title(result), title_justify="left")
    for number, name in enumerate(_COLUMNS):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
    for row in rows(result):
        table.add_row(*row.cells())
    console = Console(width=max(Console().width, 130))
    console.print(table, *notes(result), sep="\n")


def markdown(result: dict[str, Any]) -> str:
    """The same table for the README."""
    lines = [f"### {title(result)}", "", line(_COLUMNS), "|---|---|" + "---:|" * (len(_COLUMNS) - 2)]
    lines += [line(row.cells()) for row in rows(result)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(result)), ""])


def line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def newest(folder: Path) -> list[dict[str, Any]]:
    """The newest result of each size, small sizes first."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        if result["size"] not in found or found[result["size"]]["date"] <= result["date"]:
            found[result["size"]] = result
    return sorted(found.values(), key=lambda result: result["bytes_in"])


def update_readme(readme: Path, results: Path) -> None:
    """Replace what stands between the README's markers by the newest tables."""
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    tables = "\n".join(markdown(result) for result in newest(results))
    readme.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}")
