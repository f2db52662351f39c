"""How often does each interval of inoculation.stats hold the truth? Writes proofs/coverage.csv (dated in its first column).

Binary responses of three conditions (baseline, a suppressing one, control) on 24 questions: logit = level + seed effect +
question effect + question-by-condition effect. In one design the seeds differ most, in the other the questions. `target` says
which truth is meant: the mean over all seeds on *these* questions, or on *new* questions too. `in figures` marks the intervals
that figures and claims use; those must cover 93 to 97 %.
"""

import datetime
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from inoculation import stats

LEVELS = {"baseline": 1.5, "condition": 0.0, "control": -3.0}
DESIGNS = {
    "seed-dominated": {"seed": 1.0, "question": 0.3, "both": 0.2},
    "question-dominated": {"seed": 0.2, "question": 1.2, "both": 0.6},
}
QUESTIONS = 24
CONTENTS = 40
SEEDS = (3, 5, 8)
REPEATS = 4000
FEWEST = 8
TABLE = Path(__file__).with_suffix(".csv")


def simulate(noise: dict[str, float], seeds: int, repeats: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Binary responses (repeats, conditions, seeds, questions) and each question's chance over all seeds (.., questions)."""
    level = np.array(list(LEVELS.values()))[:, None]
    question = rng.normal(0, noise["question"], (repeats, 1, QUESTIONS))
    fixed = level + question + rng.normal(0, noise["both"], (repeats, len(level), QUESTIONS))
    drawn = rng.normal(0, noise["seed"], (repeats, len(level), seeds, 1))
    responses = rng.random((repeats, len(level), seeds, QUESTIONS)) < _chance(fixed[:, :, None] + drawn)
    return responses.astype(float), _over(fixed, noise["seed"])


def _chance(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def _over(logit: np.ndarray, sd: float) -> np.ndarray:
    """The mean chance over a normal effect with standard deviation sd (Gauss-Hermite)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(31)
    return _chance(logit[..., None] + sd * nodes) @ (weights / weights.sum())


def hierarchical(values: np.ndarray, seed: int = 0) -> stats.Interval:
    """The mean of (seeds, questions) with a percentile interval for other seeds and other questions.

    Seeds and questions are resampled together, every seed answering the same resampled questions (the pigeonhole bootstrap,
    Owen 2007). It counts the noise of single responses twice, so where that noise is large it covers more than 95 %; no figure
    and no claim uses it. No interval from fewer than eight seeds.
    """
    seeds, questions = values.shape
    if seeds < FEWEST:
        return stats.Interval(values.mean(), np.nan, np.nan, seeds, f"{seeds} seeds; the bootstrap needs {FEWEST}")
    rng = np.random.default_rng(seed)
    rows = rng.multinomial(seeds, [1 / seeds] * seeds, stats.RESAMPLES) / seeds
    columns = rng.multinomial(questions, [1 / questions] * questions, stats.RESAMPLES) / questions
    means = np.einsum("rs,sq,rq->r", rows, values, columns, optimize=True)
    low, high = np.percentile(means, [2.5, 97.5])
    return stats.Interval(values.mean(), float(low), float(high), seeds, "bootstrap over seeds and questions")


def coverage(repeats: int = REPEATS, seed: int = 0) -> pd.DataFrame:
    """One row per design, number of seeds and interval: coverage and mean width."""
    rows = []
    for name, noise in DESIGNS.items():
        for seeds in SEEDS:
            rows += _design(name, noise, seeds, repeats, np.random.default_rng([seed, seeds, len(name)]))
    intervals = [stats.wilson(count, CONTENTS) for count in range(CONTENTS + 1)]
    for chance in (0.9, 0.97):
        hits = np.random.default_rng([seed, CONTENTS]).binomial(CONTENTS, chance, repeats)
        found = [intervals[count] for count in hits]
        rows.append(_row("independent", 0, f"wilson, {chance:.2f} of {CONTENTS}", "one proportion", False, found, chance))
    return pd.DataFrame(rows)


def _design(name: str, noise: dict[str, float], seeds: int, repeats: int, rng: np.random.Generator) -> list[dict]:
    responses, chances = simulate(noise, seeds + 1, repeats, rng)
    further, responses = responses[:, :, -1], responses[:, :, :-1]
    by_seed, these = responses.mean(axis=3), chances.mean(axis=2)
    difference = by_seed[:, 0] - by_seed[:, 1]
    effects = [stats.share(d, b - k)[0] for d, b, k in zip(difference, by_seed[:, 0], by_seed[:, 2], strict=True)]
    spread = float(np.sqrt(sum(sd**2 for sd in noise.values())))
    new = _over(np.array(list(LEVELS.values())), spread)
    next_seed = (further[:, 0] - further[:, 1]).mean(axis=1)
    truth = these[:, 0] - these[:, 1]
    students = [stats.student(values) for values in difference]
    rows = [
        _row(name, seeds, "student, contrast", "these questions", True, students, truth),
        _row(
            name,
            seeds,
            "student, effect",
            "these questions",
            True,
            map(stats.student, effects),
            truth / (these[:, 0] - these[:, 2]),
        ),
        _row(name, seeds, "prediction of one seed", "these questions", True, map(stats.prediction, difference), next_seed),
        _row(name, seeds, "student, contrast", "new questions", False, students, new[0] - new[1]),
    ]
    paired = responses[:, 0] - responses[:, 1]
    few = paired[: repeats // 4]
    apart = map(stats.question_bootstrap, few)
    rows.append(_row(name, seeds, "bootstrap over questions", "new questions", False, apart, new[0] - new[1]))
    if seeds >= FEWEST:
        both = map(hierarchical, few)
        rows.append(_row(name, seeds, "hierarchical bootstrap", "new questions", False, both, new[0] - new[1]))
    return rows


def _row(design: str, seeds: int, interval: str, target: str, used: bool, found: Iterable[stats.Interval], truth: Any) -> dict:
    limits = np.array([(i.low, i.high) for i in found])
    known = ~np.isnan(limits[:, 0])
    truth = np.broadcast_to(np.atleast_1d(truth)[: len(limits)], len(limits))
    held = (limits[known, 0] <= truth[known]) & (truth[known] <= limits[known, 1])
    return {
        "date": datetime.date.today().isoformat(),
        "design": design,
        "seeds": seeds,
        "interval": interval,
        "target": target,
        "in figures": used,
        "coverage": round(float(held.mean()), 4),
        "mean width": round(float(np.diff(limits[known]).mean()), 3),
        "repeats": int(known.sum()),
    }


if __name__ == "__main__":
    table = coverage()
    table.to_csv(TABLE, index=False, lineterminator="\n")
    print(table.to_string(index=False))
    wrong = table[table["in figures"] & ~table.coverage.between(0.93, 0.97)]
    sys.exit(f"{len(wrong)} intervals used in figures cover less than 93 % or more than 97 %" if len(wrong) else 0)
