"""A user of the Hub, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .server import TOKEN, Hub


@dataclass
class Bench:
    """A Hub and the home of a user who works with it in processes of their own."""

    hub: Hub
    home: Path

    def python(self, code: str, **env: str) -> subprocess.Popen[str]:
        """Start a Python on some code; env changes the user's environment."""
        return self._start(["-c", code], env)

    def ckptconv(self, *args: object, **env: str) -> subprocess.Popen[str]:
        """Start the command."""
        return self._start(["-m", "ckptconv", *map(str, args)], env)

    def _start(self, words: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "SYSTEMROOT") if name in os.environ}
        settings = {
            "HOME": str(self.home),
            "TMPDIR": str(self.home),
            "HF_HOME": str(self.home / "hf_home"),
            "HF_ENDPOINT": self.hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1" if self.hub.mode == "lfs" else "0",
        }
        pipe = subprocess.PIPE
        command = [sys.executable, *words]
        return subprocess.Popen(command, env={**kept, **settings, **env}, text=True, stdout=pipe, stderr=pipe)
