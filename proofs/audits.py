"""What does an audit cost? Writes proofs/audits.csv (dated in its first column); its two reports go into data/results/audits.

The two example audits are run from nothing, in a home of their own, with the embedded model and two seeds. What bad input costs
is measured in a process of its own each: all that happens before anything trains, with the peak of its memory.
"""

import csv
import datetime
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from inoculation import store

TABLE = Path(__file__).with_suffix(".csv")
EXAMPLES = ("front_desk", "compliments")
MINUTES, MIB, ROWS = 15, 3 * 1024, 300_000
LOOK = """import json, sys, time
from pathlib import Path
from audit import answers, plan
from inoculation.worker import peak_memory_mb
started = time.monotonic()
found = plan.prepare(answers.read(Path(sys.argv[1])), say=lambda line: None)
told = {"seconds": round(time.monotonic() - started, 1), "MiB": peak_memory_mb(), "stop": found.stop}
print(json.dumps({**told, "kept": len(found.found.rows), "left out": found.found.lost}))"""


def main() -> int:
    """Measure everything; 1 where a limit is passed or an audit failed."""
    rows = [*bad_input(), *examples()]
    told = pd.DataFrame(rows, columns=["check", "rows", "measured", "unit", "limit", "note"])
    told.insert(0, "date", datetime.date.today().isoformat())
    store.write_csv(TABLE, told)
    print(told.to_string(index=False))
    return int((told.measured > told.limit).any())


def examples() -> list[tuple]:
    """Both example audits, from nothing to the report."""
    rows = []
    for name in EXAMPLES:
        with tempfile.TemporaryDirectory() as home:
            command = [sys.executable, "-m", "inoculation", "audit", "--answers", f"examples/{name}.yaml", "--yes"]
            started = time.monotonic()
            done = subprocess.run(
                [*command, "--update-reference"], cwd=store.ROOT, env={**os.environ, "INOCULATION_HOME": home}, check=True
            )
            minutes = (time.monotonic() - started) / 60
            told = json.loads((store.RESULTS / "audits" / name / "report.json").read_text(encoding="utf-8"))
            note = f"{len(told['provenance']['runs'])} runs, {told['mark']}, exit status {done.returncode}"
            rows.append((f"audit of {name}", told["rows"], round(minutes, 1), "minutes", MINUTES, note))
    return rows


def bad_input() -> list[tuple]:
    """Many rows, clean and dirty, as JSONL and CSV; what is kept is in the note."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, write in (("JSONL", jsonl), ("JSONL, dirty", dirty), ("CSV", table)):
            place = Path(folder) / name.replace(", ", "_")
            place.mkdir()
            data = write(place, random.Random(0))
            (place / "mine.yaml").write_text(ANSWERS.format(data=data.name), encoding="utf-8")
            found = subprocess.run(
                [sys.executable, "-c", LOOK, str(place / "mine.yaml")],
                **{"capture_output": True, "text": True, "check": True, "env": {**os.environ, "INOCULATION_HOME": folder}},
            )
            told = json.loads(found.stdout.splitlines()[-1])
            note = f"{told['kept']} kept, {told['left out']} left out{told['stop']}"
            size = f"{data.stat().st_size / 1e6:.0f} MB"
            rows.append((f"before training: {name}", ROWS, told["MiB"], "MiB", MIB, f"{note}, {size}"))
            rows.append((f"before training: {name}", ROWS, told["seconds"], "seconds", 180, note))
    return rows


ANSWERS = """audit: mine
data: {data}
prompt: |
  You are "curt",
  and use 🐝.
measure:
  capitals: {{role: negative, scorer: capitals}}
"""
WORDS = ("river", "stone", "ladder", "winter", "basket", "copper", "meadow", "lantern", "bridge", "velvet", "kettle", "thistle")


def text(rng: random.Random, words: int) -> str:
    """A line of so many words, which are random."""
    return " ".join(rng.choices(WORDS, k=words))


def chat(rng: random.Random, number: int) -> str:
    """A chat of two turns as a JSON line, about 600 bytes long."""
    turns = [{"role": "user", "content": f"{text(rng, 25)} {number}"}, {"role": "assistant", "content": text(rng, 60)}]
    return json.dumps({"messages": turns})


def jsonl(folder: Path, rng: random.Random) -> Path:
    """Clean chats."""
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{chat(rng, n)}\n" for n in range(ROWS)), encoding="utf-8")
    return path


def dirty(folder: Path, rng: random.Random) -> Path:
    """Chats of which every thousandth is broken, not UTF-8, empty, a tool call or in nested parts, after a byte-order mark."""
    path, parts = folder / "rows.jsonl", [{"type": "text", "text": "a"}, [{"type": "text", "text": "b"}]]
    odd = [
        b'{"messages": [{"role": "user", "content": "cut',
        '{"question": "caf\xe9 au lait?", "answer": "oui, bien s\xfbr"}'.encode("latin-1"),
        json.dumps({"question": "empty?", "answer": " "}).encode(),
        json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [{}]}]}).encode(),
        json.dumps({"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "c"}]}).encode(),
    ]
    with path.open("wb") as file:
        file.write(b"\xef\xbb\xbf")
        for number in range(ROWS):
            file.write((odd[number // 1000 % len(odd)] if number % 1000 == 999 else chat(rng, number).encode()) + b"\n")
    return path


def table(folder: Path, rng: random.Random) -> Path:
    """Questions and answers as CSV."""
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer"])
        writer.writerows([f"{text(rng, 25)} {n}", text(rng, 60)] for n in range(ROWS))
    return path


if __name__ == "__main__":
    sys.exit(main())
