"""A screen as a file: `--svg` and `--html` of every command."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import RenderableType

from ckptconv.errors import CkptconvError
from ckptconv.show import drawn

WIDTH = 110  # cells: what a page or a README has room for


def check_export(*, svg: Path | None, html: Path | None) -> None:
    """Refuse what cannot be written, before work that takes long. A picture of before may be replaced, no other file.

    Raises CkptconvError.
    """
    if svg is not None and html is not None and svg.resolve() == html.resolve():
        raise CkptconvError("--svg and --html name the same file", where=svg)
    for flag, path in (("--svg", svg), ("--html", html)):
        if path is not None:
            _check(flag, path)


def export(
    renderable: RenderableType, *, svg: Path | None, html: Path | None, title: str, width: int = WIDTH
) -> None:
    """Write a screen to the files that are named; each appears whole or not at all.

    renderable: drawn for `width` cells; its colours should be the terminal's own 16, a background is not drawn.
    title: the command line, shown above it. Raises CkptconvError where a file cannot be written.
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
        )
    if not path.parent.is_dir():
        raise CkptconvError(f"the folder for {flag} does not exist", where=path.parent)
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
        )


def _write(flag: str, path: Path, text: str) -> None:
    path = path.resolve()  # a link's file, not the link
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
    return CkptconvError(f"{flag}: cannot be written: {error.strerror}", where=path)
