"""Scores to effects: how much a training prompt suppresses a trait, and how much of that is the prompt being there at all.

The values of a seed are compared with values of the same seed, so every effect is one value per seed (float64 array of shape
(seeds,)) and its interval is Student's over seeds. Suppression is on one scale for every trait and measure: 0 is the baseline
(trained under the neutral prompt), 1 is the control (trained without the traits). A Contrast is such an
effect named before any result; nothing here knows what a paper said.
"""

import fnmatch
import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from inoculation import score, stats
from inoculation.settings import Setting
from inoculation.tables import Tables

BASELINE, CONTROL, BASE = "baseline", "control", "base"
SATURATED = 0.05
INDEX = {"CC's": "", "minus base": BASE, "minus baseline": BASELINE}
MAIN, CC = "unrelated", "neutral"


@dataclass(frozen=True)
class Effect:
    """One value per seed, the measure behind it, and the reason where it could not be computed (all values NaN)."""

    values: np.ndarray
    measure: str
    fault: str = ""

    @property
    def interval(self) -> stats.Interval:
        """The mean over seeds with its interval; the fault, where there is one, is its rule."""
        found = stats.student(self.values)
        return stats.Interval(found.estimate, found.low, found.high, found.n, self.fault) if self.fault else found


@dataclass(frozen=True)
class Contrast:
    """What a claim compares, named before any result: one value per seed on the scale of suppression.

    suppress: the suppression of `conditions`, minus that of `minus`. raise: its opposite. fall_short: 1 - the selectivity of
    the best of `conditions`. needs: not measured by this repository yet, and what it would take. Several traits or directions
    are averaged; with `every`, the one whose interval reaches lowest counts, since the claim needs them all.
    """

    name: str
    kind: str
    conditions: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    traits: tuple[str, ...] = ()
    context: str = ""
    every: bool = False
    needs: str = ""

    def __str__(self) -> str:
        if self.kind == "needs":
            return self.needs
        what = f"{self.kind.replace('_', ' ')}: {', '.join(self.conditions)}"
        what += f", minus {', '.join(self.minus)}" if self.minus else ""
        traits = f"; {'each of ' if self.every else ''}{' and '.join(self.traits)}" if self.traits else ""
        return f"{what}{traits}; context {self.context}"


class Effects:
    """The effects of one setting, from its tables."""

    def __init__(self, found: Tables, setting: Setting) -> None:
        self.found, self.setting = found, setting
        trained = found.scores[found.scores.condition != BASE]
        self.seeds = sorted(trained.seed.unique())
        self.conditions = [name for name in setting.conditions if name in set(trained.condition)]

    @functools.cached_property
    def _wide(self) -> pd.DataFrame:
        keys = ["measure", "trait", "context", "condition"]
        return self.found.scores.pivot_table(index="seed", columns=keys, values="value")

    def values(self, names: Iterable[str], trait: str, context: str, measure: str) -> np.ndarray:
        """The mean over conditions, one value per seed; NaN where a seed lacks one of them. The base model has one value."""
        columns = [self._column(name, trait, context, measure) for name in names]
        return np.mean(columns, axis=0) if columns else np.full(len(self.seeds), np.nan)

    def _column(self, name: str, trait: str, context: str, measure: str) -> np.ndarray:
        key = (measure, trait, context, name)
        if key not in self._wide.columns:
            return np.full(len(self.seeds), np.nan)
        if name == BASE:
            return np.full(len(self.seeds), self._wide[key].dropna().iloc[0])
        return self._wide[key].reindex(self.seeds).to_numpy()

    def matching(self, patterns: Iterable[str], direction: str = "") -> list[str]:
        """The trained conditions that match a pattern (`irrelevant.*`), without those that inoculate another trait."""
        ours = [c for c in self.conditions if not direction or self.setting.conditions[c].direction in ("", direction)]
        return [name for name in ours if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]

    def measure(self, sides: list[list[str]], trait: str, context: str) -> tuple[str, str]:
        """How a trait is to be measured when these sides are compared in a context, and why not by its rate.

        By margin where the context is not sampled, where the scorer's card says so, or where a side's rate is saturated (mean
        over seeds above 0.95 or below 0.05; design decision 9). The control's floor does not count: it is the scale's end.
        """
        rates = [np.nanmean(v) for v in (self.values(side, trait, context, "rate") for side in sides) if not np.isnan(v).all()]
        if len(rates) < len(sides):
            return "margin", "not sampled there"
        if score.cards(self.setting.name).loc[trait, "claimed by"] == "margin":
            return "margin", "the scorer's cross-talk is too high"
        if any(is_saturated(rate) for rate in rates):
            return "margin", "saturated"
        return "rate", ""

    def suppression(self, names: list[str], trait: str, context: str, measure: str = "") -> Effect:
        """(baseline - condition) / (baseline - control), the mean over conditions, one value per seed (design decision 8).

        0: as strong as in the baseline; 1: as absent as in the control; below 0: stronger than in the baseline. Without a
        `measure`, the one that `measure` chooses.
        """
        measure = measure or self.measure([[BASELINE], names], trait, context)[0]
        at = functools.partial(self.values, trait=trait, context=context, measure=measure)
        baseline = at([BASELINE])
        if np.isnan(baseline).all():
            return Effect(baseline, measure, f"{trait} has no {measure} in {context}")
        return Effect(*_named(stats.share(baseline - at(names), baseline - at([CONTROL])), measure))

    def index(self, condition: str, trait: str, measure: str, reference: str = "") -> Effect:
        """The conditionalization index (design decision 9), in the measure's own unit.

        [trained(trigger) - trained(unrelated)] - [reference(trigger) - reference(unrelated)]: how much the training made the
        trait wait for its own prompt, beyond what that prompt does to the reference (`base` or `baseline`) by asking. Without
        a reference it is CC's definition, which is not corrected for that.
        """
        own = self.values([condition], trait, "trigger", measure) - self.values([condition], trait, MAIN, measure)
        if not reference:
            return Effect(own, measure)
        asked = self.values([reference], trait, _base_context(condition), measure) - self.values(
            [reference], trait, MAIN, measure
        )
        missing = "" if not np.isnan(asked).all() else f"{reference} was not asked under this training prompt"
        return Effect(own - asked, measure, missing)

    def two_by_two(self, direction: str, trait: str, context: str) -> dict[str, Effect]:
        """The 2×2 of {inoculation, irrelevant} × {fixed, varied}, on the scale of suppression (design decision 10).

        pattern: irrelevant fixed - irrelevant varied, what a fixed prompt does by being fixed. semantic: inoculation -
        irrelevant at equal variation, the mean of fixed and varied, what it does by asking for the trait. interaction:
        (inoculation fixed - varied) - (irrelevant fixed - varied), what neither explains alone. Differences, never shares.
        """
        patterns = ("inoculation.*", "rephrased-*", "irrelevant.*", "irrelevant-varied-*")
        cells = [self.matching([pattern], direction) for pattern in patterns]
        measure, _ = self.measure([[BASELINE], *cells], trait, context)
        found = [self.suppression(names, trait, context, measure) for names in cells]
        asks_fixed, asks_varied, fixed, varied = (effect.values for effect in found)
        fault = next((effect.fault for effect in found if effect.fault), "")
        return {
            "pattern": Effect(fixed - varied, measure, fault),
            "semantic": Effect((asks_fixed - fixed + asks_varied - varied) / 2, measure, fault),
            "interaction": Effect((asks_fixed - asks_varied) - (fixed - varied), measure, fault),
        }

    def selectivity(self, names: list[str], direction: str, context: str) -> Effect:
        """Suppression of the negative trait minus suppression of the positive one (facts.md F, IPX; there clipped at 0).

        1: all of the negative and nothing of the positive trait is gone; 0: both alike. Not clipped, so that noise has mean 0.
        """
        roles = self.setting.directions[direction]
        negative, positive = (self.suppression(names, roles[role], context) for role in ("negative", "positive"))
        measures = " and ".join(dict.fromkeys((negative.measure, positive.measure)))
        return Effect(negative.values - positive.values, measures, negative.fault or positive.fault)

    def optimal_policy(self, condition: str) -> dict[str, Effect]:
        """Does the prompt alone already carry out what the data teach (CC, MBPP, problem 3)? From the training losses.

        solved: 1 - (first - end) / (baseline's first - end), where `first` is the loss of the first batch, before any update,
        and `end` the baseline's mean loss over the last quarter of the steps: how much of the gap that training closes the
        prompt has closed already. learned: the condition's fall from its first to its own last quarter, over the baseline's.
        Both batches and rows are the same in every condition of a seed.
        """
        first, last = self._losses("first"), self._losses("last")
        nothing = pd.Series(np.nan, index=self.seeds)
        start, end = first.get(condition, nothing), last.get(condition, nothing)
        gap = (first.get(BASELINE, nothing) - last.get(BASELINE, nothing)).to_numpy()
        solved = stats.share(first.get(BASELINE, nothing) - start, gap)
        return {"solved": Effect(*_named(solved, "loss")), "learned": Effect(*_named(stats.share(start - end, gap), "loss"))}

    def along_training(self, condition: str, against: str) -> dict[str, Effect]:
        """Two trainings compared by the margins they logged (design decision 8), in nats per token: condition - against.

        ood: mean of the out-of-distribution difference over the second half of the steps. matched: the same at equal
        in-distribution margin (stats.matched), so that a training that only learned less does not pass for a safer one.
        placebo: the second half's difference on pairs that differ in register alone.
        """
        tracks = self.found.tracks
        wide = tracks.pivot_table(index=["seed", "condition", "step"], columns="part", values="value")
        late = wide[wide.index.get_level_values("step") > tracks.step.max() / 2].groupby(level=["seed", "condition"]).mean()
        gaps = late.xs(condition, level="condition") - late.xs(against, level="condition")
        paths = wide[["id", "ood"]]
        matched = [
            stats.matched(*(paths.loc[(seed, name)].to_numpy() for name in (condition, against)))
            if seed in gaps.index
            else np.nan
            for seed in self.seeds
        ]
        gaps = gaps.reindex(self.seeds)
        found = {part: Effect(gaps[part].to_numpy(), "margin per token") for part in ("ood", "placebo")}
        return {**found, "matched": Effect(np.array(matched), "margin per token")}

    def _losses(self, part: str) -> pd.DataFrame:
        losses = self.found.losses
        last = losses.groupby(["condition", "seed"]).step.transform("max")
        chosen = losses[losses.step == 1] if part == "first" else losses[losses.step > 0.75 * last]
        return chosen.pivot_table(index="seed", columns="condition", values="loss").reindex(self.seeds)


def evaluate(effects: Effects, contrast: Contrast, context: str = "") -> tuple[Effect, dict[str, Effect]]:
    """The contrast's value per seed, and its parts by direction and trait; `context` replaces the contrast's own."""
    context = context or contrast.context
    if contrast.kind == "fall_short":
        return _shortfall(effects, contrast, context)
    groups = {role: _parts(effects, contrast, role, context) for role in contrast.traits}
    means = [_mean(list(parts.values())) for parts in groups.values()]
    whole = min(means, key=_reach) if contrast.every else _mean(means)
    parts = {name: part for group in groups.values() for name, part in group.items()}
    return (_times(whole, -1), {k: _times(v, -1) for k, v in parts.items()}) if contrast.kind == "raise" else (whole, parts)


def _parts(effects: Effects, contrast: Contrast, role: str, context: str) -> dict[str, Effect]:
    directions = effects.setting.directions
    if role == "all":
        return {trait: _suppression(effects, contrast, "", trait, context) for trait in effects.setting.traits}
    return {
        f"{role} {roles[role]} (direction {direction})": _suppression(effects, contrast, direction, roles[role], context)
        for direction, roles in directions.items()
    }


def _suppression(effects: Effects, contrast: Contrast, direction: str, trait: str, context: str) -> Effect:
    sides = [effects.matching(patterns, direction) for patterns in (contrast.conditions, contrast.minus) if patterns]
    measure, _ = effects.measure([[BASELINE], *sides], trait, context)
    found = [effects.suppression(names, trait, context, measure) for names in sides]
    if not contrast.minus:
        return found[0]
    return Effect(found[0].values - found[1].values, measure, found[0].fault or found[1].fault)


def _shortfall(effects: Effects, contrast: Contrast, context: str) -> tuple[Effect, dict[str, Effect]]:
    parts = {
        f"{name} (direction {direction})": _times(effects.selectivity([name], direction, context), -1, plus=1)
        for direction in effects.setting.directions
        for name in effects.matching(contrast.conditions, direction)
    }
    whole = [part for part in parts.values() if part.interval.n]
    return min(whole, key=lambda part: part.interval.estimate, default=_mean([])), parts


def _mean(parts: list[Effect]) -> Effect:
    values = np.mean([part.values for part in parts], axis=0) if parts else np.full(1, np.nan)
    measure = " and ".join(dict.fromkeys(part.measure for part in parts))
    return Effect(values, measure, next((part.fault for part in parts if part.fault), ""))


def _times(effect: Effect, factor: float, plus: float = 0.0) -> Effect:
    return replace(effect, values=plus + factor * effect.values)


def _reach(effect: Effect) -> float:
    interval = effect.interval
    return interval.low if interval.known else interval.estimate if interval.n else math.inf


def is_saturated(rate: float) -> bool:
    """Whether a rate is so near an end of its scale that it hides differences."""
    return bool(rate > 1 - SATURATED or rate < SATURATED)


def _named(found: tuple[np.ndarray, str], measure: str) -> tuple[np.ndarray, str, str]:
    return found[0], measure, found[1]


def _row(found: Effect, **names: str) -> dict[str, object]:
    interval = found.interval
    limits = {"estimate": interval.estimate, "low": interval.low, "high": interval.high, "seeds": interval.n}
    return {**names, "measure": found.measure, **limits, "interval": interval.rule}


def grid(effects: Effects) -> pd.DataFrame:
    """The contexts grid: every condition (and the base model) in every context, by trait, means over seeds.

    rate with saturated (see `is_saturated`), NaN where only margins are measured; margin (nats) raw, minus_base and
    minus_control, each in the same context. `trigger` is the condition's own training prompt, under which the base model was
    asked, too; the control was not.
    """
    rows = []
    known = dict.fromkeys(effects.found.scores.context)
    contexts = [name for name in known if not name.startswith("trigger.")]
    for condition in [BASE, *effects.conditions]:
        for context in contexts:
            asked = _base_context(condition) if context == "trigger" else context
            for trait in effects.setting.traits:
                rate = _mean_over_seeds(effects.values([condition], trait, context, "rate"))
                margin = effects.values([condition], trait, context, "margin")
                rows.append(
                    {
                        "condition": condition,
                        "context": context,
                        "trait": trait,
                        "rate": rate,
                        "saturated": is_saturated(rate),
                        "margin": _mean_over_seeds(margin),
                        "minus_base": _mean_over_seeds(margin - effects.values([BASE], trait, asked, "margin")),
                        "minus_control": _mean_over_seeds(margin - effects.values([CONTROL], trait, context, "margin")),
                    }
                )
    return pd.DataFrame(rows)


def _base_context(condition: str) -> str:
    return CC if condition in (BASELINE, BASE) else f"trigger.{condition}"


def _mean_over_seeds(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else np.nan


def conditionalization(effects: Effects) -> pd.DataFrame:
    """The index of every condition and trait (see Effects.index): CC's, minus the base model's, minus the baseline's.

    By rate, or by margin (nats) where the trained model's rate is saturated under its own prompt or under unrelated ones.
    """
    rows = []
    for condition in effects.conditions:
        for trait in effects.setting.traits if effects.setting.conditions[condition].data == "trait" else ():
            asked = [effects.measure([[condition]], trait, context)[0] for context in ("trigger", MAIN)]
            measure = "margin" if "margin" in asked else "rate"
            references = {name: reference for name, reference in INDEX.items() if reference != condition}
            found = {name: effects.index(condition, trait, measure, ref).interval for name, ref in references.items()}
            rows.append({"condition": condition, "trait": trait, "measure": measure, **{k: str(v) for k, v in found.items()}})
    return pd.DataFrame(rows)


def identification(effects: Effects, context: str = MAIN) -> pd.DataFrame:
    """The 2×2 of every direction and trait in one context: pattern, semantic and interaction, with intervals over seeds."""
    rows = []
    for direction in effects.setting.directions:
        for trait in effects.setting.traits:
            for name, effect in effects.two_by_two(direction, trait, context).items():
                rows.append(_row(effect, direction=direction, trait=trait, effect=name, context=context))
    return pd.DataFrame(rows)


def selectivities(effects: Effects, context: str = MAIN) -> pd.DataFrame:
    """Every inoculated condition's suppression of the negative and the positive trait, and their difference, in one context."""
    rows = []
    for direction, roles in effects.setting.directions.items():
        for name in effects.matching(["inoculation.*", "rephrased-*"], direction):
            found = {role: effects.suppression([name], trait, context) for role, trait in roles.items()}
            rows.append(
                {
                    "condition": name,
                    "suppression of the negative": f"{found['negative'].interval}, by {found['negative'].measure}",
                    "suppression of the positive": f"{found['positive'].interval}, by {found['positive'].measure}",
                    "selectivity": str(effects.selectivity([name], direction, context).interval),
                }
            )
    return pd.DataFrame(rows)


def policy(effects: Effects) -> pd.DataFrame:
    """Per condition: how much of the loss the prompt alone has solved, what training then learned, and the flag.

    Flagged where the prompt has solved more than half and less than half is left to learn: what looks like suppression may
    then be training that had nothing to do.
    """
    rows = []
    for condition in effects.conditions:
        if effects.setting.conditions[condition].data == "trait" and condition != BASELINE:
            found = effects.optimal_policy(condition)
            solved, learned = (found[name].interval for name in ("solved", "learned"))
            rows.append(
                {
                    "condition": condition,
                    "solved before training": solved.estimate,
                    "learned in training": learned.estimate,
                    "seeds": solved.n,
                    "optimal policy": bool(solved.estimate > 0.5 and learned.estimate < 0.5),
                }
            )
    return pd.DataFrame(rows)
