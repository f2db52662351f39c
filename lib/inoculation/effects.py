"""Scores to effects: how much a training prompt suppresses a trait, and how much of that is the prompt being there at all.

The values of a seed are compared with values of the same seed, so every effect is one value per seed (float64 array of shape
(seeds,)) and its interval is Student's over seeds. Suppression is on one scale for every trait and measure: 0 is the baseline
(trained under the neutral prompt), 1 is the control (trained without the traits). A Contrast is such an effect named before
any result; nothing here knows what a paper said.
"""

import fnmatch
import functools
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from inoculation import score, stats
from inoculation.settings import Setting, load_profile
from inoculation.stats import Effect, is_saturated
from inoculation.tables import Tables

BASELINE, CONTROL, BASE = "baseline", "control", "base"
INDEX = {"CC's": "", "minus base": BASE, "minus baseline": BASELINE}
MAIN, CC = "unrelated", "neutral"
CORE = (CC, "trigger", MAIN, "id")


@dataclass(frozen=True)
class Contrast:
    """What a claim compares, named before any result: one value per seed on the scale of suppression.

    suppress: the suppression of `conditions`, minus that of `minus`. raise: its opposite. fall_short: how far the best of
    `conditions` is from the corner where all of the negative and nothing of the positive trait is gone, by the worse of the
    two. dose: how much of the positive trait returns over the doses of rephrasing (stats.trend), and the suppression of the
    negative one at the largest. needs: what it would take, where it is not measured yet. Several parts are averaged; with
    `every`, the one whose interval reaches lowest counts, since the claim needs them all.
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
        self.planned = [c.name for profile in found.scores.profile.unique() for c in setting.in_profile(profile)]

    @functools.cached_property
    def _wide(self) -> pd.DataFrame:
        keys = ["measure", "trait", "context", "condition"]
        return self.found.scores.pivot_table(index="seed", columns=keys, values="value")

    def values(self, name: str, trait: str, context: str, measure: str) -> np.ndarray:
        """A condition's values, one per seed, NaN where a seed lacks it; the base model's one value stands for every seed."""
        key = (measure, trait, context, name)
        if key not in self._wide.columns:
            return np.full(len(self.seeds), np.nan)
        if name == BASE:
            return np.full(len(self.seeds), self._wide[key].dropna().iloc[0])
        return self._wide[key].reindex(self.seeds).to_numpy()

    def matching(self, patterns: Iterable[str], direction: str = "") -> list[str]:
        """The profile's conditions that match a pattern (`irrelevant.*`), without those that inoculate another trait.

        Of several doses of one kind, the largest. Whether they were run or not: what a contrast compares must not depend on
        what happens to be there.
        """
        found = [self.setting.conditions[name] for name in self.every_dose(patterns, direction)]
        doses = {(c.kind, c.direction, c.size) for c in found}
        return [c.name for c in found if not any((c.kind, c.direction) == d[:2] and d[2] > c.size for d in doses)]

    def every_dose(self, patterns: Iterable[str], direction: str = "") -> list[str]:
        """As `matching`, but with all doses of a kind."""
        ours = [c for c in self.planned if not direction or self.setting.conditions[c].direction in ("", direction)]
        return [name for name in ours if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]

    def doses(self, names: Iterable[str]) -> dict[str, int]:
        """How many unique prompts a training of each condition sees: its pool's size, and at most one a row."""
        recipe = load_profile(self.found.scores.profile.iloc[0], self.setting).train
        rows = recipe["steps"] * recipe["batch_size"] * recipe["accumulation"]
        return {name: min(rows, self.setting.conditions[name].size) for name in names}

    def measure(self, names: list[str], trait: str, context: str) -> str:
        """How a trait is to be measured when these conditions are compared in a context: `rate` or `margin`.

        By margin where the context is not sampled, where the scorer's card says so, or where one of the cells is saturated
        (mean over seeds above 0.95 or below 0.05; design decision 9). The control's floor does not count: it ends the scale.
        """
        cells = [stats.student(self.values(name, trait, context, "rate")).estimate for name in names]
        moved = score.cards(self.setting.name).loc[trait, "claimed by"] == "margin"
        return "margin" if moved or any(math.isnan(cell) or is_saturated(cell) for cell in cells) else "rate"

    def suppression(self, names: list[str], trait: str, context: str, measure: str = "") -> Effect:
        """(baseline - condition) / (baseline - control), the mean over conditions, one value per seed (design decision 8).

        0: as strong as in the baseline; 1: as absent as in the control; below 0: stronger than in the baseline. Without a
        `measure`, the one that `measure` chooses. Every condition must have been run.
        """
        wanted = [BASELINE, CONTROL, *names]
        missing = [name for name in wanted if name not in self.conditions]
        measure = measure or self.measure([BASELINE, *names], trait, context)
        at = {name: self.values(name, trait, context, measure) for name in wanted}
        nothing = np.full(len(self.seeds), np.nan)
        if missing or not names:
            return Effect(
                nothing, f"not run: {', '.join(missing)}" if missing else "the profile has no such condition", measure
            )
        if np.isnan(at[BASELINE]).all():
            return Effect(nothing, f"{trait} has no {measure} in {context}", measure)
        mean = np.mean([at[name] for name in names], axis=0)
        scale = at[BASELINE] - at[CONTROL]
        return Effect(*stats.share(at[BASELINE] - mean, scale, "baseline minus control"), measure)

    def index(self, condition: str, trait: str, measure: str, reference: str = "") -> Effect:
        """The conditionalization index (design decision 9), in the measure's own unit.

        [trained(trigger) - trained(unrelated)] - [reference(trigger) - reference(unrelated)]: how much the training made the
        trait wait for its own prompt, beyond what that prompt does to the reference (`base` or `baseline`) by asking. Without
        a reference it is CC's definition, which is not corrected for that.
        """
        own = self.values(condition, trait, "trigger", measure) - self.values(condition, trait, MAIN, measure)
        if not reference:
            return Effect(own, measure=measure)
        # The reference is asked under this condition's prompt, though it was never trained on it.
        under = functools.partial(self.values, reference, trait, measure=measure)
        asked = under(context=_base_context(condition)) - under(context=MAIN)
        missing = "" if not np.isnan(asked).all() else f"{reference} was not asked under this training prompt"
        return Effect(own - asked, missing, measure)

    def two_by_two(self, direction: str, trait: str, context: str) -> dict[str, Effect]:
        """The 2×2 of {inoculation, irrelevant} × {fixed, varied}, on the scale of suppression (design decision 10).

        pattern: irrelevant fixed - irrelevant varied, what a fixed prompt does by being fixed. semantic: inoculation -
        irrelevant at equal variation, the mean of fixed and varied, what it does by asking for the trait. interaction:
        (inoculation fixed - varied) - (irrelevant fixed - varied), what neither explains alone. Differences, never shares.
        """
        patterns = ("inoculation.*", "rephrased-*", "irrelevant.*", "irrelevant-varied-*")
        cells = [self.matching([pattern], direction) for pattern in patterns]
        measure = self.measure([BASELINE, *itertools.chain(*cells)], trait, context)
        found = [self.suppression(names, trait, context, measure) for names in cells]
        asks_fixed, asks_varied, fixed, varied = (effect.values for effect in found)
        fault = next((effect.fault for effect in found if effect.fault), "")
        return {
            "pattern": Effect(fixed - varied, found[2].fault or found[3].fault, measure),
            "semantic": Effect((asks_fixed - fixed + asks_varied - varied) / 2, fault, measure),
            "interaction": Effect((asks_fixed - asks_varied) - (fixed - varied), fault, measure),
        }

    def selectivity(self, names: list[str], direction: str, context: str) -> Effect:
        """Suppression of the negative trait minus suppression of the positive one (facts.md F, IPX; there clipped at 0).

        1: all of the negative and nothing of the positive trait is gone; 0: both alike. Not clipped, so that noise has mean 0.
        """
        roles = self.setting.directions[direction]
        negative, positive = (self.suppression(names, roles[role], context) for role in ("negative", "positive"))
        measures = " and ".join(dict.fromkeys((negative.measure, positive.measure)))
        return Effect(negative.values - positive.values, negative.fault or positive.fault, measures)

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
        closed = {"solved": first.get(BASELINE, nothing) - start, "learned": start - end}
        return {name: Effect(*stats.share(part, gap, "the baseline's fall"), "loss") for name, part in closed.items()}

    def _losses(self, part: str) -> pd.DataFrame:
        losses = self.found.losses
        last = losses.groupby(["condition", "seed"]).step.transform("max")
        chosen = losses[losses.step == 1] if part == "first" else losses[losses.step > 0.75 * last]
        return chosen.pivot_table(index="seed", columns="condition", values="loss").reindex(self.seeds)


def evaluate(effects: Effects, contrast: Contrast, bound: float, context: str = "") -> tuple[Effect, str, dict[str, Effect]]:
    """The contrast's value per seed, the part that decided it (none where parts are averaged), and its parts.

    context: replaces the contrast's own. bound: how large an effect must be to matter, for contrasts that every part decides.
    """
    context = context or contrast.context
    parts = _parts(effects, contrast, context)
    if not parts:
        return Effect(np.full(len(effects.seeds), np.nan), "the profile has no such condition"), "", parts
    if contrast.kind == "fall_short" or contrast.every:
        decides = min(parts, key=lambda name: _rank(parts[name], bound))
        return parts[decides], decides, parts
    values = np.mean([part.values for part in parts.values()], axis=0)
    measure = " and ".join(dict.fromkeys(part.measure for part in parts.values()))
    return Effect(values, next((part.fault for part in parts.values() if part.fault), ""), measure), "", parts


def _parts(effects: Effects, contrast: Contrast, context: str) -> dict[str, Effect]:
    if contrast.kind == "fall_short":
        return {
            f"{name} (direction {direction})": _from_corner(effects, name, roles, context)
            for direction, roles in effects.setting.directions.items()
            for name in effects.matching(contrast.conditions, direction)
        }
    if contrast.kind == "dose":
        return _over_doses(effects, contrast, context)
    return {
        f"{role} {trait} (direction {direction})" if direction else trait: _suppression(
            effects, contrast, direction, trait, context
        )
        for role, direction, trait in asked(contrast, effects.setting)
    }


def asked(contrast: Contrast, setting: Setting) -> list[tuple[str, str, str]]:
    """The (role, direction, trait) triples that a contrast asks about; no direction where it asks about all traits."""
    every = [("all", "", trait) for trait in setting.traits] if "all" in contrast.traits else []
    roles = [role for role in contrast.traits if role != "all"]
    return every + [(role, d, traits[role]) for role in roles for d, traits in setting.directions.items()]


def _suppression(effects: Effects, contrast: Contrast, direction: str, trait: str, context: str) -> Effect:
    sides = [effects.matching(patterns, direction) for patterns in (contrast.conditions, contrast.minus) if patterns]
    # Both sides by the same measure: a rate minus a margin would compare two scales.
    measure = effects.measure([BASELINE, *itertools.chain(*sides)], trait, context)
    found = [effects.suppression(names, trait, context, measure) for names in sides]
    values = found[0].values - found[1].values if contrast.minus else found[0].values
    return Effect(-values if contrast.kind == "raise" else values, next((f.fault for f in found if f.fault), ""), measure)


def _over_doses(effects: Effects, contrast: Contrast, context: str) -> dict[str, Effect]:
    found = {}
    for direction, roles in effects.setting.directions.items():
        doses = effects.doses(effects.every_dose(contrast.conditions, direction))
        names = sorted(doses, key=doses.get)
        both = {role: effects.measure([BASELINE, *names], trait, context) for role, trait in roles.items()}
        kept = [effects.suppression([name], roles["positive"], context, both["positive"]) for name in names]
        fault = next((part.fault for part in kept if part.fault), "") or "fewer than three doses" * (len(names) < 3)
        back = -stats.trend([doses[name] for name in names], np.array([part.values for part in kept])) if not fault else np.nan
        values = np.broadcast_to(back, len(effects.seeds)).astype(float)
        found[f"{roles['positive']} returns over the doses"] = Effect(values, fault, both["positive"])
        stays = effects.suppression(names[-1:], roles["negative"], context, both["negative"])
        found[f"{roles['negative']} stays suppressed at the largest"] = stays
    return found


def _from_corner(effects: Effects, name: str, roles: dict[str, str], context: str) -> Effect:
    gone = effects.suppression([name], roles["negative"], context)
    both = [replace(gone, values=1 - gone.values), effects.suppression([name], roles["positive"], context)]
    return next((part for part in both if part.fault), None) or max(both, key=lambda part: part.interval.estimate)


def _rank(part: Effect, bound: float) -> tuple[int, float]:
    """The order in which parts decide: the unknown first, then one that refutes, then the one that reaches lowest."""
    interval = part.interval
    if not interval.known:
        return (0, interval.estimate if interval.n else -math.inf)
    return (1 if interval.inside(bound) or interval.high < 0 else 2, interval.low)


def _row(found: Effect, **names: str) -> dict[str, object]:
    interval = found.interval
    limits = {"estimate": interval.estimate, "low": interval.low, "high": interval.high, "seeds": interval.n}
    return {**names, "measure": found.measure, **limits, "interval": interval.rule}


def grid(effects: Effects) -> pd.DataFrame:
    """The contexts grid: every condition (and the base model) in every context, by trait, means over seeds.

    rate with saturated (see `is_saturated`), NaN where only margins are measured; margin raw (in the trait's own unit),
    minus_base and minus_control, each in the same context. `trigger` is the condition's own training prompt, under which the
    base model was asked, too; the control was not.
    """
    rows = []
    known = dict.fromkeys(effects.found.scores.context)
    contexts = [name for name in known if not name.startswith("trigger.")]
    for condition in [BASE, *effects.conditions]:
        for context in contexts:
            asked = _base_context(condition) if context == "trigger" else context
            for trait in effects.setting.traits:
                rate = _over_seeds(effects.values(condition, trait, context, "rate"))
                margin = effects.values(condition, trait, context, "margin")
                rows.append(
                    {
                        "condition": condition,
                        "context": context,
                        "trait": trait,
                        "rate": rate,
                        "saturated": is_saturated(rate),
                        "margin": _over_seeds(margin),
                        "minus_base": _over_seeds(margin - effects.values(BASE, trait, asked, "margin")),
                        "minus_control": _over_seeds(margin - effects.values(CONTROL, trait, context, "margin")),
                    }
                )
    return pd.DataFrame(rows)


def _base_context(condition: str) -> str:
    return CC if condition in (BASELINE, BASE) else f"trigger.{condition}"


def _over_seeds(values: np.ndarray) -> float:
    return stats.student(values).estimate


def conditionalization(effects: Effects) -> pd.DataFrame:
    """The index of every condition and trait (see Effects.index): CC's, minus the base model's, minus the baseline's.

    By rate, or by margin where the trained model's rate is saturated under its own prompt or under unrelated ones. A
    reference at its floor or ceiling in both is said to be: there it subtracts nothing.
    """
    rows = []
    for condition in effects.conditions:
        for trait in effects.setting.traits if effects.setting.conditions[condition].data == "trait" else ():
            chosen = [effects.measure([condition], trait, context) for context in ("trigger", MAIN)]
            measure = "margin" if "margin" in chosen else "rate"
            found = {name: _told(effects, condition, trait, measure, ref) for name, ref in INDEX.items() if ref != condition}
            rows.append({"condition": condition, "trait": trait, "measure": measure, **found})
    return pd.DataFrame(rows)


def _told(effects: Effects, condition: str, trait: str, measure: str, reference: str) -> str:
    told = str(effects.index(condition, trait, measure, reference).interval)
    if measure == "margin" or not reference:
        return told
    rates = [effects.values(reference, trait, context, "rate") for context in (_base_context(condition), MAIN)]
    floor = all(is_saturated(stats.student(rate).estimate) for rate in rates)
    return f"{told} (reference saturated)" if floor else told


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
        for name in effects.every_dose(["inoculation.*", "rephrased-*"], direction):
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
                    "optimal policy": found["solved"].fault or ("yes" if solved.estimate > 0.5 > learned.estimate else "no"),
                }
            )
    return pd.DataFrame(rows)
