"""The measured growth as a table and as curves: an SVG of two charts, CPU seconds over tensors and over ranks."""

from __future__ import annotations

from math import log10
from statistics import median
from typing import Any

_COLORS = {
    "fsdp": "#d62728",
    "dcp": "#1f77b4",
    "megatron": "#2ca02c",
    "megatron_legacy": "#98a832",
    "deepspeed": "#9467bd",
    "deepspeed3": "#c58fd0",
    "huggingface": "#ff9f1c",
    "hf_shards": "#8c564b",
}
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 330, 300, 60, 40, 110
_LOW, _HIGH = 0.1, 100.0  # seconds


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a checkpoint; the least wall time, the median of CPU time, the largest peak."""
    names = (
        "kind",
        "tensors",
        "ranks",
        "files",
        "TB",
        "inspect s",
        "CPU s",
        "MiB",
        "dry-run s",
        "CPU s",
        "MiB",
    )
    lines = ["| " + " | ".join(names) + " |", "|---|" + "---:|" * (len(names) - 1)]
    for row in rows:
        cells = [row["kind"], f"{row['tensors']:,}", f"{row['ranks']:,}", f"{row['files']:,}"]
        cells.append(f"{row['nbytes'] / 1e12:.3f}")
        for command in ("inspect", "dry_run"):
            runs = row[command]
            peak = max(run["peak"] for run in runs) / 2**20
            cells += [f"{_wall(row, command):.2f}", f"{_cpu(row, command):.2f}", f"{peak:,.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]]) -> str:
    """The SVG. Both axes are logarithmic; the grey lines rise as fast as the size does."""
    width, height = 2 * (_LEFT + _WIDTH) + _GAP + 120, _TOP + _HEIGHT + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    charts = (
        ("tensors", (100, 100_000), "tensors (8 ranks)"),
        ("ranks", (8, 4096), "ranks"),
    )
    for number, (axis, ends, said) in enumerate(charts):
        left = _LEFT + number * (_WIDTH + _GAP + _LEFT)
        parts += _frame(left, ends, f"merge --dry-run: CPU seconds over {said}")
        ends_at: list[tuple[float, str, str]] = []
        for kind, color in _COLORS.items():
            mine = sorted(
                (row[axis], _cpu(row, "dry_run"))
                for row in rows
                if (row["axis"], row["kind"]) == (axis, kind)
            )
            if len(mine) > 1:
                points = [(_x(left, ends, size), _y(seconds)) for size, seconds in mine]
                parts += _curve(points, color)
                ends_at.append((points[-1][1], kind, color))
        parts += _labels(left + _WIDTH + 8, ends_at)
    return "\n".join([*parts, "</svg>", ""])


def _wall(row: dict[str, Any], command: str) -> float:
    return float(min(run["wall"] for run in row[command]))


def _cpu(row: dict[str, Any], command: str) -> float:
    return float(median(run["user"] + run["system"] for run in row[command]))


def _x(left: float, ends: tuple[float, float], value: float) -> float:
    low, high = map(log10, ends)
    return left + _WIDTH * (log10(value) - low) / (high - low)


def _y(seconds: float) -> float:
    low, high = log10(_LOW), log10(_HIGH)
    return _TOP + _HEIGHT * (high - log10(max(min(seconds, _HIGH), _LOW))) / (high - low)


def _frame(left: float, ends: tuple[float, float], title: str) -> list[str]:
    """Axes, their numbers, and what grows linearly."""
    bottom, right = _TOP + _HEIGHT, left + _WIDTH
    parts = [f'<text x="{left}" y="{_TOP - 16}" font-weight="bold">{title}</text>']
    size, sizes = ends[0], []
    while size <= ends[1]:
        sizes.append(size)
        size *= 10 if ends[0] == 100 else 8
    for size in sizes:
        x = _x(left, ends, size)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#eee"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{size:,}</text>')
    seconds = _LOW
    while seconds <= _HIGH:
        y = _y(seconds)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#eee"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{seconds:g} s</text>')
        seconds *= 10
    for start in (0.0001, 0.001, 0.01, 0.1, 1.0):
        stop = start * ends[1] / ends[0]
        begin = ends[0] * max(_LOW / start, 1)
        end = ends[1] * min(_HIGH / stop, 1)
        if begin >= end:
            continue
        points = [(_x(left, ends, at), _y(start * at / ends[0])) for at in (begin, end)]
        parts.append(_line(points, "#bbb", 'stroke-dasharray="3 4"'))
    return parts


def _curve(points: list[tuple[float, float]], color: str) -> list[str]:
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in points]
    return [_line(points, color, 'stroke-width="1.8"'), *dots]


def _labels(x: float, ends: list[tuple[float, str, str]]) -> list[str]:
    """The curves' names at their ends, from the top down, none on another."""
    parts, lowest = [], 0.0
    for y, kind, color in sorted(ends):
        lowest = max(y, lowest + 13)
        parts.append(f'<text x="{x:.1f}" y="{lowest + 4:.1f}" fill="{color}" font-size="11">{kind}</text>')
    return parts


def _line(points: list[tuple[float, float]], color: str, more: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{color}" {more}/>'
