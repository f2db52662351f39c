"""What does a run cost beside its computing: starting a worker, handing out, writing, looking, tables?

The planning simulation (scale.py) goes by these numbers. Two mini runs are done in your store where they are not there; a
driver hands out runs that take no time (tests/standin.py) on a local Ray, and its own CPU seconds are counted; stage times are
those of cluster.csv. Writes costs.csv, in two minutes and the runs' time.
"""

import contextlib
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from engines import checks
from inoculation import runs, store, tables

TABLE = Path(__file__).with_name("costs.csv")
TESTS = store.ROOT / "tests"
STAGES = ("train", "sample", "margins", "score")
COMMITS, WRITERS = 640, 16
MANY = 1201
# The CPU seconds of a driver with so many runs, the first of which talks where it is told to. It hands out as on 512 GPUs.
DRIVER = """
import json, resource, sys, standin
from engines import cluster

cluster._room = lambda node, needs: 512
if sys.argv[2:]:
    standin.order(0, sys.argv[2])
cluster.ensure(standin.specs(int(sys.argv[1])), 1, 0, "", say=lambda line: None)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps(used.ru_utime + used.ru_stime))
"""
Cost = tuple[float, str, str]


def timed(do: Callable[[], Any]) -> float:
    """The seconds that something takes."""
    began = time.monotonic()
    do()
    return time.monotonic() - began


def of_runs(specs: list[runs.Spec]) -> dict[str, Cost]:
    """Worker, look and tables, from runs of this store, which are done first where they are not there."""
    report = runs.ensure(specs, 1)
    if report.failed:
        raise RuntimeError(report)
    every = runs.finished("mini")
    with tempfile.TemporaryFile() as log, contextlib.closing(runs.Worker("inoculation.worker", 1, log)) as worker:
        started = timed(lambda: list(worker.do(specs[:1])))
    costs = {"start_seconds": (started, "s", "a new worker process, until it takes a run (torch loads in that run)")}
    look = timed(lambda: [checks.bare(spec).missing() for spec in every]) / len(every)
    costs["check_seconds"] = (look, "s", "whether a mini run is whole, digests of its files included")
    with tempfile.TemporaryDirectory() as folder:
        made = timed(lambda: tables.write("mini", Path(folder))) / len(every)
    costs["table_seconds"] = (made, "s", "the tables of the mini runs in this store, divided by their number")
    size = sum(path.stat().st_size for path in specs[1].folder.rglob("*") if path.is_file())
    costs["megabytes_per_run"] = (size / 1e6, "MB", "the folder of a trained mini run")
    costs["responses_per_run"] = (len(specs[1].prompts), "responses", "the mini profile's evaluation prompts")
    return costs


def of_cluster() -> dict[str, Cost]:
    """Stages, the time between them and the time to a second try, from the sweeps on two nodes (cluster.csv)."""
    found = pd.read_csv(TABLE.with_name("cluster.csv")).set_index(["check", "measure"]).found
    costs = {
        f"{stage}_seconds": (
            found["mini, two nodes", f"seconds of {stage}, median"],
            "s",
            "cluster.csv: a trained mini run, one thread",
        )
        for stage in STAGES
    }
    seconds = sum(value for value, *_ in costs.values())
    overhead = found["overhead", "seconds a run outside its stages, mean"]
    lost = found["nodes cut off from each other", "seconds until its run is given back"]
    return costs | {
        "events_per_run": (2 + seconds // runs.PROGRESS_SECONDS, "events", "begun, completed, and progress"),
        "overhead_seconds": (overhead, "s", "cluster.csv: from a run's last commit to the next one's first file"),
        "lost_seconds": (lost, "s", "cluster.csv: from a node's silence until its run waits for another try"),
    }


def of_driver() -> dict[str, Cost]:
    """What the process that hands out runs needs of a CPU for each of them, and for each event."""
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{store.ROOT / 'lib'}"}

    def used(*given: str) -> float:
        with tempfile.TemporaryDirectory() as home:
            own = {**environment, "INOCULATION_HOME": home}
            command = [sys.executable, "-c", DRIVER, *given]
            return json.loads(subprocess.run(command, env=own, stdout=subprocess.PIPE, check=True, text=True).stdout)

    few, many, talking = used("1"), used(f"{MANY}"), used("1", "talk")
    return {
        "handed_per_second": ((MANY - 1) / (many - few), "runs/s", f"its CPU seconds for {MANY} runs less those for one"),
        "event_seconds": ((talking - few) / 1000, "s", "its CPU seconds for a run with 1000 events more less those for one"),
    }


def of_store(folder: Path, megabytes: float) -> dict[str, Cost]:
    """What this disk takes to keep a stage, from one writer and from many."""
    content = os.urandom(int(megabytes * 1e6 / len(STAGES)))

    def commit(number: int) -> None:
        run = store.Run(folder / f"{number // len(STAGES)}")
        run.commit(f"{number}", "key", {}, lambda scratch: (scratch / f"{number}").write_bytes(content) and None)

    def share(first: int) -> None:
        for number in range(first, first + len(STAGES)):
            commit(number)

    alone = timed(lambda: [share(first) for first in range(0, 40, len(STAGES))]) / 40
    with ThreadPoolExecutor(WRITERS) as pool:
        beside = timed(lambda: list(pool.map(share, range(1000, 1000 + COMMITS, len(STAGES)))))
    ledger = store.Ledger(folder / "ledger.jsonl")
    verdicts = timed(lambda: [ledger.append({"verdict": "x" * 300, "place": place}) for place in range(200)]) / 200
    return {
        "append_seconds": (verdicts, "s", "a verdict in a ledger on this disk"),
        "commit_seconds": (alone, "s", "a quarter of a run's bytes on this disk, one writer"),
        "commits_per_second": (COMMITS / beside, "1/s", f"the same, {WRITERS} writers"),
    }


def main() -> int:
    """Write the table."""
    costs = of_cluster() | of_runs(runs.grid("spanish_vs_caps", "mini", ["base", "baseline"], [0])) | of_driver()
    with tempfile.TemporaryDirectory() as folder:
        costs |= of_store(Path(folder), costs["megabytes_per_run"][0])
    found = pd.DataFrame([(name, *cost) for name, cost in costs.items()], columns=["name", "value", "unit", "how"])
    found.insert(0, "date", datetime.date.today().isoformat())
    found.to_csv(TABLE, index=False, lineterminator="\n", float_format="%.4g")
    print(found.to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
