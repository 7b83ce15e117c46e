"""Coverage-guided, with atheris where it is installed: `python -m tests.fuzz.guided TARGET [libFuzzer's options]`.

atheris 3 has wheels for Python 3.11 to 3.13 on Linux; give it an environment of its own. Inputs are bytes that libFuzzer
makes; what a reader may do with them is as in `guard`.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def main() -> None:
    import atheris  # type: ignore[import-not-found]

    folder = work_folder_of_a_child()

    with atheris.instrument_imports(include=["ckptconv"]):
        from .__main__ import show, warm_up
        from .guard import Guard
        from .target import Bytes
        from .targets import targets
    name = sys.argv[1]
    chosen = targets(folder)
    target = next(target for target in chosen if isinstance(target, Bytes) and target.name == name)
    seeds = folder / "corpus"
    seeds.mkdir()
    for number, seed in enumerate(target.seeds):
        (seeds / str(number)).write_bytes(seed)
    warm_up(chosen)
    guard = Guard(folder)
    guard.watch()

    def one(data: bytes) -> None:
        made = target.of(data)
        before = len(guard.findings)
        guard.run(made.label, data, made.call)
        if len(guard.findings) > before:
            show(list(guard.findings.values())[-1], Path(".cache/fuzz"))

    atheris.Setup([sys.argv[0], *sys.argv[2:], str(seeds)], one)
    atheris.Fuzz()


def work_folder_of_a_child() -> Path:
    """A folder that goes with this process: libFuzzer ends it without a word, so the rest runs in a child."""
    from .places import work_folder

    folder = work_folder()
    child = os.fork()
    if child == 0:
        return folder
    _, status = os.waitpid(child, 0)
    shutil.rmtree(folder, ignore_errors=True)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
