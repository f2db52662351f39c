"""An audit from the command line: checks and patterns first, nothing trained until they are seen, then runs and the report."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from inoculation import runs
from inoculation.store import SettingError

from audit import answers, plan, report
from audit.specs import Spec

SEEN = "Seen? Type yes to train: "


def run(
    path: Path,
    profile: str,
    model: str,
    seeds: list[int],
    threads: int,
    yes: bool,
    dry: bool,
    reference: bool = False,
    ensure: Callable[[list[Spec], int], runs.Report] = runs.ensure,
) -> int:
    """Audit what an answer file says; the exit status, 1 where a run failed or nothing can be trained.

    model, seeds: instead of the answer file's, where given; a model of your own is trained at the scale `paper`. yes: train
    without asking. dry: say what would be run, no more. reference: write the report into data/results, too, for maintainers.
    ensure: what does the runs, an engine's or this machine's.
    """
    given = answers.read(path)
    given = replace(given, model=model or given.model, seeds=tuple(seeds) or given.seeds)
    audit = plan.prepare(given, profile, ask=not dry)
    print(seen(audit))
    if audit.stop:
        print(f"report: {report.write(audit)['html']}")
        raise SettingError(f"{given.path.name}: nothing can be trained on this: {audit.stop}")
    print(f"\n{runs.plan(audit.specs())}")
    if dry:
        return 0
    if not yes and not _agreed(sys.stdin.isatty(), input):
        print(f"report, before anything is trained: {report.write(audit)['html']}\nTo train: the same command with --yes")
        return 0
    done = ensure(audit.specs(), threads)
    print(done)
    if reference and not done.failed:
        report.write(audit, report.REFERENCE / audit.answers.name)
    for form, place in report.write(audit).items():
        print(f"report, {form}: {place}")
    return 1 if done.failed else 0


def seen(audit: plan.Audit) -> str:
    """What is to be seen before anything trains: files, checks, patterns, controls."""
    lines = [*audit.found.files, "", "Checks"]
    for check in audit.checks:
        mark = {"fine": " ", "look": "?", "stop": "!"}[check.level]
        lines.append(f"{mark} {check.name}: {check.count} of {check.of}{f' ({check.then})' * (check.level != 'fine')}")
        lines += [f"      {offender}" for offender in check.first if check.level != "fine"]
    lines += ["", "Fixed patterns"]
    for each in audit.patterns:
        absent = "" if math.isnan(each.elsewhere) else f", {each.elsewhere:.0%} of the evaluation prompts"
        lines.append(f"  {each.where}, {each.kind}: {each.text!r} in {each.rows} of {each.of} rows{absent}")
        lines += [f"      {example}" for example in each.examples[:1]]
    lines += [] if audit.patterns else ["  none"]
    lines += ["", f"Training prompt ({audit.slot}): {audit.prompt!r}", counted(audit)]
    return "\n".join(lines + [f"Not run: {name}: {reason}" for name, reason in audit.refused.items()])


def counted(audit: plan.Audit) -> str:
    """How many rows there are, from what was read to what one run sees."""
    return "Rows: " + ", ".join(f"{name} {count:,}" for name, count in audit.counts.items())


def _agreed(asked: bool, ask: Callable[[str], str]) -> bool:
    try:
        return asked and ask(SEEN).strip().lower() in ("y", "yes")
    except EOFError:
        return False
