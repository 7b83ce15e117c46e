"""What a Ray worker of a test does first; the cluster calls `hook` by its name.

What is to go wrong stands in the file that GOING_WRONG names, and can change at any time: seconds that each write takes
(slow), a full disk (full), another ckptconv (version; looked at once), a folder that the blind node does not see (blind).
"""

from __future__ import annotations

import errno
import io
import json
import os
import time
from collections.abc import Callable
from typing import Any


def hook() -> None:
    import ckptconv
    from ckptconv.copy.output_file import OutputFile

    write, read = OutputFile.write, io.open

    def wrong(what: str, otherwise: Any) -> Any:
        with read(os.environ["GOING_WRONG"]) as file:
            return json.loads(file.read() or "{}").get(what, otherwise)

    def slow_write(self: OutputFile, *args: Any) -> None:
        time.sleep(wrong("slow", 0))
        if wrong("full", False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, *args)

    def blindly(look: Callable[..., Any]) -> Callable[..., Any]:
        def looked(path: Any, *args: Any, **options: Any) -> Any:
            if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(wrong("blind", "?")):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            return look(path, *args, **options)

        return looked

    OutputFile.write = slow_write  # type: ignore[method-assign]
    ckptconv.__version__ = wrong("version", ckptconv.__version__)
    if "BLIND_NODE" in os.environ:
        os.stat, io.open = blindly(os.stat), blindly(io.open)
