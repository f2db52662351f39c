"""The command line behind ./run_all.sh: run notebooks with papermill, redraw figures, examine the machine, explain claims.

Everything that can be wrong with a command is found before a kernel starts (exit status 2, nothing run). A failed run or
notebook never stops the others; it makes the exit status 1.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

from inoculation import model, runs, settings, store

FREE_GB = 1
COMMANDS = ("run", "claims", "doctor", "bench", "proofs", "test", "lab")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with status 2."""
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


def parser() -> Parser:
    """The command line's options."""
    top = Parser(prog="./run_all.sh", allow_abbrev=False, description="Run a profile of the notebooks and redraw the figures.")
    top.add_argument("command", nargs="?", default="run", help="run (default), claims, doctor, bench, proofs, test or lab")
    top.add_argument("--profile", default="mini", help="smoke, mini (default) or paper")
    top.add_argument("--notebook", nargs="+", default=[], metavar="NN", help="only these notebooks, by number or name")
    top.add_argument("--only", nargs="+", default=[], metavar="CONDITION", help="only these conditions")
    top.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N", help="these seeds instead of the profile's")
    top.add_argument("--full", action="store_true", help="also the conditions that have no reference")
    top.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads, 0 (default) for torch's own choice")
    top.add_argument("--setting", default="", help="claims: the setting whose claims are explained")
    top.add_argument("--claim", default="", help="claims: only this one")
    top.add_argument("--dry-run", action="store_true", help="say what would run, for how long, and what is already done")
    top.add_argument("--figures-only", action="store_true", help="redraw from your tables, else from the reference")
    top.add_argument("--update-reference", action="store_true", help="maintainers: write data/results and figures/<profile>")
    return top


def main() -> int:
    """Run the command line; returns the exit status."""
    options = _options(parser())
    try:
        if options.command == "doctor":
            from inoculation import doctor

            return 1 if doctor.examine() else 0
        scale = settings.load_profile(options.profile)
        if options.command == "claims":
            return _explain(scale.name, options.setting, options.claim)
        chosen = _chosen_notebooks(options.notebook)
        if options.figures_only:
            return _redraw(scale.name)
        grids = {path: _grid(options, setting) for path, setting in chosen.items()}
        if options.dry_run:
            print("\n".join(f"{path.stem}\n{runs.plan(grid)}" for path, grid in grids.items()))
            return 0
        _check_machine(grids)
    except (settings.SettingError, model.ModelError) as error:
        parser().error(str(error))
    try:
        return _run(options, grids)
    except KeyboardInterrupt:
        print("\ninterrupted; finished runs are kept, the same command goes on from there", file=sys.stderr)
        return 130
    except OSError as error:
        print(
            f"\n{error}; finished runs are kept: mend this (is the disk full?), then the same command goes on", file=sys.stderr
        )
        return 1


def _options(top: Parser) -> argparse.Namespace:
    options, unknown = top.parse_known_args()
    known = [flag for action in top._actions for flag in action.option_strings]
    if unknown:
        top.error(str(settings.nearest(unknown[0].split("=")[0], known, "option")))
    if options.command not in ("run", "claims", "doctor"):
        top.error(str(settings.nearest(options.command, COMMANDS, "command")))
    if (options.command == "claims") != bool(options.setting) or (options.claim and not options.setting):
        top.error("claims needs --setting, and --setting and --claim belong to claims")
    if options.threads < 0:
        top.error(f"--threads must be 0 or more, not {options.threads}")
    return options


def _chosen_notebooks(wanted: list[str]) -> dict[Path, str]:
    """The notebooks to run, with their settings; raises SettingError for one that does not exist."""
    found = {store.NOTEBOOKS / f"{settings.load_setting(name).notebook}.ipynb": name for name in settings.setting_names()}
    found = dict(sorted(found.items()))
    for name in wanted:
        if not any(path.stem.startswith(name) for path in found):
            raise settings.nearest(name, [path.stem for path in found], "notebook")
    return {path: setting for path, setting in found.items() if not wanted or path.stem.startswith(tuple(wanted))}


def _grid(options: argparse.Namespace, setting: str) -> list[runs.Spec]:
    return runs.grid(setting, options.profile, options.only or "all", options.seeds or "all", options.full)


def _check_machine(grids: dict[Path, list[runs.Spec]]) -> None:
    for grid in grids.values():
        model.source_file(grid[0].parts[2].base_model)
    free = shutil.disk_usage(store.ROOT).free / 1e9
    if free < FREE_GB:
        raise settings.SettingError(f"{free:.1f} GB of disk are free, {FREE_GB} GB are needed; free some space first")


def _run(options: argparse.Namespace, grids: dict[Path, list[runs.Spec]]) -> int:
    """Execute the notebooks, then redraw; 1 when a notebook or a run failed."""
    problems = []
    for path, grid in grids.items():
        parameters = {
            "profile": options.profile,
            "conditions": options.only or "all",
            "seeds": options.seeds or "all",
            "full": options.full,
            "threads": options.threads,
            "compute": True,
        }
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
    status = _redraw(options.profile)
    return 1 if problems else status


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
            raise settings.nearest(name, known, f"parameter of {path.stem}")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(path),
            str(output),
            parameters=parameters,
            progress_bar=False,
            stdout_file=sys.stdout,
            config=Config({"KernelManager": {"transport": "ipc"}}),
        )
    except papermill.PapermillExecutionError as error:
        return [
            f"{path.stem}, cell {error.exec_count}: {error.ename}: {error.evalue} (the notebook as far as it came: {output})"
        ]
    except DeadKernelError:
        return [f"{path.stem}: its kernel died; finished runs are kept, the same command goes on from there"]
    return []


def _explain(profile: str, setting: str, claim: str) -> int:
    from inoculation import claims, tables

    names, found = claims.pick(setting, claim), tables.shown(profile)
    trails = [claims.trail(verdict, found) for verdict in claims.judge(found, setting) if verdict.claim.name in names]
    print("\n\n".join(trails))
    return 0


def _redraw(profile: str) -> int:
    from inoculation import claims, figures, tables

    found = tables.shown(profile)
    if found is not None and found.origin == "yours":
        claims.write(found, found.folder)
    drawn = figures.redraw(profile, found, store.local_figures(profile))
    if not drawn:
        print(f"nothing to draw in profile {profile}: no finished run and no reference", file=sys.stderr)
        return 1
    print("\n".join(f"drawn: {path}" for path in drawn))
    return 0


def _update_reference(profile: str) -> None:
    from inoculation import claims, figures, tables

    tables.write(profile, store.RESULTS / profile)
    claims.write(tables.reference(profile), store.RESULTS / profile)
    drawn = figures.redraw(profile, tables.reference(profile), store.REFERENCE_FIGURES / profile)
    print("\n".join(f"reference: {path}" for path in drawn))


if __name__ == "__main__":
    sys.exit(main())
