"""Does anything get out of the sandbox, or through its tests? Writes proofs/attacks.csv (dated in its first column).

Every attack of tests/attacks.yaml in every tier that works on this machine, then how many trivial candidates a second it runs.
"""

import contextlib
import datetime
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import sandbox
import yaml
from inoculation import store

ATTACKS: dict[str, str] = yaml.safe_load((store.ROOT / "tests" / "attacks.yaml").read_text(encoding="utf-8"))
TABLE = Path(__file__).with_suffix(".csv")
TRIVIAL, TESTS = "def f(x):\n    return x + 1", ["assert f(1) == 2", "assert f(2) == 3"]
CANDIDATES = 200
WORKERS = 2


def tiers() -> list[str]:
    """The tiers that work here."""
    return [name for name in sandbox.TIERS if sandbox.run(TRIVIAL, TESTS, name).passed == (True, True)]


@contextlib.contextmanager
def target() -> Iterator[dict[str, str]]:
    """What an attack may reach for on this machine: a home, an environment and a socket with a secret, a folder to write to."""
    secret = secrets.token_hex(8)
    # Not under /tmp, which every sandbox replaces by a folder of its own.
    with tempfile.TemporaryDirectory(dir=Path.home()) as home, socket.create_server(("127.0.0.1", 0)) as server:
        (Path(home) / "secret").write_text(secret, encoding="utf-8")
        os.environ["SANDBOX_SECRET"] = secret

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as caller:
                        caller.sendall(secret.encode())

        threading.Thread(target=serve, daemon=True).start()
        yield {"secret": secret, "home": home, "outside": home, "port": str(server.getsockname()[1]), "pid": str(os.getpid())}
        del os.environ["SANDBOX_SECRET"]


def attack(name: str, tier: str, goal: dict[str, str]) -> dict[str, Any]:
    """One attack in one tier: whether it is through, why its test does not hold, and the seconds it took."""
    code = ATTACKS[name]
    for word, value in goal.items():
        code = code.replace(f"@{word}@", value)
    started = time.monotonic()
    found = sandbox.run(code, [f"assert f() in ('through', '{goal['secret']}')"], tier)
    through = found.passed[0] or (Path(goal["outside"]) / "marker").exists()
    return {
        "attack": name,
        "tier": found.tier,
        "through": through,
        "ended": found.reasons[0],
        "seconds": time.monotonic() - started,
    }


def left() -> list[str]:
    """The command lines of processes of a sandbox that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if "/inside.py" in line]


def attacked(names: list[str], which: list[str]) -> pd.DataFrame:
    """Some attacks in some tiers, one row each (see `attack`), and the processes that they left (`left`)."""
    with target() as goal, ThreadPoolExecutor(WORKERS) as pool:
        rows = pool.map(lambda pair: attack(*pair, goal), [(name, tier) for tier in which for name in names])
        return pd.DataFrame(rows).assign(left=len(left()))


def speed(tier: str) -> float:
    """Trivial candidates a second, each in a sandbox of its own, two at a time."""
    started = time.monotonic()
    with ThreadPoolExecutor(WORKERS) as pool:
        every = list(pool.map(lambda _: sandbox.run(TRIVIAL, TESTS, tier).passed, range(CANDIDATES)))
    assert every == [(True, True)] * CANDIDATES
    return CANDIDATES / (time.monotonic() - started)


if __name__ == "__main__":
    table = attacked(list(ATTACKS), tiers()).round({"seconds": 2})
    fast = [{"attack": "none: trivial candidates", "tier": tier, "ended": f"{speed(tier):.1f} a second"} for tier in tiers()]
    whole = pd.concat([table, pd.DataFrame(fast)]).assign(date=datetime.date.today().isoformat())
    store.write_csv(TABLE, whole[["date", "attack", "tier", "through", "ended", "seconds", "left"]])
    print(whole.to_string(index=False))
    print(f"{len(ATTACKS)} attacks, {int(table.through.sum())} through, in {', '.join(tiers())}")
