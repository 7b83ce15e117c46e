"""Writes docs/images/*.svg from real screens: python tests/make/screens.py RUN MODEL (made by `make demo`)."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console, RenderableType
from rich.text import Text

from ckptconv import inspect, verify
from ckptconv.show import inspect as show_inspect
from ckptconv.show import verify as show_verify

IMAGES = Path(__file__).parents[2] / "docs" / "images"
WIDTH = 110


def save(name: str, command: str, shown: RenderableType) -> None:
    """One screen, with the command above it, as a person sees it in a terminal."""
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, highlight=False, markup=False
    )
    console.print(Text.assemble(("$ ", "dim"), command))
    console.print(shown)
    IMAGES.mkdir(parents=True, exist_ok=True)
    (IMAGES / f"{name}.svg").write_text(console.export_svg(title=command, unique_id=name), encoding="utf-8")


def main() -> None:
    run, model = sys.argv[1:3]
    save("inspect", f"ckptconv inspect {run}", show_inspect.screen(inspect(run), WIDTH))
    save(
        "verify",
        f"ckptconv verify {model} --against {run}",
        show_verify.screen(verify(model, against=run), WIDTH),
    )


if __name__ == "__main__":
    main()
