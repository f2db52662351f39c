"""The statistics of design decision 8: the seed is the unit, and what cannot be known is NaN with a reason.

Arrays in, intervals and verdicts out; nothing here knows a setting. Values by seed are float64 arrays of shape (seeds,);
responses by seed and question are (seeds, questions). Every interval is at 95 %. proofs/coverage.py measures how often each
holds the truth.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95
POWER = 0.8
RESAMPLES = 2000
FEWEST_PROMPTS, OVER_PROMPTS = 5, "bootstrap over prompts"
SATURATED = 0.05
STUDENT = "Student t over seeds"
MEASUREMENT = "bootstrap over questions (measurement error)"


@dataclass(frozen=True)
class Interval:
    """An estimate with the limits of its interval (NaN where there is none), n, and the rule or why there is no interval."""

    estimate: float
    low: float
    high: float
    n: int
    rule: str

    def __str__(self) -> str:
        if self.n == 0:
            return self.rule
        limits = f" [{self.low:.2f}, {self.high:.2f}]" if self.known else ", no interval"
        return f"{self.estimate:.2f}{limits}, n = {self.n}"

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)

    @property
    def touches_zero(self) -> bool:
        """Whether it cannot be told from 0 (without an interval, whether it is 0)."""
        return self.estimate == 0 or (self.known and self.low <= 0 <= self.high)

    def inside(self, bound: float) -> bool:
        """Whether the whole interval lies between -bound and bound."""
        return self.known and -bound <= self.low and self.high <= bound


@dataclass(frozen=True)
class Effect:
    """One value per seed, the reason where it could not be computed (all values NaN), and the measure behind it.

    doubt: why it may be something else than its trait (`beyond_placebo`), or empty.
    """

    values: np.ndarray
    fault: str = ""
    measure: str = ""
    doubt: str = ""

    @property
    def interval(self) -> Interval:
        """The mean over seeds with its interval; the fault, where there is one, is its rule."""
        found = student(self.values)
        return Interval(found.estimate, found.low, found.high, found.n, self.fault) if self.fault else found


@dataclass(frozen=True)
class Rule:
    """Design decision 8 in numbers: the bound of No, where Moderate and Strong begin, family-wise level, seeds needed."""

    none_within: float
    moderate: float
    strong: float
    level: float
    seeds: int

    def __str__(self) -> str:
        return (
            f"No: interval inside ±{self.none_within}; else Holm-adjusted p below {self.level}: Opposite below 0, Weak above, "
            f"Moderate from {self.moderate}, Strong from {self.strong}; else, or below {self.seeds} seeds, Inconclusive"
        )


@dataclass(frozen=True)
class Contrast:
    """What a claim compares, named before any result: one value per seed on the scale of suppression.

    suppress: the suppression of `conditions`, minus that of `minus`. raise: its opposite. fall_short: how far the best of
    `conditions` is from the corner where all of the negative and nothing of the positive trait is gone, by the worse of the
    two. dose: how much of the positive trait returns over the doses of rephrasing (stats.trend), and the suppression of the
    negative one at the largest. grow, shrink: how much the suppression rises, or falls, over the sizes of data (stats.trend).
    solves: how much more than half of what training closes the prompt alone has closed, and how much less is learned. spreads:
    how far training moves a trait per unit of the positive one. measured (elsewhere), unknown (unpublished): as `told`.
    Several parts are averaged; with `every`, the lowest interval decides.
    """

    name: str
    kind: str
    conditions: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    traits: tuple[str, ...] = ()
    context: str = ""
    every: bool = False
    told: str = ""

    def __str__(self) -> str:
        if self.told:
            return self.told
        what = f"{self.kind.replace('_', ' ')}: {', '.join(self.conditions)}"
        what += f", minus {', '.join(self.minus)}" if self.minus else ""
        traits = f"; {'each of ' if self.every else ''}{' and '.join(self.traits)}" if self.traits else ""
        return f"{what}{traits}{'; context ' * bool(self.context)}{self.context}"


def student(values: Sequence[float]) -> Interval:
    """The mean over seeds with its Student t interval; NaN values are left out.

    No interval from fewer than two seeds, nor from seeds that are all equal: they show no spread to measure it by.
    """
    known, fault = _usable(values)
    if fault:
        return Interval(_mean(known), math.nan, math.nan, len(known), fault)
    half = _quantile(len(known)) * known.std(ddof=1) / math.sqrt(len(known))
    return Interval(known.mean(), known.mean() - half, known.mean() + half, len(known), STUDENT)


def prediction(values: Sequence[float], new: int = 1) -> Interval:
    """Where the mean over `new` further seeds is expected: mean ± t s sqrt(1/new + 1/n), the normal prediction interval."""
    known, fault = _usable(values)
    if fault:
        return Interval(_mean(known), math.nan, math.nan, len(known), fault)
    half = _quantile(len(known)) * known.std(ddof=1) * math.sqrt(1 / new + 1 / len(known))
    return Interval(known.mean(), known.mean() - half, known.mean() + half, len(known), f"prediction for {new} new seeds")


def in_words(seeds: Any) -> str:
    """What a caption says about numbers of seeds (a Series) and intervals, and why where there is none."""
    if seeds.empty:
        return "Nothing could be computed."
    many = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    if seeds.max() < 2:
        return "n = 1 seed: no interval is drawn, since one seed shows no spread."
    few = " Where there is one seed, no interval is drawn." if seeds.min() < 2 else ""
    return f"n = {many} seeds; lines: 95 % {STUDENT}, on these questions.{few}"


def p_value(values: Sequence[float]) -> float:
    """Two-sided p of the one-sample t test that the mean over seeds is 0; NaN where `student` has no interval."""
    from scipy.special import stdtr

    known, fault = _usable(values)
    if fault:
        return math.nan
    t = known.mean() / (known.std(ddof=1) / math.sqrt(len(known)))
    return float(2 * stdtr(len(known) - 1, -abs(t)))


def share(numerator: Sequence[float], denominator: Sequence[float], scale: str = "the scale") -> tuple[np.ndarray, str]:
    """The ratio of two means, paired within seed, as one value per seed whose mean is that ratio.

    A seed's value is R + (numerator - R * denominator) / mean(denominator), R the ratio of the means: the linearised ratio
    estimator (Cochran, Sampling Techniques, chapter 6), so that sums of shares with different denominators stay sums and
    `student` applies. Returns (values, ""), or (all NaN, the reason, which names the `scale`) when the denominator's interval
    touches 0.
    """
    top, bottom = np.asarray(numerator, float), np.asarray(denominator, float)
    size = student(bottom)
    paired = ~np.isnan(top) & ~np.isnan(bottom)
    top, bottom = np.where(paired, top, np.nan), np.where(paired, bottom, np.nan)
    nothing = np.full(top.shape, np.nan)
    if not paired.any():
        return nothing, "no seed has all the values"
    if size.touches_zero:
        return nothing, f"{scale}, {size.estimate:.3g}, is not distinguishable from 0 with {size.n} seeds"
    ratio = np.nanmean(top) / np.nanmean(bottom)
    return ratio + (top - ratio * bottom) / np.nanmean(bottom), ""


def trend(doses: Sequence[float], values: np.ndarray) -> np.ndarray:
    """How far values rise over the whole range of doses: the least-squares slope on log(dose) times that range, by seed.

    doses: (doses,), above 0. values: (doses, seeds). Returns (seeds,), NaN where a seed lacks a dose.
    """
    x = np.log(np.asarray(doses, float))
    x -= x.mean()
    return (x @ values) / (x @ x) * np.ptp(x)


def correlation(x: Sequence[float], y: Sequence[float], prompts: Sequence[str], seed: int = 0) -> Interval:
    """Pearson's r of two values per prompt (and trait), with a percentile interval over prompts; n counts prompts.

    Prompts are resampled whole, as the traits that one prompt moves are no independent points. NaN pairs are left out. No
    interval from fewer than five prompts, nor where one side does not vary.
    """
    pairs, names = np.array([x, y], float), np.asarray(prompts)
    known = ~np.isnan(pairs).any(axis=0)
    pairs, names = pairs[:, known], names[known]
    groups = [np.flatnonzero(names == name) for name in dict.fromkeys(names)]
    if len(groups) < FEWEST_PROMPTS or (np.ptp(pairs, axis=1) == 0).any():
        return Interval(math.nan, math.nan, math.nan, len(groups), f"{len(groups)} prompts, or values that do not vary")
    rng = np.random.default_rng(seed)
    draws = [np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]) for _ in range(RESAMPLES)]
    found = np.array([_pearson(pairs[:, draw]) for draw in draws])
    return Interval(_pearson(pairs), *_percentiles(found[~np.isnan(found)]), len(groups), OVER_PROMPTS)


def _pearson(pairs: np.ndarray) -> float:
    x, y = pairs - pairs.sum(axis=1, keepdims=True) / pairs.shape[1]
    scale = math.sqrt((x @ x) * (y @ y))
    return x @ y / scale if scale else math.nan


def foretold(x: np.ndarray, y: Sequence[float], groups: Sequence[str]) -> np.ndarray:
    """Each group's y as the other groups foretell it: least squares of y on x and a constant, fitted without the group.

    x: (points, predictors), with none the mean. Returns (points,).
    """
    given, names, found = np.column_stack([np.ones(len(y)), x]), np.asarray(groups), np.full(len(y), np.nan)
    for name in dict.fromkeys(names):
        out = names == name
        found[out] = given[out] @ np.linalg.lstsq(given[~out], np.asarray(y, float)[~out], rcond=None)[0]
    return found


def wilson(hits: int, n: int) -> Interval:
    """One proportion with its Wilson score interval (Wilson 1927); 0 of 0 has neither."""
    from scipy.stats import binomtest

    if not n:
        return Interval(math.nan, math.nan, math.nan, 0, "nothing was counted")
    low, high = binomtest(hits, n).proportion_ci(LEVEL, "wilson")
    return Interval(hits / n, float(low), float(high), n, "Wilson")


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p values adjusted by Holm's step-down rule (Holm 1979); NaN values are not tests and stay NaN."""
    given = np.asarray(p_values, float)
    adjusted = np.full(given.shape, np.nan)
    tests = [i for i in np.argsort(given) if not math.isnan(given[i])]
    # Adjusted values must not fall as p rises.
    worst = 0.0
    for rank, i in enumerate(tests):
        worst = max(worst, min(1.0, (len(tests) - rank) * given[i]))
        adjusted[i] = worst
    return adjusted


def max_test(values: np.ndarray) -> tuple[int, float]:
    """Is at least one column's mean above 0? Which one is largest, and the p value corrected for having looked at all.

    values: (seeds, columns). All 2**seeds sign flips of whole seeds are enumerated (a one-sided max-statistic permutation
    test; Westfall and Young 1993), so p is at least 1/2**seeds. NaN below two complete seeds.
    """
    # Whole seeds are flipped, so that columns which share a baseline stay as correlated as they are.
    whole = values[~np.isnan(values).any(axis=1)]
    if len(whole) < 2:
        return -1, math.nan
    flips = np.array(list(itertools.product((1, -1), repeat=len(whole))))
    largest = (flips @ whole / len(whole)).max(axis=1)
    # The observed data are one of the flips; rounding must not make them smaller than themselves.
    return int(whole.mean(axis=0).argmax()), float(np.mean(largest >= largest[0] - 1e-12))


def question_bootstrap(values: np.ndarray, seed: int = 0) -> Interval:
    """The mean of (seeds, questions) with a percentile interval over questions: what other questions would have changed.

    It says nothing about other seeds, so it is reported apart and never as a contrast's interval. A question that no seed has
    a value for does not count.
    """
    questions = np.nanmean(values[:, ~np.isnan(values).all(axis=0)], axis=0)
    if len(questions) < 2:
        return Interval(_mean(questions), math.nan, math.nan, len(questions), "fewer than two questions")
    draws = np.random.default_rng(seed).integers(len(questions), size=(RESAMPLES, len(questions)))
    return Interval(questions.mean(), *_percentiles(questions[draws].mean(axis=1)), len(questions), MEASUREMENT)


def detectable(values: Sequence[float]) -> float:
    """The smallest true mean that as many seeds of this spread would have told from 0 in four of five repetitions.

    (t(0.975) + t(0.8)) s / sqrt(n), Student's t with n - 1 degrees of freedom, as is usual; NaN from fewer than two seeds.
    """
    known, fault = _usable(values)
    tails = _quantile(len(known)) + _quantile(len(known), POWER)
    return math.nan if fault else tails * known.std(ddof=1) / len(known) ** 0.5


def is_saturated(rate: float) -> bool:
    """Whether a rate is so near an end of its scale that it hides differences."""
    return bool(rate > 1 - SATURATED or rate < SATURATED)


def matched(first: np.ndarray, second: np.ndarray, points: int = 5) -> float:
    """How much higher `first` is than `second` out of distribution at equal in-distribution values (design decision 8).

    Each is one training's path, shape (steps, 2): in-distribution and out-of-distribution margin at each logged step. Both are
    made monotone in distribution, interpolated linearly at `points` values that both reach, and the differences averaged. NaN
    where the paths share no range.
    """
    paths = [(np.maximum.accumulate(path[:, 0]), path[:, 1]) for path in (first, second)]
    low, high = max(x[0] for x, _ in paths), min(x[-1] for x, _ in paths)
    if not low < high:
        return math.nan
    at = np.linspace(low, high, points)
    (x1, y1), (x2, y2) = paths
    return float(np.mean(np.interp(at, x1, y1) - np.interp(at, x2, y2)))


def beyond_placebo(contrast: Interval, placebo: Interval, matched: Interval) -> tuple[bool, str]:
    """Whether a contrast of margins counts as its trait and not as register, and why not (design decisions 7 and 8).

    Its interval must exclude 0 and meet nothing of the placebo's, which must not have moved further, and matched signs agree.
    """
    if not (contrast.known and placebo.known):
        return False, contrast.rule if not contrast.known else placebo.rule
    if contrast.touches_zero:
        return False, "the interval includes 0"
    meets = contrast.low <= placebo.high and placebo.low <= contrast.high
    if meets or placebo.estimate * contrast.estimate >= contrast.estimate**2:
        return False, "the interval is not beyond the placebo's: the change may be one of register"
    if not matched.estimate * contrast.estimate > 0:
        return False, "at matched in-distribution margin the sign is another, or nothing matches"
    return True, "beyond 0, beyond the placebo, and alike at matched in-distribution margin"


def agreement(first: Sequence[float], second: Sequence[float], clusters: Sequence[str]) -> dict[str, Any]:
    """How far two raters of the same items agree: n, alpha, same_side and shift; items with a NaN are left out.

    alpha: Krippendorff's for interval data, 1 for agreement and 0 for chance (inspect-ai computes it). same_side: the share of
    items that both put on the same side of 0.5. shift: second minus first, an Interval over the clusters' means, as versions of
    one content, or answers to one question, are no independent items.
    """
    from inspect_ai.scorer import SampleScore, Score, krippendorff_alpha

    values, names = np.array([first, second], float), np.asarray(clusters)
    known = ~np.isnan(values).any(axis=0)
    values, names = values[:, known], names[known]
    gaps = [np.diff(values[:, names == name], axis=0).mean() for name in dict.fromkeys(names)]
    rated = [SampleScore(score=Score(value=pair)) for pair in values.T.tolist()]
    same = float(np.equal(*(values > 0.5)).mean()) if known.any() else math.nan
    alpha = krippendorff_alpha("interval")(rated)
    return {"n": int(known.sum()), "alpha": alpha, "same_side": same, "shift": student(gaps)}


def decide(effect: Effect, p: float, rule: Rule) -> tuple[str, str]:
    """The verdict and its reason: the one rule of every claim (design decision 8)."""
    interval = effect.interval
    if interval.n == 0:
        return "not testable", effect.fault or "no seed has all the conditions of the contrast"
    if not interval.known:
        return "Inconclusive", interval.rule
    if interval.n < rule.seeds:
        return "Inconclusive", f"{interval.n} seeds; a verdict needs {rule.seeds}"
    # Before the p value: a difference too small to matter is No, however certain it is.
    if interval.inside(rule.none_within):
        return "No", f"the interval lies inside ±{rule.none_within}"
    if p >= rule.level:
        return (
            "Inconclusive",
            f"Holm-adjusted p {p:.3f} is not below {rule.level}, and the interval is not inside ±{rule.none_within}",
        )
    if effect.doubt:
        return "Inconclusive", f"Holm-adjusted p {p:.3f}, but {effect.doubt}"
    if interval.estimate < 0:
        return "Opposite", f"below 0, Holm-adjusted p {p:.3f}"
    size = "Strong" if interval.estimate >= rule.strong else "Moderate" if interval.estimate >= rule.moderate else "Weak"
    return size, f"above 0, Holm-adjusted p {p:.3f}; Strong from {rule.strong}, Moderate from {rule.moderate}"


def _usable(values: Sequence[float]) -> tuple[np.ndarray, str]:
    known = (every := np.asarray(values, float))[~np.isnan(every)]
    if len(known) < 2:
        return known, f"no interval: {len(known)} seed{'s' * (len(known) != 1)}, and two are the least that show a spread"
    # Tables hold six digits: what differs beyond them is no spread either.
    if np.ptp(known) <= 1e-5 * max(1, abs(known).max()):
        return known, f"no interval: all {len(known)} seeds are equal"
    return known, ""


def _percentiles(means: np.ndarray) -> tuple[float, float]:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _quantile(n: int, share: float = 0.5 + LEVEL / 2) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, share))
