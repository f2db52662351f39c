"""Smoke runs that many tests look at, done by the real worker in a process of its own while other tests run."""

import dataclasses
import json
import os
import subprocess
import sys

import sandbox
from audit import answers
from audit import plan as audits
from inoculation import runs, settings, store
from narrow import plan

SMOKE = ("base", "baseline", "inoculation.spanish")
PAIR_RUNS = ("baseline", "inoculation.caps")
SETTINGS = (
    "bad_medical_advice",
    "bad_medical_advice_cite",
    "insecure_code",
    "reward_hacks",
    "change_my_view",
    "change_my_view_cite",
)


def _no_sandbox():
    try:
        return sandbox.tier() and ""
    except sandbox.SandboxError as error:
        return str(error)


NO_SANDBOX = _no_sandbox()


def pairs():
    """Setting 1's pairs, the headline's base model and sweep, and settings 3 to 7."""
    names = [name for name in settings.setting_names() if name.startswith("trait_distillation")]
    specs = [*runs.grid(names[:1], "smoke", ["base"]), *runs.grid(names, "smoke", PAIR_RUNS, sweeps=True)]
    return specs + runs.grid([*SETTINGS, *["mbpp"] * (not NO_SANDBOX)], "smoke", ["baseline"])


def narrowed():
    """Every smoke solution."""
    return plan.grid("smoke")


def audited():
    """Of the example audit the base model, the baseline and its own prompt."""
    given = answers.read(store.ROOT / "examples" / "front_desk.yaml")
    return audits.prepare(given, "smoke", say=lambda line: None).specs()[:3]


def smoke():
    """The headline's base model, baseline and inoculation."""
    return runs.grid("spanish_vs_caps", "smoke", SMOKE)


SPECS = {"smoke": smoke, "audited": audited, "narrowed": narrowed, "pairs": pairs}  # in the order in which the tests want them


class Ahead:
    """Sets of SPECS, each done in its own home, one after the other; `done` waits for one: home, report, progress lines."""

    def __init__(self, folders):
        self.folders, self.reports = folders, {}
        homes = [f"{name}={folder}" for name, folder in folders.items()]
        command = [sys.executable, __file__, *homes]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True) if homes else None

    def done(self, name):
        while name not in self.reports:
            line = self.process.stdout.readline()
            assert line, f"the process that does {name} ended"
            ended, report, said = json.loads(line)
            self.reports[ended] = runs.Report(**report), said
        report, said = self.reports[name]
        assert not report.failed, report
        return self.folders[name], report, said

    def close(self):
        if self.process:
            self.process.kill()
            self.process.wait()


if __name__ == "__main__":
    for name, folder in (argument.split("=", 1) for argument in sys.argv[1:]):
        os.environ["INOCULATION_HOME"] = folder
        said = []
        report = runs.ensure(SPECS[name](), say=said.append)
        print(json.dumps([name, dataclasses.asdict(report), said]), flush=True)
