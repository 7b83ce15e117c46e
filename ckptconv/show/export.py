"""Writes a screen to a file, for `--svg` and `--html` of every command."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import RenderableType

from ckptconv.errors import CkptconvError, Kind
from ckptconv.show import drawn

WIDTH = 110  # cells, which fit on a page or in a README


def check_export(*, svg: Path | None, html: Path | None) -> None:
    """Check before long work that the files can be written. Only an earlier picture may be replaced.

    Raises:
        CkptconvError: a file cannot be written, or it exists and is not a picture of ours.
    """
    if svg is not None and html is not None and svg.resolve() == html.resolve():
        raise CkptconvError("--svg and --html name the same file", where=svg, kind=Kind.USAGE)
    for flag, path in (("--svg", svg), ("--html", html)):
        if path is not None:
            _check(flag, path)


def export(
    renderable: RenderableType, *, svg: Path | None, html: Path | None, title: str, width: int = WIDTH
) -> None:
    """Write a screen to the given files. Each file appears completely or not at all.

    Args:
        renderable: the screen. It should use the terminal's 16 colours; backgrounds are not drawn.
        svg: the SVG file to write, or None.
        html: the HTML file to write, or None.
        title: the command line, which is shown above the screen.
        width: columns of the screen.

    Raises:
        CkptconvError: a file cannot be written.
    """
    check_export(svg=svg, html=html)
    if svg is not None:
        _write("--svg", svg, drawn.svg(renderable, title, width))
    if html is not None:
        _write("--html", html, drawn.html(renderable, title, width))


def _check(flag: str, path: Path) -> None:
    if path.is_dir():
        raise CkptconvError(
            f"{flag} names a folder",
            where=path,
            hint=f"name a file in it, such as {path / 'screen'}.{flag[2:]}",
            kind=Kind.USAGE,
        )
    if not path.parent.is_dir():
        raise CkptconvError(f"the folder for {flag} does not exist", where=path.parent, kind=Kind.USAGE)
    if not path.exists():
        return
    try:
        with path.open("rb") as handle:
            head = handle.read(64).lstrip().lower()
    except OSError as error:
        raise _unwritable(flag, path, error) from error
    if head and not head.startswith((b"<svg", b"<!doctype html")):
        raise CkptconvError(
            f"{flag} names an existing file that is not an SVG or HTML export, so it will not be overwritten",
            where=path,
            hint="choose another file name, or remove this file first",
            kind=Kind.USAGE,
        )


def _write(flag: str, path: Path, text: str) -> None:
    path = path.resolve()  # replaces the file that a link points to, not the link
    work = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with work.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(work, path)
    except OSError as error:
        raise _unwritable(flag, path, error) from error
    finally:
        work.unlink(missing_ok=True)


def _unwritable(flag: str, path: Path, error: OSError) -> CkptconvError:
    return CkptconvError(f"{flag}: cannot be written: {error.strerror}", where=path, kind=Kind.ENVIRONMENT)
