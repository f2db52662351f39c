"""The options that say where runs are done, what cannot be meant by them, and the engine that they name."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from inoculation import runs
from inoculation.runs import Report, Spec

ENGINES = ("local", "ray", "slurm")


def add(top: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    top.add_argument("--engine", choices=ENGINES, default="local", help="where runs are done: here (default), ray or slurm")
    top.add_argument("--address", default="", metavar="A", help="ray: a cluster's HOST:PORT, or auto; a Ray of its own without")
    top.add_argument("--gpus", type=int, metavar="N", help="ray, slurm: GPUs of a run (ray: one where there are any; slurm: 0)")
    top.add_argument("--jobs", type=int, default=0, metavar="N", help="slurm: jobs to divide the runs among (one a run)")
    top.add_argument("--slurm", nargs="+", default=[], metavar="K=V", help="slurm: parameters, as partition=gpu timeout_min=60")
    top.add_argument("--shard", type=_shard, metavar="I/N", help="do the I-th of N shares of the runs here, and draw nothing")


def _shard(text: str) -> tuple[int, int]:
    try:
        share, of = map(int, text.split("/"))
    except ValueError:
        share, of = 0, 0
    if not 1 <= share <= of:
        raise argparse.ArgumentTypeError(f"'{text}' is none of N shares, as 1/4 to 4/4 are of four")
    return share, of


def refuse(options: argparse.Namespace, error: Callable[[str], NoReturn]) -> None:
    """Say what cannot be meant."""
    if options.address and options.engine != "ray":
        error("--address belongs to --engine ray")
    if (options.jobs or options.slurm) and options.engine != "slurm":
        error("--jobs and --slurm belong to --engine slurm")
    if options.gpus is not None and (options.engine == "local" or options.gpus < 0):
        error("--gpus is 0 or more and belongs to --engine ray and slurm")
    if options.jobs < 0:
        error(f"--jobs must be 1 or more, not {options.jobs}")
    other = options.engine != "local" or options.command != "run" or options.update_reference or options.figures_only
    if options.shard and other:
        error("--shard does runs here and nothing else: no engine, no other command, no drawing")
    if options.engine != "local" and (options.command not in ("run", "audit") or options.figures_only):
        error(f"--engine belongs to runs and audit, not to {'drawing' if options.figures_only else options.command}")


def engine(options: argparse.Namespace) -> Callable[[list[Spec], int], Report]:
    """What does specs with so many threads each, as runs.ensure does here."""
    if options.engine == "ray":
        from engines import cluster

        return lambda specs, threads: cluster.ensure(specs, threads, options.gpus, options.address)
    if options.engine == "slurm":
        from engines import batch

        return lambda specs, threads: batch.ensure(specs, threads, options.gpus or 0, options.jobs, options.slurm)
    return runs.ensure


def do(options: argparse.Namespace, specs: list[Spec]) -> int:
    """Do runs where the options say, unless the notebooks are to do them here; 1 when one failed."""
    if options.engine == "local" and not options.shard:
        return 0
    report = engine(options)(specs, options.threads)
    print(report)
    return int(bool(report.failed))


def share(specs: list[Spec], part: tuple[int, int] | None) -> list[Spec]:
    """The I-th of N shares of some runs, or all: decided by the list alone, so that shares can begin anywhere, and again."""
    return specs[part[0] - 1 :: part[1]] if part else specs
