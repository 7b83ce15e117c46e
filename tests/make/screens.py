"""Writes docs/images/*.svg from real screens: python tests/make/screens.py RUN MODEL (made by `make demo`).

The other checkpoints are fixtures of the tests. A command runs beside its checkpoint, so that paths are short.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from pack import unpack
from rich.console import RenderableType

from ckptconv import inspect, verify
from ckptconv.show import inspect as show_inspect
from ckptconv.show import verify as show_verify
from ckptconv.show.export import WIDTH, export

REPOSITORY = Path(__file__).parents[2]
IMAGES = REPOSITORY / "docs" / "images"
FIXTURES = REPOSITORY / "tests" / "fixtures"


def save(name: str, command: str, shown: RenderableType) -> None:
    """One screen, with the command above it, as a person sees it in a terminal."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    export(shown, svg=IMAGES / f"{name}.svg", html=None, title=command, width=WIDTH)


def look(name: str, run: Path, tensor: str | None = None, depth: int | None = None) -> None:
    """One screen of `inspect`."""
    here = Path.cwd()
    os.chdir(run.parent)
    try:
        found = inspect(run.name, tensor=tensor, tree=depth is not None)
        asked = f" --tensor {tensor}" if tensor else f" --depth {depth}" if depth is not None else ""
        save(name, f"ckptconv inspect {run.name}{asked}", show_inspect.screen(found, WIDTH, depth))
    finally:
        os.chdir(here)


def main() -> None:
    run, model = sys.argv[1:3]
    save("inspect", f"ckptconv inspect {run}", show_inspect.screen(inspect(run), WIDTH))
    save(
        "verify",
        f"ckptconv verify {model} --against {run}",
        show_verify.screen(verify(model, against=run), WIDTH),
    )
    with tempfile.TemporaryDirectory() as place:
        megatron = unpack(FIXTURES / "megatron" / "qwen3_moe_tp2pp2ep2.tar.xz", Path(place)) / "run"
        look("inspect-megatron", megatron)
        look("inspect-tree", megatron, depth=5)
        zero = unpack(FIXTURES / "deepspeed_z3_bf16_w4.tar.xz", Path(place)) / "run"
        look("inspect-flat", zero, tensor="embed.weight")
    look("inspect-tensor", FIXTURES / "torch_2_8" / "fsdp2_tp_w4", tensor="blocks.0.down.weight")


if __name__ == "__main__":
    main()
