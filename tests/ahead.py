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


SPECS = {"narrowed": narrowed, "pairs": pairs, "audited": audited}  # in the order in which the tests want them


class Ahead:
    """Sets of SPECS, each done in a home of its own, one after the other; `done` waits for one: its home and report."""

    def __init__(self, names, make_folder):
        self.folders = {name: make_folder(name) for name in names}
        self.reports = {}
        homes = [f"{name}={folder}" for name, folder in self.folders.items()]
        command = [sys.executable, __file__, *homes]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True) if homes else None

    def done(self, name):
        while name not in self.reports:
            line = self.process.stdout.readline()
            assert line, f"the process that does {name} ended"
            ended, report = json.loads(line)
            self.reports[ended] = runs.Report(**report)
        assert not self.reports[name].failed, self.reports[name]
        return self.folders[name], self.reports[name]

    def close(self):
        if self.process:
            self.process.kill()
            self.process.wait()


if __name__ == "__main__":
    for name, folder in (argument.split("=", 1) for argument in sys.argv[1:]):
        os.environ["INOCULATION_HOME"] = folder
        report = runs.ensure(SPECS[name](), say=lambda line: None)
        print(json.dumps([name, dataclasses.asdict(report)]), flush=True)
