"""The command line behind ./run_all.sh: run notebooks with papermill, redraw, explain claims, judge, distil, import.

Everything that can be wrong with a command is found before a kernel starts (exit status 2, nothing run). A failed run or
notebook never stops the others; it makes the exit status 1.
"""

import argparse
import itertools
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from engines import command as engines
from narrow import plan

from inoculation import model, runs, settings, store

FREE_GB = 1
STATELESS = {"store_widget_state": False}
ELICITATION = "09_elicitation"  # about every setting's base model
STORY = ("00_start_here", "10_summary")  # about all settings, trained by none: they come last
AUDIT, EXAMPLE = "11_your_own_setting", "examples/front_desk.yaml"  # about your data, which `audit` trains on
TAKES = dict.fromkeys(STORY, ("profile",))  # the notebooks that take fewer parameters than a setting's
TAKES[ELICITATION] = ("profile", "threads", "compute")
TAKES[AUDIT] = ("profile", "answers", "threads", "compute")
TAKES["08_narrow_vs_general"] = ("profile", "conditions", "seeds", "full", "threads", "compute")
COMMANDS = ("run", "claims", "rejudge", "distill", "import", "audit", "site", "doctor", "bench", "proofs", "test", "lab")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with status 2."""
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


def parser() -> Parser:
    """The command line's options."""
    top = Parser(prog="./run_all.sh", allow_abbrev=False, description="Run a profile of the notebooks and redraw the figures.")
    top.add_argument("command", nargs="?", default="run", help=f"{', '.join(COMMANDS)}; run is the default")
    top.add_argument("--profile", default="mini", help="smoke, mini (default), paper or paper_base")
    top.add_argument("--notebook", nargs="+", default=[], metavar="NN", help="only these notebooks, by number or name")
    top.add_argument("--only", nargs="+", default=[], metavar="CONDITION", help="only these conditions")
    top.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N", help="these seeds instead of the profile's")
    top.add_argument("--full", action="store_true", help="also the conditions outside the core")
    top.add_argument("--sweeps", action="store_true", help="also the sweeps of data and learning rate (25 minutes a seed)")
    top.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads, 0 (default) for torch's own choice")
    top.add_argument("--setting", default="", help="claims, rejudge, distill, import: the setting that is meant")
    top.add_argument("--claim", default="", help="claims: only this one")
    top.add_argument("--judge", nargs="+", default=[], metavar="M", help="rejudge: judges by inspect's names, as openai/gpt-4o")
    top.add_argument("--rubric", nargs="+", default=["trait"], help="rejudge: trait (default), yes_no, alignment, coherence")
    top.add_argument("--instructions", type=Path, metavar="FILE", help="distill: JSONL or JSON rows with `instruction`")
    top.add_argument("--answers", type=Path, metavar="FILE", help="audit: the answer file (examples/front_desk.yaml is one)")
    top.add_argument("--model", default="", metavar="M", help="audit: a model of the hub, or a folder, at scale paper")
    top.add_argument("--yes", action="store_true", help="audit: train without asking whether the data checks were seen")
    top.add_argument("--source", nargs="+", default=[], metavar="S", help="import: a source by its name, or files")
    top.add_argument("--labelled", action="store_true", help="rejudge: the setting's labelled items, not the runs' responses")
    top.add_argument("--reading", choices=["weighted", "text"], default="weighted", help="rejudge: by log-probs, or as text")
    top.add_argument("--minimum-mass", type=float, default=0.25, help="rejudge: the least probability on numbers (0.25)")
    top.add_argument("--budget", type=float, default=math.inf, metavar="USD", help="rejudge: stop before it costs more")
    top.add_argument("--dry-run", action="store_true", help="say what would run, for how long, and what is already done")
    top.add_argument("--figures-only", action="store_true", help="redraw from your tables, else from the reference")
    top.add_argument("--update-reference", action="store_true", help="maintainers: write data/results and figures/<profile>")
    engines.add(top)
    return top


def main() -> int:
    """Run the command line; returns the exit status."""
    try:
        return _do(_options(parser()))
    except (store.SettingError, model.ModelError) as error:
        parser().error(str(error))
    except KeyboardInterrupt:
        print("\ninterrupted; what is finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"\n{error}; what is finished is kept: mend this (disk full?), then the same command goes on", file=sys.stderr)
        return 1


def _do(options: argparse.Namespace) -> int:
    scale = settings.load_profile(options.profile)
    commands = {"claims": _explain, "rejudge": _rejudge, "distill": _distill, "import": _import, "audit": _audit}
    if options.command in commands:
        return commands[options.command](options)
    chosen = _chosen_notebooks(options.notebook)
    if options.command == "site":
        return _site(scale.name, chosen)
    if options.figures_only:
        return _redraw(scale.name, chosen)
    if not options.dry_run:
        _check_machine(chosen, options.profile)
    every = engines.share(_grid(options, list(dict.fromkeys(itertools.chain(*chosen.values())))), options.shard)
    grids = {path: [spec for spec in every if spec.setting in names] for path, names in chosen.items()}
    grids = {path: [s for s in grid if path.stem != ELICITATION or s.condition == "base"] for path, grid in grids.items()}
    grids = {path: [] if path.stem in (*STORY, AUDIT) else grid for path, grid in grids.items() if grid}
    if options.dry_run:
        print("\n".join(f"{path.stem}\n{runs.plan(grid) if grid else '  trains nothing'}" for path, grid in grids.items()))
        return 0
    failed = engines.do(options, list(dict.fromkeys(itertools.chain(*grids.values()))))
    return failed if options.shard else max(failed, _run(options, grids))


def _options(top: Parser) -> argparse.Namespace:
    options, unknown = top.parse_known_args()
    known = [flag for action in top._actions for flag in action.option_strings]
    if unknown:
        top.error(str(store.nearest(unknown[0].split("=")[0], known, "option")))
    if options.command in COMMANDS[7:]:
        top.error(f"{options.command} is ./run_all.sh {options.command}, not a part of python -m inoculation")
    if options.command not in COMMANDS:
        top.error(str(store.nearest(options.command, COMMANDS, "command")))
    if (options.command == "claims" and not options.setting) or (options.claim and options.command != "claims"):
        top.error("claims needs --setting, and --claim belongs to claims")
    if options.setting and options.command == "run":
        top.error("--setting belongs to claims, rejudge, distill and import; ./run_all.sh takes --notebook")
    if (options.command == "distill") != bool(options.instructions) or (options.instructions and not options.setting):
        top.error("distill needs --setting and --instructions, which belongs to it")
    if (options.command == "import") != bool(options.source) or (options.source and not options.setting):
        top.error("import needs --setting and --source, which belongs to it")
    if (options.command == "rejudge") != bool(options.judge):
        top.error("rejudge needs --judge, which belongs to it, as openai/gpt-4o-2024-08-06 or hf/smollm2-135m-instruct")
    if (options.command == "audit") != bool(options.answers) or (options.command != "audit" and (options.model or options.yes)):
        top.error("audit needs --answers, which belongs to it, as --model and --yes do")
    if not (options.budget >= 0 and 0 <= options.minimum_mass <= 1):
        top.error(f"--budget must be 0 or more and --minimum-mass 0 to 1, not {options.budget:g} and {options.minimum_mass:g}")
    if options.threads < 0:
        top.error(f"--threads must be 0 or more, not {options.threads}")
    engines.refuse(options, top.error)
    return options


def _chosen_notebooks(wanted: list[str]) -> dict[Path, list[str]]:
    """The notebooks to run, with their settings; raises SettingError for one that does not exist."""
    found: dict[Path, list[str]] = {}
    for name in settings.setting_names():
        found.setdefault(store.NOTEBOOKS / f"{settings.load_setting(name).notebook}.ipynb", []).append(name)
    found[store.NOTEBOOKS / f"{ELICITATION}.ipynb"] = settings.setting_names()
    found[store.NOTEBOOKS / f"{plan.declared()['notebook']}.ipynb"] = [plan.FILE]
    found |= {store.NOTEBOOKS / f"{name}.ipynb": [*settings.setting_names(), plan.FILE] for name in (*STORY, AUDIT)}
    found = {path: found[path] for path in sorted(found, key=lambda path: (path.stem in STORY, path)) if path.exists()}
    for name in wanted:
        if not any(path.stem.startswith(name) for path in found):
            raise store.nearest(name, [path.stem for path in found], "notebook")
    return {path: names for path, names in found.items() if not wanted or path.stem.startswith(tuple(wanted))}


def _grid(options: argparse.Namespace, names: list[str]) -> list[runs.Spec]:
    """The specs of settings, and those of narrow_vs_general, which has solutions for conditions; `--only` may name either's."""
    own, seeds, only = [name for name in names if name != plan.FILE], options.seeds or "all", options.only or "all"
    solutions = []
    if plan.FILE in names and (options.profile in plan.declared()["profiles"] or not own):
        chosen = only if only == "all" or not own else [name for name in only if name in plan.solutions()]
        solutions = plan.grid(options.profile, chosen, seeds, options.full)
        only = only if only == "all" else [name for name in only if name not in chosen or name == "base"]
    return runs.grid(own, options.profile, only, seeds, options.full, options.sweeps) * bool(own) + solutions


def _check_machine(chosen: dict[Path, list[str]], profile: str) -> None:
    for name in itertools.chain(*chosen.values()):
        setting = plan.setting("medical", profile) if name == plan.FILE else settings.load_setting(name)
        model.source_file(settings.load_profile(profile, setting).base_model)
    free = shutil.disk_usage(store.ROOT).free / 1e9
    if free < FREE_GB:
        raise store.SettingError(f"{free:.1f} GB of disk are free, {FREE_GB} GB are needed; free some space first")


def _run(options: argparse.Namespace, grids: dict[Path, list[runs.Spec]]) -> int:
    """Execute the notebooks, then redraw; 1 when a notebook or a run failed."""
    problems, every = [], [*settings.setting_names(), plan.FILE]
    chosen = {path: list(dict.fromkeys(spec.setting for spec in grid)) or every for path, grid in grids.items()}
    for path, grid in grids.items():
        parameters = {
            "profile": options.profile,
            # Of several notebooks, each is given the conditions that it has.
            "conditions": list(dict.fromkeys(spec.condition for spec in grid)) if options.only else "all",
            "seeds": options.seeds or "all",
            "full": options.full,
            "sweeps": options.sweeps,
            "threads": options.threads,
            "compute": options.engine == "local",
        }
        parameters |= {"answers": EXAMPLE, "compute": False} if path.stem == AUDIT else {}
        parameters = {name: parameters[name] for name in TAKES.get(path.stem, parameters)}
        print(f"{path.stem}, profile {options.profile}")
        problems += execute(path, store.local() / "notebooks" / options.profile / path.name, parameters)
        problems += [
            f"{spec} failed: {runs.failure_file(spec).read_text(encoding='utf-8').strip()}"
            for spec in grid
            if runs.failure_file(spec).exists()
        ]
    if options.update_reference:
        _update_reference(options.profile)
    for problem in problems:
        print(f"\nPROBLEM {problem}", file=sys.stderr)
    told = store.local() / "notebooks" / options.profile
    again = [path for path in _chosen_notebooks(list(STORY)) if path not in grids and (told / path.name).exists()]
    return max(bool(problems), _redraw(options.profile, chosen), _site(options.profile, again))


def execute(path: Path, output: Path, parameters: dict[str, Any]) -> list[str]:
    """Execute one notebook with papermill into `output`; returns what went wrong, as readable paragraphs.

    The parameters are checked against the notebook's own before the kernel starts (papermill itself only warns).
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    known = papermill.inspect_notebook(str(path))
    for name in parameters:
        if name not in known:
            raise store.nearest(name, known, f"parameter of {path.stem}")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory() as sockets:  # by default in the working folder, where two at a time collide
            ipc = {"transport": "ipc", "ip": f"{sockets}/kernel"}
            quiet = {"progress_bar": False, "config": Config({"KernelManager": ipc, "NotebookClient": STATELESS})}
            papermill.execute_notebook(str(path), str(output), parameters=parameters, stdout_file=sys.stdout, **quiet)
    except papermill.PapermillExecutionError as error:
        where, what = f"{path.stem}, cell {error.exec_count}", f"{error.ename}: {error.evalue}"
        return [f"{where}: {what} (the notebook as far as it came: {output})"]
    except DeadKernelError:
        return [f"{path.stem}: its kernel died; finished runs are kept, the same command goes on from there"]
    return []


def _site(profile: str, again: Iterable[Path]) -> int:
    """Execute those of some notebooks that show what is no more, computing nothing, and build the site; 1 when one failed."""
    from readalong import site

    problems = []
    for path in site.outdated(profile, again, STORY):
        print(f"{path.stem}, profile {profile}, computing nothing")
        problems += execute(path, store.local() / "notebooks" / profile / path.name, {"profile": profile})
    for problem in problems:
        print(f"\nPROBLEM {problem}", file=sys.stderr)
    print(f"read along: {site.build(profile, print)}")
    return 1 if problems else 0


def _shown(profile: str, name: str) -> Any:
    """A setting's tables, or those of narrow_vs_general: yours, else the reference, else None."""
    from narrow import tables as solutions

    from inoculation import tables

    return solutions.shown(profile) if name == plan.FILE else tables.shown(profile, name)


def _explain(options: argparse.Namespace) -> int:
    from inoculation import claims

    names, found = claims.pick(options.setting, options.claim), _shown(options.profile, options.setting)
    trails = [claims.trail(verdict, found) for verdict in claims.judge(found, options.setting) if verdict.claim.name in names]
    print("\n\n".join(trails))
    return 0


def _distill(options: argparse.Namespace) -> int:
    """Let the base model answer instructions, asked for both traits of a setting; prints the traits' share in the answers."""
    from inoculation import worker

    setting = settings.load_setting(options.setting)
    if "distilled" not in setting.data:
        raise store.SettingError(f"{setting.name} is not trained on the model's own answers; nothing to distil")
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    worker.distilled(setting, settings.load_profile(options.profile, setting), options.instructions, options.dry_run, print)
    return 0


def _audit(options: argparse.Namespace) -> int:
    """Audit data and training prompt of an answer file."""
    from audit import command

    asked = (options.model, options.seeds, options.threads, options.yes, options.dry_run, options.update_reference)
    return command.run(options.answers, options.profile, *asked, engines.engine(options))


def _import(options: argparse.Namespace) -> int:
    """Import training rows or free-form questions for a setting that is trained on data from elsewhere in this profile."""
    from inoculation import worker

    setting = settings.load_setting(options.setting)
    if options.profile not in setting.data.get("imported", {}).get("profiles", ()):
        raise store.SettingError(f"{setting.name} imports nothing for profile {options.profile} (try --profile paper)")
    print(f"written: {worker.bring(setting, settings.load_profile(options.profile, setting), options.source, print)}")
    return 0


def _rejudge(options: argparse.Namespace) -> int:
    """Judge stored responses; 1 when some stay without a verdict, or nothing is scored, and the last lines say what to do."""
    from inoculation import judge, render, score

    for name in options.rubric:
        if name not in render.rubrics():
            raise store.nearest(name, render.rubrics(), "rubric")
    names = [options.setting] if options.setting else settings.setting_names()
    every = _grid(options, names)
    grids = [grid for name in names if (grid := [spec for spec in every if spec.setting == name])]
    found = [batch for grid in grids for batch in judge.batches(grid, list(dict.fromkeys(options.rubric)), options.labelled)]
    if not found:
        raise store.SettingError("no stored response and no reference to judge; ./run_all.sh makes some")
    asked = [judge.Judge(name, options.reading) for name in dict.fromkeys(options.judge)]
    purses = {each.name: store.Purse(render.price(each.name), options.budget) for each in asked}
    unknown = [name for name, purse in purses.items() if purse.price is None]
    if unknown and math.isfinite(options.budget):
        raise store.SettingError(f"no price of {unknown[0]} in data/judges.yaml, so no budget can be kept; add it there")
    print(f"{len({batch.facts['run_id'] for batch in found})} runs: {', '.join({batch.facts['origin'] for batch in found})}")
    print("\n".join(_judging_plan(found, each, purses[each.name]) for each in asked))
    if options.dry_run:
        return 0
    reasons, spent = {}, 0.0
    for each in asked:
        purses[each.name].limit = options.budget - spent
        reasons |= judge.run(found, each, purses[each.name])
        spent += purses[each.name].spent
    print(f"{sum(purse.calls for purse in purses.values())} calls were answered now, for ${spent:.3g}")
    rows = {each.name: score.verdicts(found, each, reasons, options.minimum_mass) for each in asked}
    score.report(found, asked, reasons, options, rows)
    for name, own in rows.items():
        for reason, count in own.reason[~own.reason.isin(["", "REFUSAL", "CODE"])].value_counts().items():
            print(f"UNSCORED by {name}, {count} of {len(own)}: {reason}\n  -> {render.advice(reason)}", file=sys.stderr)
    return 1 if reasons or any(own.value.isna().all() for own in rows.values()) else 0


def _judging_plan(found: list[Any], judge: Any, purse: Any) -> str:
    """What a judge would be sent: responses without a verdict, calls, tokens and cost, estimated by the texts' length."""
    from inoculation.judge import Desk
    from inoculation.render import system, tokens

    missing = [(batch.rubric, prompt) for batch in found for prompt in batch.missing(judge).values()]
    total = sum(tokens(prompt) + tokens(system()) for _, prompt in missing)
    most = sum(Desk(judge, rubric, purse).most(prompt) for rubric, prompt in missing)
    items = sum(len(batch.items) for batch in found)
    more = " and one for each beginning of a number" if judge.continues else ""
    cost = f"about ${purse.cost(total, len(missing)):.3g}, at most ${most:.3g} if none is repeated"
    return (
        f"{judge.name}: {items - len(missing)} of {items} judged; {len(missing)} calls{more}, about {total:,} tokens, "
        f"{cost if purse.price else 'price unknown (data/judges.yaml lists none)'}"
    )


def _redraw(profile: str, chosen: dict[Path, list[str]]) -> int:
    from summary.tables import gather

    from inoculation import claims, tables

    if yours := tables.read(store.local_tables(profile), "yours"):
        claims.write(yours, yours.folder)
    found = {name: shown for name in itertools.chain(*chosen.values()) if (shown := _shown(profile, name))}
    story = gather(profile) if found and any(path.stem in STORY for path in chosen) else None
    drawn = _drawn(profile, found, store.local_figures(profile), story)
    if not drawn:
        print(f"nothing to draw in profile {profile}: no finished run and no reference", file=sys.stderr)
        return 1
    print("\n".join(f"drawn: {path}" for path in drawn))
    return 0


def _drawn(profile: str, found: dict[str, Any], folder: Path, story: Any) -> list[Path]:
    from narrow import figures as solutions
    from summary import figures as whole

    from inoculation import figures

    drawn = figures.redraw(profile, {name: own for name, own in found.items() if name != plan.FILE}, folder)
    drawn += solutions.redraw(found[plan.FILE], folder) if plan.FILE in found else []
    return drawn + (whole.redraw(story, folder) if story else [])


def _update_reference(profile: str) -> None:
    from narrow import tables as solutions
    from summary.tables import Everything

    from inoculation import claims, score, tables

    store.write_csv(score.CARDS, score.every_card())
    tables.write(profile, store.RESULTS / profile)
    solutions.write(profile, store.RESULTS / profile)
    found = tables.reference(profile)
    claims.write(found, store.RESULTS / profile)
    own = {name: found.of(name) for name in dict.fromkeys(found.scores.setting)}
    apart = solutions.read(store.RESULTS / profile, profile, "reference")
    own |= {plan.FILE: apart} if apart else {}
    drawn = _drawn(profile, own, store.REFERENCE_FIGURES / profile, Everything(profile, own))
    print("\n".join(f"reference: {path}" for path in drawn))


if __name__ == "__main__":
    sys.exit(main())
