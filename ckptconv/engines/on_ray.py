"""Runs a plan on a Ray cluster: one task per output file, over a file system that all nodes share.

Ray schedules the tasks, and repeats those whose worker or node died. This process waits, counts bytes and gathers hashes.
Only small records go through Ray: 56 kB per task for the 275 files of DeepSeek-V3. To plan again on a node would take 5 s
per task.
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

from ckptconv import __version__
from ckptconv.copy.finished import finished, take_over
from ckptconv.copy.run import Copied, buffer_memory
from ckptconv.engines import job
from ckptconv.errors import CkptconvError, Kind
from ckptconv.plan import Plan
from ckptconv.plan.shards import OutFile
from ckptconv.read.workers import count

PATIENCE = 10.0  # seconds for a file system to show what another machine wrote
_POLL = 0.5  # seconds between two looks at the tasks
_RETRIES = 3  # Ray's own default for a task whose worker or node dies
_PROCESS = 256 << 20  # bytes of a worker process without its buffers: Python, numpy and Ray
_ANSWER = 10.0  # seconds to wait for a cluster's first answer
_STOP = 10.0  # seconds to wait for tasks to end by themselves

OnBytes = Callable[[int, str], None]


def on(address: str) -> Callable[[Plan, Path, int, OnBytes | None], Copied]:
    """The engine for a Ray cluster. It connects when it is called.

    Args:
        address: "auto" or HOST:PORT, as in `ray.init`.

    Raises:
        CkptconvError: Ray is not installed.
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise CkptconvError(
            "Ray is not installed", hint="pip install 'ckptconv[ray]'", kind=Kind.ENVIRONMENT
        ) from error
    return partial(_copy, address)


def _copy(address: str, plan: Plan, work: Path, workers: int, on_bytes: OnBytes | None = None) -> Copied:
    """Run `copy` on the nodes of a cluster. `workers` is the number of threads per task."""
    with _connected(address) as (ray, ours):
        gathered = _Gathered(plan, work, on_bytes)
        shutil.rmtree(job.attempts(work), ignore_errors=True)  # a run that was killed left them
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
    """The function that a node runs.

    Ray sends an inner function by value, so it can report that the node has another version of ckptconv or none.
    """

    def write_file(version: str, box: list[Any]) -> Any:
        import ray

        node = f"node {ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:8]})"
        try:
            from ckptconv import __version__ as here
        except ImportError:
            here = "none"
        if here != version:
            return node, here
        from ckptconv.engines.job import run

        return run(ray.get(box[0]), node)

    return write_file


def _result(ray: Any, ref: Any, out: OutFile) -> Copied:
    """The result of a task. Raises the task's error, or CkptconvError if Ray could not complete it."""
    try:
        result: Copied | tuple[str, str] = ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # the task's own error, without Ray's wrapper
    except ray.exceptions.RayError as error:
        raise CkptconvError(
            "Ray could not run a task to its end",
            where=out.name,
            found=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}",
            hint="`ray list tasks` and the node's logs say why; then run again",
            kind=Kind.ENVIRONMENT,
        ) from error
    if not isinstance(result, Copied):
        node, version = result
        raise CkptconvError(
            f"{node} has another ckptconv",
            found=version,
            wanted=__version__,
            hint=f"install ckptconv=={__version__} on every node",
            kind=Kind.ENVIRONMENT,
        )
    return result


class _Gathered:
    """The results so far, and the progress that the caller knows."""

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
        """Add a file that is complete."""
        total = self.copied
        self.copied = Copied(
            total.hashes | copied.hashes,
            total.written + copied.written,
            total.read + copied.read,
            total.resumed + copied.resumed,
            total.damaged,
            total.nonfinite + copied.nonfinite,
        )
        self._report(out.name, out.nbytes)

    def look(self) -> None:
        """Report the progress of the files that are being written."""
        for name, done in job.how_far(self._work).items():
            self._report(name, done)

    def _report(self, name: str, done: int) -> None:
        more = done - self._reported.get(name, 0)
        if more > 0:  # an attempt that starts again does not move the bar back
            self._reported[name] = done
            if self._on_bytes:
                self._on_bytes(more, name)

    def require_all(self) -> None:
        """Raise CkptconvError if this machine does not see a file that a node wrote."""
        for out in self.missing:
            if not job.within(PATIENCE, lambda out=out: finished(self._work, out) is not None):  # type: ignore[misc]
                raise CkptconvError(
                    "a file that a node wrote is not visible here",
                    where=self._work / out.name,
                    kind=Kind.ENVIRONMENT,
                )


def _cpus(ray: Any, workers: int) -> int:
    """The CPUs to request per task: one per thread, but not more than the smallest node with CPUs has."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return min([workers, *(cpus for cpus in nodes if cpus)])


def _stop(ray: Any, work: Path, refs: list[Any], ours: bool) -> None:
    """End the tasks with a file in the work folder, since ray.cancel of a task that begins or ends aborts us (Ray 2.60).

    If the connection is ours, tasks that still wait for a CPU end with it. Otherwise they start later and end at once.
    """
    job.stop(work)

    def ended() -> bool:
        return not refs or not ray.wait(refs, num_returns=len(refs), timeout=0)[1]

    job.within(_STOP, lambda: ended() or (ours and not job.under_way(work)))


def _require_answer(ray: Any, address: str) -> None:
    """Raise OSError if nothing listens at the address, since ray.init would wait ten minutes for a missing cluster."""
    if address == "auto":
        address = ray._private.services.canonicalize_bootstrap_address_or_die(address)
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()


@contextmanager
def _connected(address: str) -> Iterator[tuple[Any, bool]]:
    """Connect to the cluster; yields Ray and True. If the caller is connected already, yields False and stays connected."""
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
            kind=Kind.ENVIRONMENT,
        ) from error
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # ray.init replaces it
        yield ray, True
    finally:
        ray.shutdown()
