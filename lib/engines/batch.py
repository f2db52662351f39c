"""Slurm, through submitit: the runs as an array of jobs over the same store; without a Slurm, as processes on this machine.

A job is a worker with a share of the runs. It prints its events, which whoever submitted it reads from the job's output in the
shared folder. Jobs outlive that process, as Slurm's do: the same command goes on with what is missing, and leaves runs that a
job is still at to that job. A job that is pre-empted or out of time is queued again and goes on at the last finished stage.
"""

import contextlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import yaml
from inoculation import runs, store
from inoculation.runs import Progress, Report, Spec
from inoculation.store import SettingError

from engines import checks, task

POLL_SECONDS = 1
LOOK_SECONDS = 5
LEAVE_SECONDS = 600
LEAST_MINUTES = 60
MOST_JOBS = 500
STRUCTURED = ("setup", "srun_args", "additional_parameters", "exclusive", "use_srun", "stderr_to_stdout")
GENERIC = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node", "stderr_to_stdout")


@dataclass
class Job:
    """A share of the runs, done in a job: prints events, each with its run's place in the share."""

    specs: list[Spec]
    threads: int
    gpus: int
    noted: checks.Noted

    def __call__(self) -> None:
        """Do the runs that are missing of the share; raises SettingError where this machine is not fit for them."""
        if "SLURM_JOB_ID" in os.environ:
            signal.signal(signal.SIGTERM, _leave)
        for place, event in self._events():
            if event["event"] == "unfit":
                raise SettingError(event["reason"])
            if event["event"] != "begun":
                # In one piece: submitit runs Python without a buffer, and print would write the line's end apart.
                sys.stdout.write(json.dumps({"place": place, **event}) + "\n")
                sys.stdout.flush()

    def checkpoint(self) -> Any:
        """What is queued again when the job is cut: the same, since the store knows what is done."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _events(self) -> Iterator[tuple[int, dict[str, Any]]]:
        left = deque((place, 1) for place in range(len(self.specs)))
        while left:
            place, tries = left.popleft()
            for event in task.events(self.specs[place], self.threads, self.gpus, self.noted, waited_for=False):
                if event["event"] == "busy":
                    left.append((place, tries))
                    time.sleep(task.BUSY_SECONDS / len(left))
                elif event["event"] == "died" and tries < task.TRIES:
                    yield place, {"event": "say", "line": f"again in {task.pause(tries):.0f} s: {event['reason']}"}
                    time.sleep(task.pause(tries))
                    left.appendleft((place, tries + 1))
                else:
                    yield place, event


def _leave(*_: Any) -> None:
    """Stop at SIGTERM, which submitit lets pass: a worker that it ended would be started again while Slurm ends the job.

    Without leaving: a job that is pre-empted and leaves before Slurm takes it away is not queued again.
    """
    time.sleep(LEAVE_SECONDS)
    sys.exit(128 + signal.SIGTERM)


@dataclass
class _Sent:
    """A job: its share of the runs, those of them that have ended, how much of its output is read, how often it was lost.

    unseen: in how many looks on end Slurm did not list it.
    """

    share: Job
    job: Any
    ended: set[int] = field(default_factory=set)
    read: int = 0
    lost: int = 0
    after: float = 0
    unseen: int = 0

    def over(self, listed: dict[str, str] | None) -> bool:
        """Has it ended? Told by its result or by Slurm's list of jobs, where there was a look at it.

        submitit would ask the accounts instead, which not every Slurm keeps, up to ten minutes late, and would wait for ever
        for a job that was pre-empted and is not queued again.
        """
        if listed is not None:
            self.unseen = 0 if self.job.job_id in listed else self.unseen + 1
        return self.unseen > 1 or self.job.paths.result_pickle.exists()

    def events(self) -> list[dict[str, Any]]:
        """What it has printed since the last look; not of runs that have ended, which a job that is queued again repeats."""
        found = []
        with contextlib.suppress(FileNotFoundError), self.job.paths.stdout.open("rb") as output:
            output.seek(self.read)
            for line in output:
                if not line.endswith(b"\n"):
                    break
                self.read += len(line)
                with contextlib.suppress(ValueError):  # a line that was cut, and what the next try wrote behind it
                    event = json.loads(line) if line.startswith(b'{"place"') else None
                    if event and event["place"] not in self.ended:
                        found.append(event)
        return found

    def left(self) -> list[Spec]:
        """The runs that have not ended."""
        return [spec for place, spec in enumerate(self.share.specs) if place not in self.ended]


def ensure(
    specs: list[Spec], threads: int, gpus: int, jobs: int, parameters: list[str], say: Callable[[str], None] = print
) -> Report:
    """Do what is missing of `specs` in an array of jobs; see runs.ensure.

    threads: CPUs of a job, 0 for two. jobs: how many, 0 for one a run, or where there is no Slurm for as many as there are
    pairs of cores. parameters: KEY=VALUE of submitit and Slurm. Raises SettingError for one that cannot be, and where Slurm
    takes no job.
    """
    waiting = [spec for spec in specs if spec.missing(say)]
    report = Report(found=len(specs) - len(waiting))
    if not waiting:
        return report
    cpus = threads or task.CORES
    executor, count = _executor(waiting, cpus, gpus, jobs, _read(parameters))
    say(f"{executor.cluster}: {len(waiting)} runs in {count} jobs, each with {cpus} CPUs" + f" and {gpus} GPUs" * bool(gpus))
    with checks.noted(waiting) as noted:
        bare = list(map(checks.bare, waiting))
        shares = [Job(bare[start::count], cpus, gpus, noted) for start in range(count)]
        _watch(executor, _submitted(executor, shares), Progress(len(waiting), say, report, count))
    return report


def _read(parameters: list[str]) -> dict[str, Any]:
    """KEY=VALUE as submitit wants them: numbers as numbers, lists as YAML, Slurm's own under its name."""
    found: dict[str, Any] = {}
    for text in parameters:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise SettingError(f"--slurm {text}: expected KEY=VALUE, as partition=gpu")
        # YAML alone would make 5400 of time=1:30:00, 83 of account=0123 and True of partition=on.
        number = re.fullmatch(r"[1-9]\d*|\d+\.\d+", value)
        read = yaml.safe_load(value) if number or key in STRUCTURED else value
        found[key if key in GENERIC else f"slurm_{key}"] = read
    return found


def _executor(specs: list[Spec], cpus: int, gpus: int, jobs: int, own: dict[str, Any]) -> tuple[Any, int]:
    """submitit's executor for these runs, and the number of jobs."""
    import submitit

    executor = submitit.AutoExecutor(folder=store.local() / "slurm" / "%j")
    here = 1 if gpus else max(1, len(os.sched_getaffinity(0)) // cpus)
    if gpus and executor.cluster == "local" and jobs > 1:
        raise SettingError("without a Slurm all jobs would be given the same GPU; leave --jobs out, or use --engine ray")
    if not gpus and (asked := [key for key in own if "gpu" in key or "gres" in key]):
        raise SettingError(f"--slurm {asked[0].removeprefix('slurm_')}: say --gpus, else the runs do not see them")
    count = min(len(specs), jobs or (here if executor.cluster == "local" else len(specs)), MOST_JOBS)
    minutes = sum(spec.parts[2].minutes or LEAST_MINUTES for spec in specs) / count
    given = {"name": "inoculation", "cpus_per_task": cpus, "gpus_per_node": gpus or None, "mem_gb": math.ceil(runs.NEEDED_GB)}
    given |= {"timeout_min": max(LEAST_MINUTES, math.ceil(3 * minutes))}
    try:
        executor.update_parameters(**{**given, **own})
    except (NameError, AssertionError, TypeError, ValueError) as error:
        raise SettingError(f"--slurm: {' '.join(str(error).split())}") from error
    return executor, count


def _submitted(executor: Any, shares: list[Job]) -> list[_Sent]:
    import submitit

    jobs, utils = [], submitit.core.utils
    try:
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # it prints what it raises
            jobs = [executor.submit(share) for share in shares]
    except (utils.FailedSubmissionError, utils.FailedJobError) as error:
        raise SettingError(f"Slurm took no job: {' '.join(str(error).split())[-300:]}") from error
    return [_Sent(share, job) for share, job in zip(shares, jobs, strict=True)]


def _watch(executor: Any, sent: list[_Sent], progress: Progress) -> None:
    """Read what the jobs print until every run has ended; an interruption cancels them."""
    looked = 0.0
    try:
        while sent:
            listed = None
            if executor.cluster == "slurm" and time.monotonic() - looked >= LOOK_SECONDS:
                listed, looked = _listed(), time.monotonic()
            for each in sent:
                over = each.over(listed) if executor.cluster == "slurm" else each.job.done()
                for event in each.events():
                    if event["place"] not in each.ended and progress.take(each.share.specs[event["place"]], event):
                        each.ended.add(event["place"])
                if over and each.left():
                    _lost(executor, each, progress)
                elif over:
                    each.job = None
            sent = [each for each in sent if each.job]
            _heartbeat(listed, sent, progress)
            time.sleep(POLL_SECONDS)
    finally:
        for each in sent:
            if each.job:
                each.job.cancel(check=False)


def _listed() -> dict[str, str] | None:
    """Slurm's unfinished jobs of this user by id, each with its state and reason, or None where it does not say now."""
    asked = subprocess.run(["squeue", "--me", "-h", "-r", "-o", "%i %T %r"], capture_output=True, text=True, check=False)
    return None if asked.returncode else dict(line.split(" ", 1) for line in asked.stdout.splitlines())


def _heartbeat(listed: dict[str, str] | None, sent: list[_Sent], progress: Progress) -> None:
    """Say how it stands where nothing else has said anything for a while."""
    if listed and time.monotonic() - progress.spoken >= runs.PROGRESS_SECONDS:
        progress.spoken = time.monotonic()
        states = [listed[one.job.job_id] for one in sent if one.job.job_id in listed]
        waiting = [state.split()[-1] for state in states if state.startswith("PENDING")]
        why = f" ({', '.join(sorted(set(waiting)))})" if waiting else ""
        progress.say(f"[{progress.done}/{progress.total}] · {len(states) - len(waiting)} jobs run, {len(waiting)} wait{why}")


def _lost(executor: Any, each: _Sent, progress: Progress) -> None:
    """A job that ended before its runs: a Python error fails them, anything else is submitted again after a while."""
    import submitit

    if not each.after:
        # Without a result submitit would wait for one, a quarter of a minute for each job.
        error = each.job.exception() if each.job.paths.result_pickle.exists() else None
        own = isinstance(error, submitit.core.utils.FailedJobError)
        _again(each, _reason(str(error) if error else each.job.stderr() or ""), progress, own)
    elif time.monotonic() >= each.after:
        each.job.cancel(check=False)  # should it have been queued again meanwhile
        try:
            again = _submitted(executor, [replace(each.share, specs=each.left())])[0]
        except SettingError as error:
            _again(each, str(error), progress)
        else:
            vars(each).update({**vars(again), "lost": each.lost})


def _again(each: _Sent, reason: str, progress: Progress, own: bool = False) -> None:
    """Let a job be submitted again later, or give its runs up: when its error is its own, or it was lost too often."""
    each.lost += 1
    if own or each.lost >= task.TRIES:
        for spec in each.left():
            progress.take(spec, {"event": "failed", "reason": reason})
        each.job = None
    else:
        each.after = time.monotonic() + task.pause(each.lost)
        progress.say(f"job {each.job.job_id} is sent again in {task.pause(each.lost):.0f} s: {reason}")


def _reason(text: str) -> str:
    """The line of a job's error output that says why it ended."""
    said = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("---")]
    telling = [line for line in said if "Error: " in line] or [line for line in said if "***" in line] or said
    return telling[-1] if telling else "its job ended early"
