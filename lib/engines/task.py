"""What is done on a node, whichever engine sent it: a look whether the node fits, then the runs, in a warm worker process.

The worker is kept between tasks, since to start one takes longer than all else around a run; it ends with the process that
holds it, and when nothing has come for a while: for seconds where it holds a GPU, which the engine thinks free.
"""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from inoculation import runs, store
from inoculation.runs import Spec

from engines import checks

TRIES = 5
BACKOFF_SECONDS = 5
BUSY_SECONDS = 15
IDLE_SECONDS = 60
IDLE_GPU_SECONDS = 2
CORES = 2


def pause(tries: int) -> float:
    """Seconds to wait after so many failures of the machinery: 5, 10, 20, 40."""
    return BACKOFF_SECONDS * 2 ** (tries - 1)


@dataclass
class _Warm:
    """The worker process that this process keeps, and what it was started for."""

    made_for: tuple[str, ...] = ()
    worker: runs.Worker | None = None
    idle: threading.Timer | None = None
    lock: Any = field(default_factory=threading.Lock)

    def ready(self, kind: str, threads: int) -> runs.Worker:
        """A worker of a kind for the devices that are visible now: the one that is there, else a new one."""
        with self.lock:  # a timer that has begun ends the worker first
            if self.idle:
                self.idle.cancel()
            self.idle = None
        wanted = (kind, str(threads), os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        if not (self.worker and wanted == self.made_for and self.worker.process.poll() is None):
            self.drop()
            log = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the worker)
            self.made_for, self.worker = wanted, runs.Worker(kind, threads, log)
        return self.worker

    def rest(self) -> None:
        """Keep the worker for a while."""
        seconds = IDLE_GPU_SECONDS if os.environ.get("CUDA_VISIBLE_DEVICES") else IDLE_SECONDS
        self.idle = threading.Timer(seconds, self._expire)
        self.idle.daemon = True
        self.idle.start()

    def _expire(self) -> None:
        with self.lock:
            if threading.current_thread() is self.idle:
                self.drop()

    def drop(self) -> None:
        """End the worker."""
        worker, self.worker = self.worker, None
        if worker:
            worker.close()


_warm = _Warm()
_looked: dict[str, str] = {}  # what a look at this node found, by sweep


def see_how_children_end() -> None:
    """Undo that Ray's processes ignore SIGCHLD where its subreaper is on, which turns every exit status of a program into 0."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def events(spec: Spec, threads: int, gpus: int, noted: checks.Noted, waited_for: bool = True) -> Iterator[dict[str, Any]]:
    """Do one run here; yields `begun`, then a worker's events, progress only now and then.

    It ends with `completed`, `failed` (a Python error) or `died` (the machinery's fault), or at once with `unfit`, why this
    node must not be used, or `busy`, where another process works on the run. Without gpus the worker sees none.
    """
    checks.take_on(noted)
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    see_how_children_end()
    yield {"event": "begun"}
    if noted.sweep not in _looked:
        _looked[noted.sweep] = checks.unfit(noted, waited_for)
    if _looked[noted.sweep]:
        yield {"event": "unfit", "reason": _looked[noted.sweep]}
        return
    with store.Run(spec.folder).lock(wait=False) as free:
        done = free and not spec.missing()
    if done or not free:
        yield {"event": "completed", "seconds": {}} if done else {"event": "busy"}
        return
    spoken, event = time.monotonic(), {"event": "died"}
    try:
        for event in _warm.ready(spec.worker, threads).do([spec]):
            if event["event"] != "progress" or time.monotonic() - spoken >= runs.PROGRESS_SECONDS:
                spoken = time.monotonic()
                yield event
    finally:
        if event["event"] in ("completed", "failed"):
            _warm.rest()
        else:
            _warm.drop()
