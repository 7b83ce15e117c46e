"""A plan on a Ray cluster: a task for each output file, the files over a file system that all nodes share.

Ray schedules, and runs again what died with its worker or its node; this process waits, counts bytes and gathers hashes.
Nothing but small records goes through Ray: 56 kB a task for DeepSeek-V3's 275 files, where planning them again on a node
would take 5 s a task.
"""

from __future__ import annotations

import logging
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ckptconv.copy.finished import finished, take_over
from ckptconv.copy.run import Copied, buffer_memory
from ckptconv.engines import job
from ckptconv.errors import CkptconvError
from ckptconv.plan import Plan
from ckptconv.plan.shards import OutFile
from ckptconv.read.workers import count
from ckptconv.version import __version__

PATIENCE = 10.0  # seconds for a file system to show what another machine wrote
_POLL = 0.5
_RETRIES = 3  # Ray's own default for a task whose worker or node dies
_PROCESS = 256 << 20  # bytes of a worker process beside its buffers: Python, numpy and Ray
_ANSWER = 10.0  # seconds for a cluster to answer at all
_STOP = 10.0  # seconds for tasks to end by themselves

OnBytes = Callable[[int, str], None]


def on(address: str) -> Callable[[Plan, Path, int, OnBytes | None], Copied]:
    """The engine on the cluster at an address: "auto" or HOST:PORT, as `ray.init` takes it.

    Raises CkptconvError where Ray is not installed. It connects when it is called.
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise CkptconvError("Ray is not installed", hint="pip install 'ckptconv[ray]'") from error
    return partial(_copy, address)


def _copy(address: str, plan: Plan, work: Path, workers: int, on_bytes: OnBytes | None = None) -> Copied:
    """`copy`, on the nodes of a cluster. workers: threads of a task."""
    with _connected(address) as (ray, ours):
        gathered = _Gathered(plan, work, on_bytes)
        shutil.rmtree(job.attempts(work), ignore_errors=True)  # of a run that was killed
        job.attempts(work).mkdir(exist_ok=True)
        make = ray.remote(
            num_cpus=_cpus(ray, workers),
            memory=buffer_memory(workers) + _PROCESS,
            max_retries=_RETRIES,
            scheduling_strategy="SPREAD",
        )(_task())
        refs: dict[Any, OutFile] = {}
        try:
            for each in job.jobs(plan, gathered.missing, work, workers, PATIENCE):
                # Wrapped in a list so that Ray does not resolve the reference before the task has checked the version.
                refs[make.options(name=each.out.name).remote(__version__, [ray.put(each)])] = each.out
            while refs:
                ready, _ = ray.wait(list(refs), timeout=_POLL)
                for ref in ready:
                    gathered.add(refs[ref], _result(ray, ref, refs[ref]))
                    del refs[ref]
                gathered.look()
        except BaseException:
            _stop(ray, work, list(refs), ours)
            raise
        gathered.require_all()
    return gathered.copied


def _task() -> Callable[[str, list[Any]], Copied | tuple[str, str]]:
    """What a node runs. Ray sends an inner function by value, so it can speak where ckptconv is another one or missing."""

    def write_file(version: str, box: list[Any]) -> Any:
        import ray

        node = f"node {ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:8]})"
        try:
            from ckptconv.version import __version__ as here
        except ImportError:
            here = "none"
        if here != version:
            return node, here
        from ckptconv.engines.job import run

        return run(ray.get(box[0]), node)

    return write_file


def _result(ray: Any, ref: Any, out: OutFile) -> Copied:
    """What a task returned. Raises what it raised, and CkptconvError where Ray could not run it to its end."""
    try:
        result: Copied | tuple[str, str] = ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # as it was raised there, without Ray's wrapping
    except ray.exceptions.RayError as error:
        raise CkptconvError(
            "Ray could not run a task to its end",
            where=out.name,
            found=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}",
            hint="`ray list tasks` and the node's logs say why; then run again",
        ) from error
    if isinstance(result, tuple):
        node, version = result
        raise CkptconvError(
            f"{node} has another ckptconv",
            found=version,
            wanted=__version__,
            hint=f"install ckptconv=={__version__} on every node",
        )
    return result


class _Gathered:
    """What is done so far, and what the caller was told of it."""

    def __init__(self, plan: Plan, work: Path, on_bytes: OnBytes | None) -> None:
        self._plan, self._work, self._on_bytes = plan, work, on_bytes
        self._reported: dict[str, int] = {}
        earlier = take_over(plan, work, count())
        self.missing = earlier.missing
        self.copied = Copied({}, 0, 0, damaged=earlier.damaged)
        for out in plan.files:
            if known := earlier.kept.get(out.name):
                self.add(out, Copied(known.hashes, 0, 0, (out.name,), nonfinite=known.nonfinite))

    def add(self, out: OutFile, copied: Copied) -> None:
        """One file that is done."""
        total = self.copied
        self.copied = Copied(
            total.hashes | copied.hashes,
            total.written + copied.written,
            total.read + copied.read,
            total.resumed + copied.resumed,
            total.damaged,
            total.nonfinite + copied.nonfinite,
        )
        self._tell(out.name, out.nbytes)

    def look(self) -> None:
        """Tell how far the others are."""
        for name, done in job.how_far(self._work).items():
            self._tell(name, done)

    def _tell(self, name: str, done: int) -> None:
        more = done - self._reported.get(name, 0)
        if more > 0:  # an attempt that begins again does not take the bar back
            self._reported[name] = done
            if self._on_bytes:
                self._on_bytes(more, name)

    def require_all(self) -> None:
        """Raise where a file that a node made is not to be seen here."""
        for out in self.missing:
            if not job.within(PATIENCE, lambda out=out: finished(self._work, out) is not None):  # type: ignore[misc]
                raise CkptconvError(
                    "a file that a node wrote is not visible here", where=self._work / out.name
                )


def _cpus(ray: Any, workers: int) -> int:
    """CPUs to ask for: one a thread, but no more than every node that runs tasks has."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return min([workers, *(cpus for cpus in nodes if cpus)])


def _stop(ray: Any, work: Path, refs: list[Any], ours: bool) -> None:
    """End the tasks by a word in the work folder: where ray.cancel meets one that begins or ends, Ray 2.60 aborts us.

    A connection of ours takes with it the tasks that wait for a CPU; on another's, they run and end at once.
    """
    job.stop(work)

    def ended() -> bool:
        return not refs or not ray.wait(refs, num_returns=len(refs), timeout=0)[1]

    job.within(_STOP, lambda: ended() or (ours and not job.under_way(work)))


def _require_answer(ray: Any, address: str) -> None:
    """Raise OSError where nobody listens; ray.init waits ten minutes for a cluster that is gone."""
    if address == "auto":
        address = ray._private.services.canonicalize_bootstrap_address_or_die(address)
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()


@contextmanager
def _connected(address: str) -> Iterator[tuple[Any, bool]]:
    """Ray, connected to the cluster, and whether by us; a connection that the caller has already is left open."""
    import ray

    if ray.is_initialized():
        yield ray, False
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _require_answer(ray, address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise CkptconvError(
            "no Ray cluster could be joined",
            where=address,
            found=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            hint="start one (`ray start --head`), or name a running one's HOST:PORT",
        ) from error
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # ray.init puts its own in its place
        yield ray, True
    finally:
        ray.shutdown()
