"""A Ray cluster on this machine, and ways to do harm to it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.helpers import REPO

HERE = Path(__file__).resolve().parent


@dataclass
class Machines:
    """Two nodes of one CPU each. The second can be blind (slow_disk.py), can be lost, and comes back."""

    cluster: Any
    wrong: Path
    second: Any = None

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    @property
    def driver(self) -> dict[str, str]:
        """The environment of a driver whose workers do as they are told."""
        env = {"PYTHONPATH": os.pathsep.join((str(HERE), str(REPO))), "GOING_WRONG": str(self.wrong)}
        runtime = {"worker_process_setup_hook": "slow_disk.hook", "env_vars": env}
        return {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": runtime})}

    @contextmanager
    def going_wrong(self, **what: object) -> Iterator[None]:
        """Meanwhile something is wrong with the nodes."""
        self.wrong.write_text(json.dumps(what))
        try:
            yield
        finally:
            self.wrong.write_text("{}")

    def mend(self) -> None:
        """Start the second node, where it is not there."""
        if self.second is None:
            env = {"BLIND_NODE": "1"}
            self.second = self.cluster.add_node(num_cpus=1, object_store_memory=80 << 20, env_vars=env)

    def lose(self) -> None:
        """Kill the second node with all its processes."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    def on_second(self, worker: int) -> bool:
        """Whether a worker process is one of the second node's."""
        raylet = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        return raylet in [info.process.pid for info in self.second.all_processes["raylet"]]


def until(true: Callable[[], Any], seconds: float = 30) -> Any:
    """What `true` returns, once it is something."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
    return found


def writers(target: Path) -> list[int]:
    """The processes that have an unfinished file of a merge open."""
    found = []
    for fds in Path("/proc").glob("[0-9]*/fd"):
        try:
            names = [os.readlink(fd) for fd in fds.iterdir()]
        except OSError:
            continue
        if any(f".{target.name}.ckptconv-partial" in name and name.endswith(".part") for name in names):
            found.append(int(fds.parent.name))
    return found


def finished_files(target: Path) -> list[Path]:
    """The files that a merge under way has finished."""
    home = target.with_name(f".{target.name}.ckptconv-partial")
    done = home / "model.done"
    return [home / "model" / path.relative_to(done).with_suffix("") for path in done.rglob("*.json")]
