"""Do runs that go to a Slurm get done, whatever ends their jobs? Writes proofs/slurm.csv (dated in its first column).

A Slurm of two nodes is set up as root in a temporary folder, from Debian's slurmctld, slurmd, slurmdbd, munge, mariadb-server
(else the table stays). There jobs are killed, cancelled, pre-empted and queued again in the middle of a run, and the command
that waits for them is killed and interrupted; tables must be those of the same runs done here.
"""

import contextlib
import datetime
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
from inoculation import store

TABLE = Path(__file__).with_suffix(".csv")
NEEDED = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "squeue", "sacct", "scancel")
# The command line with tables instead of notebooks.
SHORT = """import sys; from inoculation import __main__ as line, runs, tables
line._run = lambda o, grids: len(runs.ensure(sum(grids.values(), []), o.threads).failed) + (not tables.write(o.profile))
sys.exit(line.main())"""
COMMAND = [sys.executable, "-c", SHORT, "--profile", "smoke", "--notebook", "02", "--threads", "1", "--only"]
COMMAND += ["base", "baseline", "inoculation.spanish"]
RUNS, LIMIT, KILL_WAIT = 3, 150, 5
# A setting a word; slurm.conf wants each on a line, and a node's on one.
SLURM = """ClusterName=proof SlurmctldHost={host}(127.0.0.1) SlurmctldPort={ports[0]} SlurmUser=root
AuthInfo=socket={folder}/munge.socket StateSaveLocation={folder}/state SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid SlurmdPidFile={folder}/%n.pid SlurmdParameters=config_overrides KillWait={wait}
ProctrackType=proctrack/linuxproc TaskPlugin=task/none SelectType=select/cons_tres SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio PreemptMode=REQUEUE AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1 AccountingStoragePort={ports[1]} AccountingStoragePass={folder}/munge.socket"""
NODES = """NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=6000
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=1 RealMemory=6000
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=CANCEL
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF"""
ACCOUNTS = """AuthInfo=socket={folder}/munge.socket DbdHost=localhost DbdAddr=127.0.0.1 DbdPort={ports[1]} SlurmUser=root
PidFile={folder}/slurmdbd.pid StorageType=accounting_storage/mysql StorageHost=localhost StorageUser=root"""


def until(holds: Callable[[], object], seconds: float = 60) -> float:
    """Wait until something holds; returns the seconds it took. Raises TimeoutError."""
    started = time.monotonic()
    while not holds():
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"not within {seconds:.0f} seconds")
        time.sleep(0.1)
    return time.monotonic() - started


def asked(*command: str) -> list[str]:
    """The lines that a command prints; none where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [] if done.returncode else done.stdout.splitlines()


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """A Slurm of two nodes while the context lasts; this process and its children use it."""
    ports = secrets.SystemRandom().sample(range(20000, 30000), 4)
    facts = {"folder": folder, "host": os.uname().nodename, "ports": ports, "wait": KILL_WAIT}
    os.umask(0o077)
    lines = [*SLURM.format(**facts).split(), *NODES.format(**facts).splitlines()]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "slurmdbd.conf").write_text("\n".join(ACCOUNTS.format(**facts).split()) + "\n", encoding="utf-8")
    (folder / "munge.key-file").write_bytes(secrets.token_bytes(1024))
    (folder / "state").mkdir()
    os.environ |= {"SLURM_CONF": f"{folder}/slurm.conf", "MYSQL_UNIX_PORT": f"{folder}/mariadb.socket"}
    daemons = []

    def start(*command: str) -> None:
        daemons.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True))

    try:
        files = ("socket", "key-file", "pid-file", "seed-file")
        start("munged", "--foreground", "--force", *(f"--{name}={folder}/munge.{name}" for name in files))
        data = ["--no-defaults", f"--datadir={folder}/mariadb", "--user=root"]
        asked("mariadb-install-db", *data, "--auth-root-authentication-method=normal", "--skip-test-db")
        start("mariadbd", *data, f"--socket={folder}/mariadb.socket", f"--pid-file={folder}/mariadb.pid", "--skip-networking")
        until(lambda: (folder / "munge.socket").exists() and (folder / "mariadb.socket").exists())
        start("slurmdbd", "-D")
        until(lambda: asked("sacctmgr", "show", "stats"))
        start("slurmctld", "-D")
        for name in ("one", "two"):
            start("slurmd", "-D", "-N", name)
        until(lambda: asked("sinfo", "-h", "-N", "-p", "low", "-o", "%T") == ["idle", "idle"])
        yield
    finally:
        asked("scancel", "--me")
        with contextlib.suppress(TimeoutError):
            until(lambda: not asked("squeue", "-h"), 3 * KILL_WAIT)
        for each in reversed(daemons):
            each.terminate()
            each.wait()


def processes(home: Path, *marks: str) -> list[int]:
    """The processes that work for a home and have all of the marks in their environment or command."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            said = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
            found += [int(path.name)] * all(mark.encode() in said for mark in (f"INOCULATION_HOME={home}\0", *marks))
    return found


def sweep(home: Path, jobs: int = RUNS, *parameters: str) -> subprocess.Popen:
    """Start the command with so many jobs, or for 0 without an engine; what it says goes to a file in its home."""
    engine = ["--engine", "slurm", "--jobs", str(jobs), "--slurm", "timeout_min=10", "mem_gb=3", *parameters] if jobs else []
    environment = {**os.environ, "INOCULATION_HOME": str(home), "OMP_WAIT_POLICY": "PASSIVE"}
    home.mkdir(exist_ok=True)
    with (home / "said").open("wb") as said:
        return subprocess.Popen([*COMMAND, *engine], env=environment, cwd=store.ROOT, stdout=said, stderr=said)


def ended(home: Path, process: subprocess.Popen) -> subprocess.Popen:
    """Kill a job's worker and have it queued again, as at the end of its time; pre-empt one for good and cancel one."""
    first, second, third = sorted(asked("squeue", "-h", "-r", "-o", "%i"))
    os.kill(processes(home, "SLURM_ARRAY_TASK_ID=0\0", "inoculation.worker\0")[0], signal.SIGKILL)
    asked("scancel", "--signal", "USR2", first)
    node = asked("squeue", "-h", "-o", "%N", "-j", second)
    asked("sbatch", "-p", "high", "-w", *node, "--output", "/dev/null", "--wrap", "sleep 1")
    until(lambda: processes(home, "SLURM_ARRAY_TASK_ID=2\0", "inoculation.worker\0"))
    asked("scancel", third)
    until(lambda: asked("squeue", "-h", "-o", "%r", "-j", first) == ["BeginTime"])
    asked("scontrol", "update", f"jobid={first}", "starttime=now+3")  # else Slurm lets two minutes pass
    return process


def left(home: Path, process: subprocess.Popen) -> subprocess.Popen:
    """Kill the command, then interrupt a second one, while jobs of the first go on."""
    process.kill()
    process.wait()
    second = sweep(home)
    until(lambda: len(asked("squeue", "-h", "-r")) > RUNS)
    second.send_signal(signal.SIGINT)
    second.wait()
    return sweep(home)


def done(home: Path, process: subprocess.Popen, here: Path) -> list[tuple[str, float, float]]:
    """Wait for the command, and say how what it did differs from what was done here."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(LIMIT)
    process.kill()
    process.wait()
    told = re.search(r"(\d+) runs were there, (\d+) completed now", (home / "said").read_text(encoding="utf-8"))
    tables = [{p.name: p.read_bytes() for p in (each / "data/local/tables/smoke").glob("*")} for each in (home, here)]
    with contextlib.suppress(TimeoutError):
        until(lambda: not processes(home) and not asked("squeue", "-h"), 3 * KILL_WAIT)
    return [
        ("exit status", process.returncode, 0),
        ("runs not told of, or told of twice", sum(map(int, told.groups())) - RUNS if told else -RUNS, 0),
        ("tables that are others", sum(tables[0].get(name) != text for name, text in tables[1].items()), 0),
        ("processes and jobs left", len(processes(home)) + len(asked("squeue", "-h")), 0),
    ]


def prove(folder: Path) -> pd.DataFrame:
    """One row a measure: what was found and the bound it must keep."""
    here, refused, rows = folder / "here", folder / "refused", []
    assert sweep(here, 0).wait() == 0, (here / "said").read_text(encoding="utf-8")
    for name, fault in {"undisturbed": None, "jobs ended": ended, "command killed, interrupted": left}.items():
        home = folder / name
        process = sweep(home)
        took = until(lambda home=home: processes(home, "inoculation.worker\0"))
        rows.append((f"{name}: seconds from the command to a job's worker", took, 30))
        until(lambda home=home: list(home.rglob("manifest.json")))  # a stage is done and its run is not
        rows += [(f"{name}: {what}", *each) for what, *each in done(home, fault(home, process) if fault else process, here)]
    for wrong in ("nonsense=1", "partition=absent", "time=soon"):
        status = sweep(refused, 1, wrong).wait()
        said = [line for line in (refused / "said").read_text(encoding="utf-8").splitlines() if not line.startswith("slurm: ")]
        rows.append((f"not refused in a line: {wrong}", int(status != 2 or len(said) != 1), 0))
    return pd.DataFrame(rows, columns=["check", "found", "bound"])


def main() -> int:
    """Write the table; 1 when a bound is broken."""
    if missing := [name for name in NEEDED if not shutil.which(name)] + ["root"] * (os.getuid() != 0):
        print(f"no Slurm is set up here; missing: {', '.join(missing)}")
        return 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it, and theirs
    with tempfile.TemporaryDirectory() as folder, slurm(Path(folder)):
        found = prove(Path(folder))
    found.insert(0, "date", datetime.date.today().isoformat())
    found.to_csv(TABLE, index=False, lineterminator="\n", float_format="%.1f")
    print(found.to_string(index=False))
    return int((found.found.abs() > found.bound).any())


if __name__ == "__main__":
    sys.exit(main())
