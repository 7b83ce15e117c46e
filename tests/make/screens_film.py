"""Writes docs/images/film.svg: python tests/make/screens_film.py RUN MODEL (made by `make demo`).

The commands run as a person types them, in a folder where RUN is `run`; what they print is drawn as they print it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Group
from rich.text import Text
from screens import IMAGES, REPOSITORY

from ckptconv.show.drawn import film

WIDTH, SECONDS = 96, 6
_CURSOR = re.compile(r"\x1b\[(?:\?25[hl]|\d*[A-K])")  # a bar comes and goes
COMMANDS = (
    "ckptconv inspect run",
    "ckptconv merge run MODEL --verify",
    "ckptconv verify MODEL --against run",
    "python speak.py MODEL",
)


def shown(command: str, place: str) -> Group:
    """What a command prints on a terminal of WIDTH columns."""
    program, *words = command.split()
    begin = [sys.executable, "-m", "ckptconv"] if program == "ckptconv" else [sys.executable]
    env = os.environ | {
        "COLUMNS": str(WIDTH),
        "FORCE_COLOR": "1",
        "TERM": "xterm-256color",
        "PYTHONPATH": str(REPOSITORY),
    }
    done = subprocess.run(
        [*begin, *words], cwd=place, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    lines = [_CURSOR.sub("", line.rsplit("\x1b[2K", 1)[-1]) for line in done.stdout.splitlines()]
    kept = [line for line in lines if "━" not in line and (program == "ckptconv" or "The lighthouse" in line)]
    return Group(*(Text.from_ansi(line) for line in kept))


def main() -> None:
    run, _ = (Path(path).resolve() for path in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as place:
        os.symlink(run, Path(place, "run"))
        os.symlink(REPOSITORY / "tests" / "make" / "demo_speak.py", Path(place, "speak.py"))
        scenes = [(command, shown(command, place)) for command in COMMANDS]
    (IMAGES / "film.svg").write_text(film(scenes, WIDTH, SECONDS), encoding="utf-8")


if __name__ == "__main__":
    main()
