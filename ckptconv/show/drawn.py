"""Draws a screen as self-contained SVG or HTML text, in light or dark colours as the reader prefers.

The text has no script, font or address. A screen is drawn as lines of runs. A run is text of one style. Glyphs such as
blocks and bars form their own runs with a fixed width, since a font that lacks them falls back to a wider one.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.segment import Segment
from rich.style import Style

from ckptconv.show.lines import command_lines
from ckptconv.show.sink import printable

FONT = "ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,'Liberation Mono',monospace"


class Palette(NamedTuple):
    """CSS colours.

    Args:
        text: of ordinary text.
        faint: of dim text.
        paper: the colour of the background.
        colours: the terminal's colours 0 to 15.
    """

    text: str
    faint: str
    paper: str
    colours: tuple[str, ...]


LIGHT = Palette(
    "#1f2328", "#59636e", "#ffffff",
    (
        "#1f2328", "#b42318", "#1a6b32", "#7a5200", "#0b57c4", "#8b2a9b", "#0b6370", "#59636e",
        "#59636e", "#c2410c", "#3f6212", "#854d0e", "#1d4ed8", "#be185d", "#0f766e", "#1f2328",
    ),
)  # fmt: skip
DARK = Palette(
    "#e6edf3", "#9198a1", "#0d1117",
    (
        "#9198a1", "#ff7b72", "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#5ad4e6", "#e6edf3",
        "#9198a1", "#ffa657", "#a5d65b", "#f0c674", "#a5c8ff", "#ff9bce", "#7ee2c8", "#ffffff",
    ),
)  # fmt: skip
_GLYPHS = re.compile("([\u2190-\u21ff\u2500-\u25ff]+)")
_ACROSS, _DOWN, _SIZE, _EDGE = 8.4, 18, 14, 16  # pixels: a cell's width and height, the letters, the margin


class Run(NamedTuple):
    """Text of one style on a line.

    Args:
        column: its first cell.
        text: the text.
        classes: its CSS classes.
        glyphs: True for drawing glyphs, False for words.
    """

    column: int
    text: str
    classes: str
    glyphs: bool


def svg(shown: RenderableType, title: str, width: int) -> str:
    """Draw a screen as SVG, with the command above it.

    Args:
        shown: the screen.
        title: the command line.
        width: columns of the terminal.
    """
    command = [
        [Run(2 * bool(number), line, "b", False)] for number, line in enumerate(_command(title, width))
    ]
    lines = [*command, *_lines(shown, width)]
    used = {run.classes for line in lines for run in line}
    longest = max(run.column + cell_len(run.text) for line in lines for run in line)
    across = round(max(width, longest) * _ACROSS + 2 * _EDGE)
    down = len(lines) * _DOWN + 2 * _EDGE
    escaped = escape(printable(title))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {down}" width="{across}" height="{down}" '
        'role="img" xml:space="preserve">',
        f"<title>{escaped}</title>",
        f"<style>text{{font:{_SIZE}px {FONT};white-space:pre}}{_colours('fill', used)}</style>",
        f'<rect width="{across}" height="{down}" rx="8" class="p"/>',
    ]
    return "\n".join([*parts, *_texts(lines), "</svg>", ""])


def film(scenes: Sequence[tuple[str, RenderableType]], width: int, seconds: float) -> str:
    """Draw screens one after another in one SVG, in a loop. Viewers that show no motion see the first one.

    Args:
        scenes: the command and the screen of each.
        width: columns of the terminal.
        seconds: how long each is shown.
    """
    drawn = [
        [
            *([Run(2 * bool(n), line, "b", False)] for n, line in enumerate(_command(title, width))),
            *_lines(shown, width),
        ]
        for title, shown in scenes
    ]
    used = {run.classes for lines in drawn for line in lines for run in line}
    across = round(width * _ACROSS + 2 * _EDGE)
    down = max(map(len, drawn)) * _DOWN + 2 * _EDGE
    share = 100 / len(drawn)
    moves = "".join(
        f"@keyframes s{n}{{0%,{n * share:.2f}%{{opacity:0}}{n * share + 0.01:.2f}%,{(n + 1) * share:.2f}%{{opacity:1}}"
        f"{(n + 1) * share + 0.01:.2f}%,100%{{opacity:0}}}}.s{n}{{animation:s{n} {seconds * len(drawn):g}s infinite}}"
        for n in range(len(drawn))
    )
    still = "".join(f".s{n}{{opacity:{int(n == 0)}}}" for n in range(len(drawn)))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {down}" width="{across}" height="{down}" '
        'role="img" xml:space="preserve">',
        f"<title>{escape(' · '.join(printable(title) for title, _ in scenes))}</title>",
        f"<style>text{{font:{_SIZE}px {FONT};white-space:pre}}{_colours('fill', used)}{still}"
        f"@media(prefers-reduced-motion:no-preference){{{moves}}}</style>",
        f'<rect width="{across}" height="{down}" rx="8" class="p"/>',
    ]
    for number, lines in enumerate(drawn):
        parts += [f'<g class="s{number}">', *_texts(lines), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _texts(lines: Sequence[Sequence[Run]]) -> Iterator[str]:
    for number, line in enumerate(lines):
        for run in line:
            x, y = _EDGE + run.column * _ACROSS, _EDGE + (number + 0.75) * _DOWN
            long = f' textLength="{cell_len(run.text) * _ACROSS:g}"' if len(run.text) > 1 else ""
            fit = ' lengthAdjust="spacingAndGlyphs"' if run.glyphs and long else ""
            kind = f' class="{run.classes}"' if run.classes else ""
            yield f'<text x="{x:g}" y="{y:g}"{long}{fit}{kind}>{escape(run.text)}</text>'


def html(shown: RenderableType, title: str, width: int) -> str:
    """Draw a screen as an HTML page, with the command above it. The text can be searched, copied and printed.

    Args:
        shown: the screen.
        title: the command line.
        width: columns of the terminal.
    """
    lines = []
    drawn = list(_lines(shown, width))
    for line in drawn:
        text, column = "", 0
        for run in line:
            text += " " * (run.column - column) + _span(run)
            column = run.column + cell_len(run.text)
        lines.append(text)
    escaped = escape(printable(title))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escaped}</title>\n<style>\n:root{{color-scheme:light dark}}body{{margin:1.5rem}}\n"
        f"pre{{font:.875rem/1.3 {FONT};overflow-x:auto}}\n"
        ".g{display:inline-block;overflow:hidden;vertical-align:bottom;width:calc(var(--n)*1ch)}\n"
        ".t{white-space:pre-wrap;overflow-wrap:anywhere}\n"
        f"{_colours('color', {run.classes for line in drawn for run in line})}\n</style>\n</head>\n<body>\n"
        f'<pre><span class="b t">$ {escaped}</span>\n' + "\n".join(lines) + "</pre>\n</body>\n</html>\n"
    )


def _span(run: Run) -> str:
    text = escape(run.text)
    classes = f"{run.classes} g".strip() if run.glyphs else run.classes
    if not classes:
        return text
    cells = f' style="--n:{cell_len(run.text)}"' if run.glyphs else ""
    return f'<span class="{classes}"{cells}>{text}</span>'


def _colours(what: str, used: Iterable[str]) -> str:
    """CSS rules for the classes that are used, on a light background, or on a dark one if the reader prefers that.

    They use no CSS variables. SVG viewers outside of browsers support neither variables nor media queries, and draw the
    light background.
    """
    names = sorted({name for classes in used for name in classes.split()})

    def rules(palette: Palette) -> str:
        of = {"d": palette.faint} | {f"c{number}": colour for number, colour in enumerate(palette.colours)}
        return "".join(f".{name}{{{what}:{of[name]}}}" for name in names if name in of)

    def paper(palette: Palette) -> str:
        if what == "fill":
            return f"text{{fill:{palette.text}}}.p{{fill:{palette.paper}}}"
        return f"body{{background:{palette.paper};color:{palette.text}}}"

    return (
        f".b{{font-weight:bold}}.u{{text-decoration:underline}}{paper(LIGHT)}{rules(LIGHT)}"
        f"@media(prefers-color-scheme:dark){{{paper(DARK)}{rules(DARK)}}}"
    )


def _lines(shown: RenderableType, width: int) -> Iterator[list[Run]]:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=True, color_system="standard", legacy_windows=False,
        highlight=False, markup=False, emoji=False, _environ={},
    )  # fmt: skip
    segments = console.render(shown, console.options.update(width=width))
    for line in Segment.split_lines(Segment.filter_control(segments)):
        column, runs = 0, []
        for raw, style, _ in line:
            text = printable(raw)  # a control character would make the file invalid
            for number, piece in enumerate(_GLYPHS.split(text)):
                if bare := piece.lstrip(" "):
                    at = column + len(piece) - len(bare)
                    runs.append(Run(at, bare.rstrip(" "), _named(style), bool(number % 2)))
                column += cell_len(piece)
        yield runs


def _command(title: str, width: int) -> list[str]:
    """The command in lines that fit, as a shell takes them."""
    first, *more = command_lines(printable(title), width - 2)
    return [f"$ {first}", *more]


def _named(style: Style | None) -> str:
    if style is None:
        return ""
    number = style.color.number if style.color and not style.color.is_default else None
    classes = [f"c{number}"] if number is not None and number < 16 else []
    flags = (("b", style.bold), ("d", style.dim), ("u", style.underline))
    return " ".join(classes + [name for name, on in flags if on])
