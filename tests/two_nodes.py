"""A real Ray cluster of two nodes on one machine, each in a network namespace of its own, to lose a node of and to cut off."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from inoculation import store

RAY = Path(sys.executable).with_name("ray")
SPACES = ("inoculation-1", "inoculation-2")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 6390
MEMORY = 7_200_000_000
GROUPS = Path("/sys/fs/cgroup")
# Joins a memory group, where there is one, before the program that follows.
JOIN = "import os, sys; sys.argv[1] and open(sys.argv[1], 'w').write(str(os.getpid())); os.execvp(sys.argv[2], sys.argv[2:])"
# Runs commands, as mounts in the node's own namespace, before the program that follows.
BEFORE = (
    "import json, os, subprocess, sys; [subprocess.run(command, check=True) for command in json.loads(sys.argv[1])];"
    "os.execv(sys.argv[2], sys.argv[2:])"
)
NOTICED = (
    "import sys, time, ray; ray.init(sys.argv[1], log_to_driver=False);"
    "any(sum(node['Alive'] for node in ray.nodes()) == 1 or time.sleep(0.2) for _ in range(600)) or sys.exit(1)"
)


def lacks():
    """What such a cluster needs and this machine has not, or empty."""
    if os.geteuid() or not shutil.which("ip"):
        return "root and iproute2 (network namespaces)"
    return "" if subprocess.run(["ip", "netns", "list"], capture_output=True).returncode == 0 else "network namespaces"


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


class TwoNodes:
    """The first node is the head, where drivers start; the second may be started in other ways, and lost."""

    address = f"{ADDRESSES[0]}:{PORT}"

    def __init__(self, folder):
        self.folder = folder
        self.environment = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        self.environment |= {
            "RAY_AUTH_TOKEN": os.urandom(24).hex(),
            "PYTHONPATH": f"{Path(__file__).parent}:{store.ROOT / 'lib'}",
        }

    def __enter__(self):
        self.remove()
        for space in SPACES:
            _ip("netns", "add", space)
        _ip("link", "add", "one", "netns", SPACES[0], "type", "veth", "peer", "name", "one", "netns", SPACES[1])
        for space, address in zip(SPACES, ADDRESSES, strict=True):
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", "one")
            for device in ("lo", "one"):
                _ip("-n", space, "link", "set", device, "up")
        head = ["--head", "--port", str(PORT), "--include-dashboard=false", "--temp-dir", str(self.folder)]
        self._begin(0, head, 1, [], "")
        self.second()
        return self

    def __exit__(self, *error):
        self.remove()

    def _begin(self, node, how, cpus, first, group):
        size = ["--num-cpus", str(cpus), "--memory", str(MEMORY), "--object-store-memory", str(10**8)]
        ray = [RAY, "start", "--node-ip-address", ADDRESSES[node], *how, *size, "--disable-usage-stats"]
        self.run(node, [sys.executable, "-c", BEFORE, json.dumps(first), *ray], group)
        self.idle = set(self.processes())

    def second(self, cpus=1, first=(), group="", **environment):
        """Start the second node: after some commands in its mount namespace, in a memory group, with variables of its own."""
        known = self.environment
        self.environment = {**known, **environment}
        self._begin(1, ["--address", self.address], cpus, list(first), group)
        self.environment = known

    def run(self, node, command, group=""):
        """Let a command end on a node."""
        whole = [sys.executable, "-c", JOIN, group, *self.on(node, command)]
        done = subprocess.run(whole, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    @staticmethod
    def on(node, command):
        """A command as it is started on a node."""
        return ["ip", "netns", "exec", SPACES[node], *map(str, command)]

    def start(self, home, *arguments, node=0):
        """Start Python with some arguments on a node, its results under a home; output and errors come as text."""
        environment = {**self.environment, "INOCULATION_HOME": str(home)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(self.on(node, [sys.executable, *arguments]), env=environment, cwd=store.ROOT, **pipes)

    def processes(self, node=None):
        """The processes on one node, or on both."""
        spaces = SPACES if node is None else SPACES[node : node + 1]
        found = [subprocess.run(["ip", "netns", "pids", s], capture_output=True, text=True).stdout.split() for s in spaces]
        return [int(pid) for each in found for pid in each]

    def workers(self, node):
        """The worker processes on a node."""
        return [pid for pid in self.processes(node) if ".worker" in _told(pid) or "standin" in _told(pid)]

    def left(self, seconds=90):
        """How many processes beside Ray's own are still there after so many seconds at most, and the seconds it took."""
        began = time.monotonic()
        while (orphans := [p for p in self.processes() if p not in self.idle and not _told(p).startswith("ray::IDLE")]) and (
            time.monotonic() - began < seconds
        ):
            time.sleep(0.2)
        return len(orphans), time.monotonic() - began

    def kill_second(self):
        """End everything on the second node at once."""
        while found := self.processes(1):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def lose_second(self):
        """The second node is gone, and the head knows it."""
        self.kill_second()
        self.idle = set(self.processes(0)) & self.idle
        # Until the head has noticed, a sweep would first find out for itself.
        self.run(0, [sys.executable, "-c", NOTICED, self.address])

    def cut(self, off=True):
        """Cut the two nodes off from each other, or mend that."""
        _ip("-n", SPACES[1], "link", "set", "one", "down" if off else "up")

    def remove(self):
        """End both nodes and take the namespaces away."""
        for space in SPACES:
            for pid in subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", space], capture_output=True)


def _told(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return "ray::IDLE"


def memory_group(limit):
    """A control group that holds so many bytes of memory: its file of processes; None where none can be made."""
    for base, name in ((GROUPS / "memory", "memory.limit_in_bytes"), (GROUPS, "memory.max")):
        folder = base / "inoculation"
        with contextlib.suppress(OSError):
            folder.mkdir(exist_ok=True)
            (folder / name).write_text(str(limit))
            return folder / "cgroup.procs"
    return None
