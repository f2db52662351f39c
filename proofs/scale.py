"""At how many GPUs does something else become the limit of 10,000 runs? A planning simulation, which trains nothing.

Writes scale.csv (dated) and the figure scale. Costs are measured (costs.csv, by costs.py), the rest is assumed (scale.yaml);
no GPU has been measured. In training, runs queue for the driver, a GPU and, stage by stage, the store; a failure costs the
stage under way, its detection and a new worker. Checks, tables and judging follow, a run at a time: their time is a product.
"""

import datetime
import importlib.metadata
import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import simpy
from engines import task
from inoculation import figures, store
from matplotlib.figure import Figure

TABLE = Path(__file__).with_suffix(".csv")
ASSUMED = Path(__file__).with_suffix(".yaml")
COSTS = Path(__file__).with_name("costs.csv")
STAGES = ("train", "sample", "margins", "score")
ROOM = 2  # runs handed out for each GPU, as by engines.cluster
EXACT = 0.01
HOUR = 3600
ABOVE = {"train": ("training", "#000000", "-"), "ideal": ("its stages alone, shared out", "#000000", ":")}
ABOVE |= {"tables": ("checks and tables", "#0072b2", "-")}
ABOVE |= {"judge_high": ("judge, high rate", "#e69f00", "--"), "judge_low": ("judge, low rate", "#d55e00", "--")}
BELOW = {"gpus": ("GPUs", "#666666", "-"), "driver": ("driver", "#009e73", "-"), "store": ("store", "#cc79a7", "--")}
Numbers = dict[str, Any]
Events = Iterator[simpy.Event]


def asks(costs: Numbers, assumed: Numbers, length: str, failing: str) -> Numbers:
    """The seconds that one run asks for.

    stages, commits: of a GPU, and of the store, which does `writers` at once. driver: to hand it out and take it in, with its
    events. mean, down: busy seconds to a GPU's failure, seconds to another GPU. The others: after training; a check reads all
    that a run keeps. kept: verdicts a minute, one after another, each with its fsync.
    """
    longer, failure, rate = assumed["lengths"][length], assumed["failures"][failing], costs["commits_per_second"]
    writers, read = max(1, round(rate * costs["commit_seconds"])), costs["megabytes_per_run"] / assumed["megabytes_per_second"]
    commits = [assumed["slower"] / rate + (longer["megabytes"] - 1) * read * (stage == "train") for stage in STAGES]
    answers, append = costs["responses_per_run"] * longer["responses"], costs["append_seconds"] * assumed["slower"]
    check = assumed["checks"] * (costs["check_seconds"] + read) * longer["megabytes"]
    batches = {tier: (answers + assumed["controls"]) * max(60 / each, append) for tier, each in assumed["judges"].items()}
    return {
        "stages": [costs[f"{stage}_seconds"] * longer["times"] for stage in STAGES],
        "commits": [writers * seconds for seconds in commits],
        "writers": writers,
        "driver": 1 / costs["handed_per_second"] + costs["events_per_run"] * longer["times"] * costs["event_seconds"],
        **{name: costs[f"{name}_seconds"] for name in ("start", "overhead", "lost")},
        **{"mean": failure["gpu_hours"] * HOUR, "down": failure["down_hours"] * HOUR, "spread": assumed["spread"]},
        **{"check": check, "tables": check + assumed["table_rounds"] * costs["table_seconds"] * longer["responses"]},
        "kept": 60 / append,
        **{f"judge_{tier}": assumed["batches"] * (each + assumed["call_seconds"]) for tier, each in batches.items()},
    }


@dataclass
class Cluster:
    """Training on a number of GPUs; a free one is the seconds until a run begins on it, more where a worker must start."""

    asked: Numbers
    number: int
    seed: int
    env: simpy.Environment = field(default_factory=simpy.Environment)
    noted: Counter = field(default_factory=Counter)

    def train(self, runs: int) -> float:
        """Train so many runs; the seconds it took."""
        self.driver, self.store = simpy.Resource(self.env), simpy.Resource(self.env, self.asked["writers"])
        self.room, self.gpus = simpy.Resource(self.env, ROOM * self.number), simpy.Store(self.env)
        self.gpus.items += [self.asked["start"]] * self.number
        self.rng, spread = np.random.default_rng(self.seed), self.asked["spread"]
        times = self.rng.lognormal(-(spread**2) / 2, spread, (runs, len(STAGES))) * self.asked["stages"]
        self.env.run(self.env.all_of([self.env.process(self._run(each)) for each in times.tolist()]))
        return self.env.now

    def _run(self, times: list[float]) -> Events:
        left = list(zip(times, self.asked["commits"], strict=True))
        for _ in range(task.TRIES):
            with self.room.request() as place:
                yield place
                yield from self._use("driver", self.driver, self.asked["driver"] / 2)
                ready = yield self.gpus.get()
                yield from self._work(ready, left)
                yield self.env.timeout(self.asked["lost"] * bool(left))
                yield from self._use("driver", self.driver, self.asked["driver"] / 2)
            if not left:
                return
        self.noted["given_up"] += 1

    def _work(self, ready: float, left: list[tuple[float, float]]) -> Events:
        """Do what is left of a run until nothing is or the GPU fails; a finished stage is kept."""
        alive = self.rng.exponential(self.asked["mean"])
        for seconds, commit in [(ready, None), *left]:
            yield self.env.timeout(spent := min(seconds, alive))
            self.noted["gpus"] += spent
            if seconds > alive:
                self.noted.update(failures=1, lost_gpu_hours=(spent + self.asked["start"]) / HOUR)
                self.env.process(self._replace())
                return
            alive -= seconds
            if commit is not None:
                yield from self._use("store", self.store, commit)
                left.pop(0)
        self.gpus.put(self.asked["overhead"])

    def _use(self, name: str, what: simpy.Resource, seconds: float) -> Events:
        with what.request() as turn:
            yield turn
            yield self.env.timeout(seconds)
        self.noted[name] += seconds

    def _replace(self) -> Events:
        yield self.env.timeout(self.asked["down"])
        self.gpus.put(self.asked["start"])


def simulate(costs: Numbers, assumed: Numbers, length: str, failing: str, gpus: int) -> Numbers:
    """One row: hours of each phase; in training, how busy everything was and what failed; the limits.

    limit: of training, the busiest; at a judge's rate, the longest phase. lost: in stages not kept and new workers' starts.
    """
    asked, runs = asks(costs, assumed, length, failing), assumed["runs"]
    cluster = Cluster(asked, gpus, assumed["seed"])
    hours = {"ideal": runs * sum(asked["stages"]) / gpus / HOUR, "train": cluster.train(runs) / HOUR}
    hours |= {name: asked[name] * runs / HOUR for name in ("check", "tables", *(f"judge_{tier}" for tier in assumed["judges"]))}
    many = {"gpus": gpus, "driver": 1, "store": asked["writers"]}
    busy = {name: cluster.noted[name] / HOUR / hours["train"] / number for name, number in many.items()}
    limits = {"train": max(busy, key=busy.get)}
    for tier in assumed["judges"]:
        phases = {limits["train"]: hours["train"], "tables": hours["tables"], "judge": hours[f"judge_{tier}"]}
        limits[tier] = max(phases, key=phases.get)
    return {
        **{"length": length, "times": assumed["lengths"][length]["times"], "failing": failing, "gpus": gpus},
        **{f"{name}_hours": value for name, value in hours.items()},
        **{f"{name}_busy": value for name, value in busy.items()},
        **{name: cluster.noted[name] for name in ("failures", "given_up", "lost_gpu_hours")},
        "kept_per_minute": asked["kept"],
        **{f"limit_{name}": value for name, value in limits.items()},
    }


def exact(costs: Numbers, assumed: Numbers) -> pd.DataFrame:
    """Hours of mini runs beside a closed form where there is one: when they only compute, are handed out, or are committed."""
    real, none, runs = asks(costs, assumed, "mini", "datacentre"), [0] * len(STAGES), assumed["runs"]
    bare = {**real, "stages": none, "commits": none, "driver": 0, "start": 0, "overhead": 0, "mean": math.inf, "spread": 0}
    few, many, stored = assumed["gpus"][3], assumed["gpus"][-1], sum(real["commits"]) / real["writers"]
    cases = [("stages", few, sum(real["stages"]) / few), ("driver", many, real["driver"]), ("commits", many, stored)]
    found = pd.DataFrame([(name, gpus, each * runs / HOUR) for name, gpus, each in cases], columns=["only", "gpus", "hours"])
    clusters = [Cluster({**bare, name: real[name]}, gpus, assumed["seed"]) for name, gpus, _ in cases]
    found["simulated"] = [cluster.train(runs) / HOUR for cluster in clusters]
    return found.assign(holds=(found.simulated / found.hours - 1).abs() < EXACT)


def finding(found: pd.DataFrame, assumed: Numbers) -> str:
    """What the simulation says, in one paragraph."""
    steady, spot = found[found.failing == "datacentre"], found[found.failing == "spot"]
    many = f"{assumed['runs']:,} runs on {assumed['gpus'][-1]} GPUs"
    told = [f"Simulated, no GPU measured: {many}; a run lasts as a mini run on one CPU thread, times a factor."]
    for times, rows in steady.groupby("times"):
        end = rows.iloc[-1]
        hours = f"training {end.train_hours:.3g} h (limit: {_course(rows, 'train')}), tables {end.tables_hours:.3g} h"
        longest = f"{_course(rows, 'high')} (slow judge: {_course(rows, 'low')})"
        told.append(f"× {times:g}: {hours}, judge {end.judge_high_hours:.3g} h; longest: {longest}.")
    more = (spot.train_hours.to_numpy() / steady.train_hours.to_numpy()).max() - 1
    told.append(f"Driver: {steady.driver_busy.max():.0%} busy at most. Spot machines lengthen training by {more:.0%} at most.")
    return " ".join([*told, f"The store keeps at most {end.kept_per_minute:,.0f} verdicts a minute."])


def _course(rows: pd.DataFrame, limit: str) -> str:
    """The limits in the order of GPUs, as `gpus, judge from 64`."""
    changed = rows[rows[f"limit_{limit}"] != rows[f"limit_{limit}"].shift()].set_index("gpus")[f"limit_{limit}"]
    return ", ".join(f"{name}{f' from {gpus}' * bool(place)}" for place, (gpus, name) in enumerate(changed.items()))


def draw(found: pd.DataFrame) -> Figure:
    """Above hours of every phase, below how busy everything is in training, against GPUs, a column for each length of run."""
    steady = found[found.failing == "datacentre"]
    figure, axes = figures.canvas(4.4, 2, steady.length.nunique(), sharex=True, sharey="row")
    for column, (times, rows) in zip(axes.T, steady.groupby("times"), strict=True):
        for axis, (what, lines) in zip(column, (("hours", ABOVE), ("busy", BELOW)), strict=True):
            for name, (label, colour, line) in lines.items():
                sns.lineplot(rows, x="gpus", y=f"{name}_{what}", ax=axis, color=colour, ls=line, label=label, legend=False)
        column[0].set(title=f"mini run × {times:g}", yscale="log", ylabel="hours")
        column[1].set(xlabel="GPUs", ylabel="busy in training", xscale="log", ylim=(-0.03, 1.03))
        column[1].set_xticks(rows.gpus[::3], rows.gpus[::3], fontsize=6)
    handles = [handle for axis in axes[:, 0] for handle in axis.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, title="SIMULATION · no GPU was measured")
    return figure


def main() -> int:
    """Write the table and the figure; 1 where the simulation misses a closed form."""
    costs, text = pd.read_csv(COSTS).set_index("name").value.to_dict(), store.read_yaml(ASSUMED).only("caption", "assumed")
    assumed = {name: entry["value"] for name, entry in text["assumed"].items()}
    cells = itertools.product(assumed["lengths"], assumed["failures"], assumed["gpus"])
    cases, found = exact(costs, assumed), pd.DataFrame([simulate(costs, assumed, *cell) for cell in cells])
    store.write_csv(TABLE, found.assign(date=datetime.date.today().isoformat())[["date", *found]])
    record = {"figure": "scale", "finding": finding(found, assumed), "simpy": importlib.metadata.version("simpy")}
    record |= {"caption": text["caption"].format(**assumed, **assumed["judges"])}
    record |= {"inputs": {path.name: store.file_digest(path) for path in (COSTS, ASSUMED)}}
    store.write_figure(store.REFERENCE_FIGURES / "scale.png", draw(found), found, record)
    print(cases.to_string(index=False), found.to_string(index=False), record["finding"], sep="\n\n")
    return int(not cases.holds.all())


if __name__ == "__main__":
    sys.exit(main())
