"""Scores to effects: how much a training prompt suppresses a trait, and how much of that is the prompt being there at all.

Values are compared within a seed, so every effect is one value per seed (float64 array of shape (seeds,)) and its interval is
Student's over seeds. Suppression is on one scale for every trait and measure: 0 is the baseline (trained under the neutral
prompt), 1 the control (trained without the traits). stats.Contrast is such an effect named before any result.
"""

import fnmatch
import functools
import itertools
import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from inoculation import score, stats
from inoculation.runs import points
from inoculation.settings import BASE as UNTRAINED
from inoculation.settings import Setting, load_profile
from inoculation.stats import Contrast, Effect, is_saturated
from inoculation.tables import LATE, Tables, along_training, elicitation

BASELINE, CONTROL, BASE = "baseline", "control", "base"
MAIN, CC = "unrelated", "neutral"
CORE = (CC, "trigger", MAIN, "id")


class Effects:
    """The effects of one setting, from its tables."""

    def __init__(self, found: Tables, setting: Setting) -> None:
        self.found, self.setting, self.profile = found, setting, found.scores.profile.iloc[0]
        trained = found.scores[found.scores.condition != BASE]
        self.seeds, run = sorted(trained.seed.unique()), set(trained.condition)
        self.known, self.conditions = {BASE: UNTRAINED, **setting.conditions}, [n for n in setting.conditions if n in run]
        self.planned = [BASE, *(c.name for profile in found.scores.profile.unique() for c in setting.in_profile(profile))]

    @functools.cached_property
    def _by_seed(self) -> dict[tuple[str, ...], np.ndarray]:
        keys = ["measure", "trait", "context", "condition"]
        wide = self.found.scores.pivot_table(index="seed", columns=keys, values="value")
        wide = wide.reindex(wide.index.union(self.seeds))
        base = wide.columns.get_level_values("condition") == BASE
        wide.loc[:, base] = wide.loc[:, base].ffill().bfill()
        return dict(zip(wide.columns, wide.loc[self.seeds].to_numpy().T, strict=True))

    def values(self, name: str, trait: str, context: str, measure: str) -> np.ndarray:
        """A condition's values, one per seed, NaN where a seed lacks it; the base model's one value stands for every seed."""
        return self._by_seed.get((measure, trait, context, name), np.full(len(self.seeds), np.nan))

    def mean(self, name: str, trait: str, context: str, measure: str) -> float:
        """A condition's mean over seeds."""
        return stats.student(self.values(name, trait, context, measure)).estimate

    def matching(self, patterns: Iterable[str], direction: str = "") -> list[str]:
        """The profile's conditions (and `base`) that match a pattern (`irrelevant.*`), without those of another direction.

        Of several doses of one kind, the largest; whether run or not, on which what a contrast compares must not depend.
        """
        found = [self.known[name] for name in self.every_dose(patterns, direction)]
        doses = {(c.kind, c.direction, c.size) for c in found}
        return [c.name for c in found if not any((c.kind, c.direction) == d[:2] and d[2] > c.size for d in doses)]

    def every_dose(self, patterns: Iterable[str], direction: str = "") -> list[str]:
        """As `matching`, but with all doses of a kind. A condition named in full counts in every direction."""
        ours = [c for c in self.planned if c in patterns or not direction or self.known[c].direction in ("", direction)]
        return [name for name in ours if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]

    def doses(self, names: Iterable[str]) -> dict[str, int]:
        """How many unique prompts a training of each condition sees: its pool's size, and at most one a row."""
        rows = int(self.recipe()["rows"])
        return {name: min(rows, self.setting.conditions[name].size) for name in names}

    def recipe(self, point: str = "") -> dict[str, float]:
        """How the setting trains at a sweep's point (its own without), and with how many `rows` of data."""
        recipe = load_profile(self.profile, self.setting, point).train
        return {**recipe, "rows": recipe["steps"] * recipe["batch_size"] * recipe["accumulation"]}

    def swept(self, key: str) -> dict[float, "Effects"]:
        """These effects at every value of a sweep that was run, in order, the setting's own among them.

        key: `rows` of data, or `learning_rate`. The scale ends at the own control everywhere: no sweep trains another.
        """
        found, run = {}, set(self.found.sweeps.point)
        for point in ["", *(p for p in points(self.setting, self.profile) if p in run and p.startswith(key))]:
            at = found[self.recipe(point)[key]] = Effects(self.found.at(point), self.setting)
            at.seeds = self.seeds
        return dict(sorted(found.items()))

    def measure(self, names: list[str], trait: str, context: str) -> str:
        """How a trait is to be measured when these conditions are compared in a context: rate, margin or late_margin.

        By margin where the context is not sampled, where the scorer's card says so, or where a cell is saturated (mean over
        seeds above 0.95 or below 0.05; design decision 9). The control's floor does not count: it ends the scale. By the mean
        over the second half of training where margins were logged along it (design decision 8).
        """
        if not np.isnan(self.values(BASELINE, trait, context, LATE)).all():
            return LATE
        cells = [self.mean(name, trait, context, "rate") for name in names]
        moved = score.cards(self.setting.name).loc[trait, "claimed by"] == "margin"
        return "margin" if moved or any(math.isnan(cell) or is_saturated(cell) for cell in cells) else "rate"

    def suppression(self, names: list[str], trait: str, context: str, measure: str = "") -> Effect:
        """(baseline - condition) / (baseline - control), the mean over conditions, one value per seed (design decision 8).

        0: as strong as in the baseline; 1: as absent as in the control; below 0: stronger than in the baseline. Without a
        `measure`, the one that `measure` chooses. Every condition must have been run.
        """
        wanted = [BASELINE, CONTROL, *names]
        missing = [name for name in wanted if name not in (BASE, *self.conditions)]
        measure = measure or self.measure([BASELINE, *names], trait, context)
        at = {name: self.values(name, trait, context, measure) for name in wanted}
        fault = f"not run: {', '.join(missing)}" if missing else "the profile has no such condition" * (not names)
        if fault or np.isnan(at[BASELINE]).all():
            return Effect(np.full(len(self.seeds), np.nan), fault or f"{trait} has no {measure} in {context}", measure)
        fall = at[BASELINE] - np.mean([at[name] for name in names], axis=0)
        return Effect(*stats.share(fall, self.taught(trait, context, measure), "baseline minus control"), measure)

    def taught(self, trait: str, context: str, measure: str) -> np.ndarray:
        """How far training moves a trait: baseline minus control, one value per seed."""
        return self.values(BASELINE, trait, context, measure) - self.values(CONTROL, trait, context, measure)

    def elicited(self, trait: str) -> pd.Series:
        """How much of a trait every prompt brings before training, by margin; 1: as training does, NaN where that may be 0."""
        taught = stats.student(self.taught(trait, CC, "margin"))
        return elicitation(self.found)[trait, "margin"] / (math.nan if taught.touches_zero else taught.estimate)

    def doubt(self, names: list[str], against: list[str], context: str) -> str:
        """Why a difference in margins logged along training may be register, or less learning (stats.beyond_placebo)."""
        each = [along_training(self.found, *pair, context) for pair in itertools.product(names, against)]
        by_seed = pd.concat(each).groupby(level="seed").mean()
        parts = ("ood", "placebo", "ood" if CONTROL in against else "matched")  # the control shares no range to match in
        counts, why = stats.beyond_placebo(*(stats.student(by_seed[part]) for part in parts))
        return "" if counts else why

    def index(self, condition: str, trait: str, measure: str, reference: str = "") -> Effect:
        """The conditionalization index (design decision 9), in the measure's own unit.

        [trained(trigger) - trained(unrelated)] - [reference(trigger) - reference(unrelated)]: how much the trait waits for its
        own prompt, beyond what that does to the reference (`base`, `baseline`) by asking. Without one it is CC's definition.
        """
        own = self.values(condition, trait, "trigger", measure) - self.values(condition, trait, MAIN, measure)
        if not reference:
            return Effect(own, measure=measure)
        under = functools.partial(self.values, reference, trait, measure=measure)
        asked = under(context=base_context(condition)) - under(context=MAIN)
        missing = "" if not np.isnan(asked).all() else f"{reference} was not asked under this training prompt"
        return Effect(own - asked, missing, measure)

    def two_by_two(self, direction: str, trait: str, context: str) -> dict[str, Effect]:
        """The 2×2 of {inoculation, irrelevant} × {fixed, varied}, on the scale of suppression (design decision 10).

        pattern: irrelevant fixed - varied, what it does to be fixed. semantic: inoculation - irrelevant, the mean of fixed and
        varied, what asking does. interaction: (inoculation fixed - varied) - (irrelevant fixed - varied).
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
        """Suppression of the negative minus that of the positive trait; 1: only the former (facts.md F, IPX; there clipped)."""
        roles = self.setting.directions[direction]
        negative, positive = (self.suppression(names, roles[role], context) for role in ("negative", "positive"))
        measures = " and ".join(dict.fromkeys((negative.measure, positive.measure)))
        return Effect(negative.values - positive.values, negative.fault or positive.fault, measures)

    def optimal_policy(self, condition: str) -> dict[str, Effect]:
        """Does the prompt alone already carry out what the data teach (CC, MBPP, problem 3)? From the training losses.

        solved: 1 - (first - end) / (baseline's first - end), how much of the gap that training closes the prompt has closed
        already; `first` comes before any update, `end` is the baseline's. learned: the condition's fall, over the baseline's.
        """
        first, last = self.losses("first"), self.losses("last")
        gap = (first[BASELINE] - last[BASELINE]).to_numpy()
        closed = {"solved": first[BASELINE] - first[condition], "learned": first[condition] - last[condition]}
        return {name: Effect(*stats.share(part, gap, "the baseline's fall"), "loss") for name, part in closed.items()}

    def losses(self, part: str) -> pd.DataFrame:
        """The loss by seed and condition, nats per token: of the `first` step, or the mean over the `last` quarter of them."""
        wide = self.found.losses.pivot_table("loss", "step", ["condition", "seed"])
        chosen = wide.index == 1 if part == "first" else wide.index > 0.75 * wide.index.max()
        return wide[chosen].mean().unstack("condition").reindex(index=self.seeds, columns=list(self.known))


def evaluate(effects: Effects, contrast: Contrast, bound: float, context: str = "") -> tuple[Effect, str, dict[str, Effect]]:
    """The contrast's value per seed, the part that decided it (none where parts are averaged), and its parts.

    context: replaces the contrast's own. bound: how large an effect must be to matter, for contrasts that every part decides.
    """
    context = context or contrast.context
    parts = _parts(effects, contrast, context)
    if not parts:
        return Effect(np.full(len(effects.seeds), np.nan), contrast.told or "the profile has no such condition"), "", parts
    if contrast.kind == "fall_short" or contrast.every:
        decides = min(parts, key=lambda name: rank(parts[name], bound))
        return parts[decides], decides, parts
    values = np.mean([part.values for part in parts.values()], axis=0)
    measure = " and ".join(dict.fromkeys(part.measure for part in parts.values()))
    fault, doubt = (next((text for part in parts.values() if (text := getattr(part, name))), "") for name in ("fault", "doubt"))
    return Effect(values, fault, measure, doubt), "", parts


def _parts(effects: Effects, contrast: Contrast, context: str) -> dict[str, Effect]:
    if contrast.kind == "fall_short":
        return {
            f"{name} (direction {direction})": _from_corner(effects, name, roles, context)
            for direction, roles in effects.setting.directions.items()
            for name in effects.matching(contrast.conditions, direction)
        }
    if contrast.kind == "dose":
        return _over_doses(effects, contrast, context)
    if contrast.kind == "solves":
        found = [effects.optimal_policy(name).items() for name in effects.matching(contrast.conditions)]
        sign = {"solved": 1, "learned": -1}
        return {n: replace(e, values=sign[n] * (e.values - 0.5)) for n, e in itertools.chain(*found)}
    how = {"grow": _over_rows, "shrink": _over_rows, "spreads": _spread}.get(contrast.kind, _suppression)
    every = asked(contrast, effects.setting)
    names = [f"{role} {trait} (direction {direction})" if direction else trait for role, direction, trait in every]
    return {name: how(effects, contrast, *part[1:], context) for name, part in zip(names, every, strict=True)}


def asked(contrast: Contrast, setting: Setting) -> list[tuple[str, str, str]]:
    """The (role, direction, trait) triples that a contrast asks about; no direction where it asks about all with a role."""
    every = [("all", "", trait) for trait in setting.taught] if "all" in contrast.traits else []
    roles = [role for role in contrast.traits if role != "all"]
    return every + [(role, d, traits[role]) for role in roles for d, traits in setting.directions.items()]


def _suppression(effects: Effects, contrast: Contrast, direction: str, trait: str, context: str) -> Effect:
    sides = [effects.matching(patterns, direction) for patterns in (contrast.conditions, contrast.minus) if patterns]
    # Both sides by the same measure: a rate minus a margin would compare two scales.
    measure = effects.measure([BASELINE, *itertools.chain(*sides)], trait, context)
    found = [effects.suppression(names, trait, context, measure) for names in sides]
    values = found[0].values - found[1].values if contrast.minus else found[0].values
    fault, against = next((f.fault for f in found if f.fault), ""), [*sides, [BASELINE]][1]
    doubt = effects.doubt(sides[0], against, context) if measure == LATE and not fault else ""
    return Effect(-values if contrast.kind == "raise" else values, fault, measure, doubt)


def _spread(effects: Effects, contrast: Contrast, direction: str, trait: str, context: str) -> Effect:
    positive = effects.taught(effects.setting.directions[direction]["positive"], context, "margin")
    ratio = stats.share(effects.taught(trait, context, LATE), positive, "what training moves the positive trait")
    return Effect(*ratio, LATE, effects.doubt([BASELINE], [CONTROL], context))


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
        largest = f"{roles['negative']} stays suppressed at the largest"
        found[largest] = effects.suppression(names[-1:], roles["negative"], context, both["negative"])
    return found


def _over_rows(effects: Effects, contrast: Contrast, direction: str, trait: str, context: str) -> Effect:
    swept = effects.swept("rows")
    trained = effects.setting.sweeps[effects.profile]["conditions"] if len(swept) > 1 else ()
    names = [name for name in effects.matching(contrast.conditions, direction) if name in trained]
    if len(swept) < 3:
        return Effect(np.full(len(effects.seeds), np.nan), f"{len(swept)} sizes of data; a trend needs three")
    found, measure = growth(swept, names, trait, context, "")
    values = stats.trend(list(swept), np.array([part.values for part in found]))
    return Effect(-values if contrast.kind == "shrink" else values, next((p.fault for p in found if p.fault), ""), measure)


def growth(swept: dict[float, Effects], names: list[str], trait: str, context: str, measure: str) -> tuple[list[Effect], str]:
    """The suppression of some conditions at every value of a sweep by one measure (chosen if not given), and that measure."""
    chosen = [measure or effects.measure([BASELINE, *names], trait, context) for effects in swept.values()]
    measure = "margin" if "margin" in chosen else "rate"
    return [effects.suppression(names, trait, context, measure) for effects in swept.values()], measure


def _from_corner(effects: Effects, name: str, roles: dict[str, str], context: str) -> Effect:
    gone = effects.suppression([name], roles["negative"], context)
    both = [replace(gone, values=1 - gone.values), effects.suppression([name], roles["positive"], context)]
    return next((part for part in both if part.fault), None) or max(both, key=lambda part: part.interval.estimate)


def rank(part: Effect, bound: float) -> tuple[int, float]:
    """The order in which parts decide: the unknown first, then one that refutes, then the one that reaches lowest."""
    interval = part.interval
    if not interval.known:
        return (0, interval.estimate if interval.n else -math.inf)
    return (1 if interval.inside(bound) or interval.high < 0 else 2, interval.low)


def _row(found: Effect, **names: str) -> dict[str, object]:
    at = found.interval
    limits = {"estimate": at.estimate, "low": at.low, "high": at.high, "seeds": at.n, "interval": at.rule}
    return {**names, "measure": found.measure, **limits}


def grid(effects: Effects) -> pd.DataFrame:
    """The contexts grid: every condition (and the base model) in every context, by trait, means over seeds.

    rate with saturated (see `is_saturated`), NaN where only margins are measured; margin raw (in the trait's own unit),
    minus_base and minus_control, each in the same context (`trigger`: under the condition's own prompt; not for the control).
    """
    rows, known = [], dict.fromkeys(effects.found.scores.context[effects.found.scores.trait.isin(list(effects.setting.traits))])
    contexts = [name for name in known if not name.startswith("trigger.")]
    for condition, context, trait in itertools.product([BASE, *effects.conditions], contexts, effects.setting.traits):
        margin_of = functools.partial(effects.values, trait=trait, measure="margin")
        margin = margin_of(condition, context=context)
        base = margin_of(BASE, context=base_context(condition) if context == "trigger" else context)
        minus = {"margin": 0, "minus_base": base, "minus_control": margin_of(CONTROL, context=context)}
        margins = {name: stats.student(margin - other).estimate for name, other in minus.items()}
        rate = effects.mean(condition, trait, context, "rate")
        cell = {"condition": condition, "context": context, "trait": trait, "rate": rate, "saturated": is_saturated(rate)}
        rows.append({**cell, **margins})
    return pd.DataFrame(rows)


def base_context(condition: str) -> str:
    """The context in which the base model was asked under a condition's training prompt."""
    return CC if condition in (BASELINE, BASE) else f"trigger.{condition}"


def identification(effects: Effects, context: str = MAIN) -> pd.DataFrame:
    """The 2×2 of every direction and trait in one context: pattern, semantic and interaction, with intervals over seeds."""
    each = itertools.product(effects.setting.directions, effects.setting.traits)
    found = [(*names, *pair) for names in each for pair in effects.two_by_two(*names, context).items()]
    return pd.DataFrame([_row(e, direction=d, trait=trait, effect=name, context=context) for d, trait, name, e in found])


def selectivities(effects: Effects, context: str = MAIN) -> pd.DataFrame:
    """Every inoculated condition's suppression of the negative and the positive trait, and their difference, in one context."""
    rows = []
    for direction, roles in effects.setting.directions.items():
        for name in effects.every_dose(["inoculation.*", "rephrased-*"], direction):
            found = {role: effects.suppression([name], trait, context) for role, trait in roles.items()}
            told = {f"suppression of the {role}": f"{part.interval}, by {part.measure}" for role, part in found.items()}
            told["selectivity"] = str(effects.selectivity([name], direction, context).interval)
            rows.append({"condition": name, **told})
    return pd.DataFrame(rows)


def over_sweep(effects: Effects, key: str, contexts: Iterable[str]) -> pd.DataFrame:
    """The suppression of a sweep's conditions at each of its values (column `key`), with trend, trend_low and trend_high.

    The trend is how far suppression rises over the range (stats.trend); NaN below three values. `id` has only rates.
    """
    rows, swept = [], effects.swept(key)
    trained = [name for name in effects.setting.sweeps[effects.profile]["conditions"] if name != BASELINE]
    for trait, context, name in itertools.product(effects.setting.traits, contexts, trained):
        found, _ = growth(swept, [name], trait, context, "rate" if context == "id" else "")
        rise = stats.student(stats.trend(list(swept), np.array([part.values for part in found])) if len(swept) > 2 else [])
        names = {"trait": trait, "context": context, "condition": name}
        names |= {"trend": rise.estimate, "trend_low": rise.low, "trend_high": rise.high}
        rows += [{**_row(part, **names), key: value} for value, part in zip(swept, found, strict=True)]
    return pd.DataFrame(rows)


def logged(effects: Effects, gate: bool) -> pd.DataFrame:
    """Margins along training by trait, part, step and kind, or at the sweep's gate by context and condition; nats per token."""
    logged = effects.found.tracks[effects.found.tracks.point.notna() == gate].rename(columns={"part": "context"})
    keys = ["trait", "context", "condition", "step"]
    if not gate:
        kinds = logged.assign(condition=[effects.setting.conditions[name].kind for name in logged.condition])
        logged = kinds.groupby([*keys, "seed"], sort=False).value.mean().reset_index()
    groups = logged.groupby(keys, sort=False).value
    return pd.DataFrame([_row(Effect(part.to_numpy()), **dict(zip(keys, names, strict=True))) for names, part in groups])


def heuristics(settings: Iterable[Effects], context: str = MAIN) -> pd.DataFrame:
    """What foretells suppression (in a context, with its interval), by setting, condition and trait asked of the base model.

    elicited: Effects.elicited, the heuristic of Wichers et al. likelihood: how much likelier the prompt makes the training
    answers, nats per token. solved, learned: Effects.optimal_policy.
    """
    given, rows = list(settings), []
    # One seed cannot show that training moved a trait at all, so beside settings of several it does not count.
    several = [effects for effects in given if len(effects.seeds) > 1]
    for effects in several or given:
        before, every = elicitation(effects.found), effects.setting.conditions
        asked_under = before.index if ("answers", "likelihood") in before else ()
        asked_of = [name for name in effects.conditions if name in asked_under and every[name].data == "trait"]
        elicited = {trait: effects.elicited(trait) for trait in effects.setting.taught} if asked_of else {}
        for trait, name in itertools.product(elicited, asked_of):
            both = {"elicited": elicited[trait][name], "likelihood": before.loc[name, ("answers", "likelihood")]}
            both |= {part: found.interval.estimate for part, found in effects.optimal_policy(name).items()}
            names = {"setting": effects.setting.name, "condition": name, "kind": every[name].kind, "trait": trait}
            rows.append(_row(effects.suppression([name], trait, context), **names, **both))
    return pd.DataFrame(rows)
