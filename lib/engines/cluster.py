"""Ray: each run is a task that keeps its GPU or CPUs and its memory for itself, on this machine or on a cluster.

A local Ray needs no set-up; a cluster is named by its address, and every node of it is looked at before anything begins.
What the machinery does to a run (a lost node, a killed worker, no memory) is tried again with backoff, a Python error never.
Ray ends the tasks when the process that started them ends, and each worker ends with its task's process.
"""

import contextlib
import heapq
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from inoculation import runs
from inoculation.runs import Progress, Report, Spec
from inoculation.store import SettingError

from engines import checks, task

LOOK_SECONDS = 120
CONNECT_SECONDS = 5
COUNT_SECONDS = 5
IDLE_SECONDS = 0.2
NODE = "ray.io/node-id"
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # to which gRPC answers with its settings


def ensure(specs: list[Spec], threads: int, gpus: int | None, address: str, say: Callable[[str], None] = print) -> Report:
    """Do what is missing of `specs` on a cluster, or with no address on this machine; see runs.ensure.

    threads: CPUs of a run, 0 for two. gpus: those of a run, None for one where the cluster has any. Raises SettingError before
    anything begins where the cluster does not answer, a node is not fit for the runs, or none has room for one.
    """
    waiting = [spec for spec in specs if spec.missing(say)]
    report = Report(found=len(specs) - len(waiting))
    if not waiting:
        return report
    with _connected(address), checks.noted(waiting) as noted:
        needs = _needs(threads, gpus)
        slots = _slots(needs)
        _look(noted, needs, say)
        say(f"Ray: {slots} runs at a time, each with {_told(needs)}")
        _Sweep(Progress(len(waiting), say, report, slots), noted, needs, waiting).run()
    return report


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """A connection to a cluster, or a Ray of its own on this machine, which is gone afterwards."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_NUM_REDIS_GET_RETRIES": "2"}
    import ray

    _reachable(address)
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        cores = {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False, "_temp_dir": folder}
        try:
            ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else cores))
        except Exception as error:  # Ray raises many kinds, some of them bare
            what = f"no connection to Ray at '{address or 'local'}'"
            raise SettingError(f"{what}: {' '.join(str(error).split())[:300]}") from error
        task.see_how_children_end()
        try:
            yield
        finally:
            ray.shutdown()


def _reachable(address: str) -> None:
    how = "start this on a machine of the cluster, with --address HOST:PORT of its head (ray status prints it) or auto"
    if "://" in address:
        raise SettingError(f"--address {address}: Ray's client is not supported; {how}")
    if address in ("", "auto"):
        return
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), CONNECT_SECONDS) as line:
            line.sendall(GREETING)
            if line.recv(9)[3:4] != b"\x04":
                raise ValueError("what answers is no Ray")
    except (OSError, ValueError, OverflowError) as error:
        raise SettingError(f"--address {address}: nothing answers there ({error}); {how}") from error


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _needs(threads: int, gpus: int | None) -> dict[str, float]:
    """What Ray keeps for one run: CPUs, GPUs, bytes of memory."""
    if gpus is None:
        gpus = int(any(node["Resources"].get("GPU", 0) >= 1 for node in _nodes()))
    return {"CPU": threads or task.CORES, "GPU": gpus, "memory": runs.NEEDED_GB * 1e9}


def _told(needs: dict[str, float]) -> str:
    gpus = f"{needs['GPU']:.0f} GPU, " * bool(needs["GPU"])
    return f"{gpus}{needs['CPU']:.0f} CPU{'s' * (needs['CPU'] > 1)} and {needs['memory'] / 1e9:.1f} GB of memory"


def _room(node: dict[str, Any], needs: dict[str, float]) -> int:
    return min(int(node["Resources"].get(name, 0) // amount) for name, amount in needs.items() if amount)


def _slots(needs: dict[str, float]) -> int:
    """How many runs the cluster holds at a time; SettingError where it holds none."""
    if slots := sum(_room(node, needs) for node in _nodes()):
        return slots
    largest = max((node["Resources"] for node in _nodes()), key=lambda has: (has.get("GPU", 0), has.get("CPU", 0)))
    has = {name: largest.get(name, 0) for name in needs}
    raise SettingError(
        f"no node has room for a run, which takes {_told(needs)}; the largest has {_told(has)} (try --threads 1)"
    )


def _look(noted: checks.Noted, needs: dict[str, float], say: Callable[[str], None]) -> None:
    """Let every node that would be given runs look at itself; SettingError with the first that is not fit."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(checks.unfit)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(noted): node
        for node in _nodes()
        if _room(node, needs)
    }
    ray.wait(list(asked), num_returns=len(asked), timeout=LOOK_SECONDS)
    faults, lost = {}, {}
    for reference, node in asked.items():
        where = node["NodeManagerAddress"]
        try:
            faults[where] = ray.get(reference, timeout=0)
        except ray.exceptions.GetTimeoutError:
            faults[where] = f"no answer in {LOOK_SECONDS} seconds; look at it with ray status"
        except ray.exceptions.RayTaskError as error:
            cause = " ".join(str(error.cause).split())[:200]
            what = "this library does not run there: " if "No module named" in cause else ""
            faults[where] = f"{what}{type(error.cause).__name__}: {cause}; ./run_all.sh doctor on it says more"
        except ray.exceptions.RayError as error:
            lost[where] = f"node {where} is lost ({type(error).__name__}); look at it with ray status"
            say(lost[where])
    if found := [f"node {where}: {fault}" for where, fault in faults.items() if fault]:
        more = f" (and {len(found) - 1} more of {len(asked)} nodes)" if len(found) > 1 else ""
        raise SettingError(f"{found[0]}{more}")
    if not faults:
        raise SettingError(next(iter(lost.values())))


@dataclass(order=True)
class _Try:
    """A run that waits: until when, its place in the sweep, how often the machinery has failed it, how often for memory.

    avoided: the node that had no memory for it, which gets it again only where there is no other. fits: the nodes it may go to.
    """

    after: float
    place: int
    failures: int = 0
    starved: int = 0
    avoided: str = ""
    fits: set[str] = field(default_factory=set, compare=False)


def _on_node(spec: Spec, threads: int, gpus: int, noted: checks.Noted) -> Iterator[dict[str, Any]]:
    """task.events as a Ray task, which says which of Ray's nodes it is on."""
    import ray

    node = {"node": ray.util.get_node_ip_address(), "id": ray.get_runtime_context().get_node_id()}
    for event in task.events(spec, threads, gpus, noted):
        yield {**event, **node} if event["event"] in ("begun", "unfit") else event


@dataclass
class _Sweep:
    """The runs of one call: what waits, what is at work, and what becomes of it.

    nodes: those with room for a run and their memory, by Ray's ids. shunned: nodes that turned out not to be fit.
    """

    progress: Progress
    noted: checks.Noted
    needs: dict[str, float]
    specs: list[Spec]
    waiting: list[_Try] = field(default_factory=list)
    at_work: dict[Any, _Try] = field(default_factory=dict)
    begun: dict[Any, dict[str, Any]] = field(default_factory=dict)
    nodes: dict[str, float] = field(default_factory=dict)
    shunned: set[str] = field(default_factory=set)
    counted: float = 0

    def run(self) -> None:
        """Do them all; whatever happens here, nothing of it is left at work."""
        import ray

        self.remote = ray.remote(max_retries=0, num_returns="streaming")(_on_node)
        self.told = ray.put(self.noted)
        self.waiting = [_Try(0, place) for place in range(len(self.specs))]
        try:
            while self.waiting or self.at_work:
                self._count()
                self._hand_out()
                for each in self._ready():
                    self._take(each)
                self._heartbeat()
        finally:
            for each in self.at_work:
                ray.cancel(each, force=True)

    def _ready(self) -> list[Any]:
        """The tasks that have something to tell, once there is one, or after a second."""
        import ray

        every = list(self.at_work)
        if not every:
            time.sleep(IDLE_SECONDS)
        elif ray.wait(every, timeout=1)[0]:
            return ray.wait(every, num_returns=len(every), timeout=0)[0]
        return []

    def _count(self) -> None:
        """See which nodes there are, as often as worth while: the runs they hold, and those that were on a node that is gone.

        Ray itself tells of a task on a node that is cut off only when its connection times out, minutes later.
        """
        import ray

        if time.monotonic() - self.counted < COUNT_SECONDS:
            return
        self.counted, nodes = time.monotonic(), _nodes()
        self.progress.workers = max(1, sum(_room(node, self.needs) for node in nodes if node["NodeID"] not in self.shunned))
        self.nodes = {node["NodeID"]: node["Resources"]["memory"] for node in nodes if _room(node, self.needs)}
        for each, one in list(self.at_work.items()):
            if each not in self.begun and one.fits and not one.fits & self.nodes.keys():
                ray.cancel(each, force=True)
                del self.at_work[each]
                heapq.heappush(self.waiting, one)
        for each, event in list(self.begun.items()):
            if event["id"] not in {node["NodeID"] for node in nodes}:
                self._end(each, self.at_work[each], {"event": "died", "reason": f"lost with node {event['node']}"})

    def _hand_out(self) -> None:
        """Give Ray twice as many runs as there is room for: a place is never empty, and a cluster that grows sees why."""
        while self.waiting and self.waiting[0].after <= time.monotonic() and len(self.at_work) < 2 * self.progress.workers:
            one = heapq.heappop(self.waiting)
            self.at_work[self._task(one)] = one

    def _task(self, one: _Try) -> Any:
        """The task of a run; one that lacked memory is given twice as much, up to all of a node, elsewhere if it can be."""
        shunned = self.shunned | ({one.avoided} - {""} if self.nodes.keys() - self.shunned - {one.avoided} else set())
        most = max((memory for node, memory in self.nodes.items() if node not in shunned), default=0)
        memory = max(self.needs["memory"], min(self.needs["memory"] * 2**one.starved, most))
        one.fits = {node for node, has in self.nodes.items() if node not in shunned and has >= memory}
        options = {"num_cpus": self.needs["CPU"], "num_gpus": self.needs["GPU"], "memory": memory}
        if shunned:
            options["label_selector"] = {NODE: f"!in({', '.join(sorted(shunned))})"}
        given = checks.bare(self.specs[one.place]), int(self.needs["CPU"]), int(self.needs["GPU"]), self.told
        return self.remote.options(**options).remote(*given)

    def _take(self, each: Any) -> None:
        """Take in the next event of a task that has one, or its end."""
        import ray

        one = self.at_work[each]
        try:
            event = ray.get(next(each))
        except ray.exceptions.RayTaskError as error:
            event = {"event": "failed", "reason": f"{type(error.cause).__name__}: {' '.join(str(error.cause).split())}"}
        except ray.exceptions.OutOfMemoryError as error:
            event = {"event": "died", "reason": "Ray ended it: its node was out of memory", "status": -signal.SIGKILL}
            event["id"] = named[1] if (named := re.search(r"\bID: ([0-9a-f]{56})\b", str(error))) else ""
        except (ray.exceptions.RayError, StopIteration) as error:
            where = f"with node {self.begun[each]['node']}" if each in self.begun else "before it began"
            event = {"event": "died", "reason": f"lost {where} ({type(error).__name__})"}
        if event["event"] == "begun":
            self.begun[each] = event
        elif event["event"] in ("say", "progress"):
            self.progress.take(self.specs[one.place], event)
        else:
            self._end(each, one, event)

    def _end(self, each: Any, one: _Try, event: dict[str, Any]) -> None:
        """End a task; its run with it, unless it is to be tried again."""
        del self.at_work[each]
        begun, spec = self.begun.pop(each, {}), self.specs[one.place]
        if event["event"] == "busy":
            one.after = time.monotonic() + task.BUSY_SECONDS
        elif event["event"] == "unfit":
            self._shun(event)
        elif event["event"] == "died" and one.failures + 1 < task.TRIES:
            one.failures += 1
            if event.get("status") == -signal.SIGKILL:
                one.starved, one.avoided = one.starved + 1, event.get("id") or begun.get("id", "")
            one.after = time.monotonic() + task.pause(one.failures)
            self.progress.say(f"{spec} · again in {task.pause(one.failures):.0f} s: {event['reason']}")
        else:
            self.progress.take(spec, event)
            return
        heapq.heappush(self.waiting, one)

    def _shun(self, event: dict[str, Any]) -> None:
        """Give a node no more runs, which was not there at the start, or has been changed; SettingError where none is left."""
        if event["id"] not in self.shunned:
            self.shunned.add(event["id"])
            self.progress.say(f"node {event['node']} gets no more runs: {event['reason']}")
        if not self.nodes.keys() - self.shunned:
            raise SettingError(f"no node is left that is fit; node {event['node']}: {event['reason']}; what is done is kept")

    def _heartbeat(self) -> None:
        """Say how it stands where nothing else has said anything for a while."""
        self.progress.beside = f" · {len(self.begun)} at work"
        if time.monotonic() - self.progress.spoken >= runs.PROGRESS_SECONDS:
            self.progress.spoken = time.monotonic()
            left = len(self.waiting) + len(self.at_work) - len(self.begun)
            self.progress.say(f"[{self.progress.done}/{self.progress.total}]{self.progress.beside}, {left} waiting")
