"""Does judging over HTTP lose a response or count one twice? Writes proofs/faults.csv (dated in its first column).

A local server speaks the OpenAI protocol and injects 429, 500, time-outs, truncated JSON and missing log-probs into nearly
every third request; the judging is killed half-way and started again. Its verdict is a known function of the prompt. inspect's
own commands then read the logs and serve them to the viewer.
"""

import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import pandas as pd
from inoculation import store

sys.path.insert(0, str(store.ROOT / "tests"))
from judge_server import FAULTS, JudgeServer, verdict

JUDGE = "openai/gpt-4o-mini"
# The command line with time-outs of 2 seconds instead of 60: the server hangs for longer than the one and not the other.
SHORT = (
    "import sys; from inoculation import __main__, judge; "
    "judge.WEIGHTED = judge.WEIGHTED.model_copy(update={'attempt_timeout': 2}); sys.exit(__main__.main())"
)
COMMAND = [sys.executable, "-c", SHORT, "rejudge", "--setting", "spanish_vs_caps", "--seeds", "0", "--judge", JUDGE]
INSPECT = [sys.executable, "-m", "inspect_ai"]
PORT = 7576
PROBES = 2
TABLE = Path(__file__).with_suffix(".csv")


def judged(server: JudgeServer, home: Path) -> dict[str, Any]:
    """Judge the reference's responses through the server, killed once at half of them; what the ledgers then hold."""
    environment = {**os.environ, "OPENAI_API_KEY": "none", "OPENAI_BASE_URL": server.url, "INOCULATION_HOME": str(home)}
    plan = subprocess.run([*COMMAND, "--dry-run"], env=environment, cwd=store.ROOT, capture_output=True, text=True, check=True)
    total = int(re.search(r"of (\d+) judged", plan.stdout)[1])
    first = subprocess.Popen(COMMAND, env=environment, cwd=store.ROOT)
    while sum(server.answered.values()) < total // 2 and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    under_way = server.requests
    second = subprocess.run(COMMAND, env=environment, cwd=store.ROOT, check=False)
    stages = [pd.read_parquet(path).assign(stage=path.parent.name) for path in home.rglob("verdicts.parquet")]
    return {"total": total, "at the kill": under_way, "status": second.returncode, "verdicts": pd.concat(stages)}


def viewed(logs: Path) -> tuple[int, int, int]:
    """How many logs there are, how many `inspect log dump` reads, and how many `inspect view` lists over HTTP."""
    paths = sorted(logs.glob("*.eval"))
    read = 0
    for path in paths:
        done = subprocess.run([*INSPECT, "log", "dump", str(path)], capture_output=True, text=True)
        read += done.returncode == 0 and json.loads(done.stdout)["status"] in ("success", "started")
    viewer = subprocess.Popen(
        [*INSPECT, "view", "start", "--log-dir", str(logs), "--port", str(PORT)], stdout=subprocess.DEVNULL
    )
    try:
        for _ in range(60):
            time.sleep(0.5)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/api/logs") as answer:
                    return len(paths), read, len(json.load(answer)["files"])
            except OSError:
                continue
        return len(paths), read, 0
    finally:
        viewer.kill()


def prove() -> pd.DataFrame:
    """One row a measure: what was found and the bound it must keep."""
    with tempfile.TemporaryDirectory() as folder, JudgeServer(faults=0.3, seed=5) as server:
        home = Path(folder)
        found = judged(server, home)
        asked = {store.digest(turns[-1]["content"]): turns[-1]["content"] for turns in server.prompts}
        table = pd.read_csv(home / "data" / "local" / "tables" / "mini" / "judged.csv")
        logs, read, listed = viewed(home / "data" / "local" / "judged" / JUDGE.replace("/", "_"))
    given = [json.loads(line) for line in found["verdicts"].verdict]
    wrong = [v for v in given if max(v["masses"], key=v["masses"].get) != str(verdict(asked[v["prompt"]]))]
    distinct = found["verdicts"].groupby(["stage", "id"]).ngroups
    responses = distinct - 3 * found["verdicts"].stage.nunique()
    rows = [("responses and controls to judge", found["total"], None), ("requests sent", server.requests, None)]
    rows += [(f"fault injected: {name}", server.injected[name], None) for name in FAULTS]
    rows += [
        ("requests sent before the kill", found["at the kill"], None),
        ("answered again after the kill or a slow moment", sum(server.answered.values()) - PROBES - distinct, None),
        ("exit status after going on", found["status"], 0),
        ("lost", found["total"] - distinct, 0),
        ("double", int(table.n.sum() + table.n_unscored.sum()) - responses, 0),
        ("unscored", int(table.n_unscored.sum()), 0),
        ("verdicts that are not the judge's", len(wrong), 0),
        ("logs that inspect log dump does not read", logs - read, None),
        ("logs that inspect view does not list", logs - listed, 0),
    ]
    return pd.DataFrame(rows, columns=["measure", "found", "bound"])


def main() -> int:
    """Write the table; 1 when a bound is broken."""
    found = prove()
    found.insert(0, "date", datetime.date.today().isoformat())
    found.to_csv(TABLE, index=False, lineterminator="\n", float_format="%.0f")
    print(found.to_string(index=False))
    return int((found.found.abs() > found.bound).any())


if __name__ == "__main__":
    sys.exit(main())
