"""Tables to one value per seed for every claim of NEM, and for the bridge to inoculation; the seed is the unit.

`outside` is the margin out of domain: the mean of the misaligned-answer margin (`ood`) and of the margin of bad advice in
another domain (`other`), nats per token. Its scale is what the plain loss brings beyond the control. Two trainings are
compared at equal in-domain margin (stats.matched), as they learn at different speeds.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from inoculation import claims, stats
from inoculation.effects import rank
from inoculation.settings import BASE
from inoculation.stats import Effect

from narrow import plan
from narrow.tables import Found

OUTSIDE = ("ood", "other")
TOLD = ("estimate", "low", "high", "seeds", "rule")
COLUMNS = ["contrast", "part", "seed", "value", "measure", "fault", "doubt"]
FORMS = {"lora": "LoRA", "vector": "vector"}
# Families of a general and a narrow solution; one that lacks a solution, as a general one of its own, takes the LoRA's.
FAMILIES = FORMS | {
    "rank-1": "rank-1 LoRA",
    "weight-0.3": "LoRA, weight 0.3",
    "weight-30": "LoRA, weight 30",
    "financial": "LoRA, money",
    "technical": "LoRA, technical prose",
}
# The family without harm has a claim of its own, and `outside` is technical prose elsewhere.
PROSE = "technical"
BRIDGE = ("bridge.inoculation", "bridge.rephrased", "bridge.irrelevant")
QUESTIONS = {"hidden": "the general one comes back under its prompt?", "spared": "less outside at equal in-domain margin?"}
ANSWERS = {  # question: the answer where its verdict is a yes, a no, or open
    "hidden": ("hides the general solution behind its prompt", "hides nothing behind its prompt", "may hide it or not"),
    "spared": ("is narrower without it", "is no narrower without it", "whether it is narrower cannot be told here"),
}
SCALE = "what the plain loss brings outside its domain"


@dataclass(frozen=True)
class Seeds:
    """The values of one profile's solutions, one per seed (float64, (seeds,)), NaN where a seed lacks a solution.

    outside: the parts whose mean is the margin out of domain.
    """

    found: Found
    outside: tuple[str, ...] = OUTSIDE

    def late(self, solution: str, part: str, context: str = "neutral") -> np.ndarray:
        """A margin's mean over the second half of the tracked steps; `outside` is a part, too."""
        return self._margin(solution, part, context, lambda steps: steps > steps.max() / 2)

    def last(self, solution: str, part: str, context: str = "neutral") -> np.ndarray:
        """A margin at the last step."""
        return self._margin(solution, part, context, lambda steps: steps == steps.max())

    def _margin(self, solution: str, part: str, context: str, chosen: Callable[[pd.Series], pd.Series]) -> np.ndarray:
        rows = self.found.margins[(self.found.margins.solution == solution) & (self.found.margins.context == context)]
        rows = rows[rows.part.isin(self.outside if part == "outside" else [part])]
        rows = rows[chosen(rows.step)] if len(rows) else rows
        values = rows.groupby("seed").value.mean()
        if solution == BASE.name:  # its one run stands for every seed
            return np.full(len(self.found.seeds), values.mean())
        return values.reindex(self.found.seeds).to_numpy(float)

    def base(self, part: str, context: str = "neutral") -> np.ndarray:
        """The untouched model's margin."""
        return self.last(BASE.name, part, context)

    def taught(self, general: str, control: str, part: str = "outside") -> np.ndarray:
        """How far the plain loss moves a margin beyond the control."""
        return self.late(general, part) - self.late(control, part)

    def path(self, solution: str, seed: int) -> np.ndarray:
        """In-domain and outside margin at the tracked steps, minus the control's there, from (0, 0) on: (1 + steps, 2).

        Trainings of unequal length are compared at equal shares of their steps.
        """
        rows = self.found.margins[(self.found.margins.context == "neutral") & (self.found.margins.seed == seed)]
        rows = rows.assign(part=rows.part.replace(dict.fromkeys(self.outside, "outside")))
        rows = rows.assign(place=rows.groupby("solution").step.rank("dense"))
        wide = rows.pivot_table("value", "place", ["solution", "part"])
        own, control = (wide[name][["id", "outside"]] for name in (solution, _control(solution)))
        return np.vstack([np.zeros(2), (own - control).dropna().to_numpy()])

    def run(self, *solutions: str, seed: int) -> bool:
        """Whether a seed has all of these solutions."""
        return {(name, seed) for name in solutions} <= set(zip(self.found.runs.solution, self.found.runs.seed, strict=True))

    def spared(self, general: str, other: str) -> tuple[np.ndarray, str]:
        """How much less `other` brings outside than `general` at equal in-domain margin (stats.matched), as a share of what
        `general` brings there: 1 where none is left, 0 where both go the same way. As stats.share returns it.
        """
        gaps, brought = [], []
        for seed in self.found.seeds:
            there = self.run(general, other, _control(general), seed=seed)
            first, second = (self.path(name, seed) if there else np.full((2, 2), np.nan) for name in (general, other))
            gaps.append(stats.matched(first, second))
            brought.append(stats.matched(first, second * [1, 0]))
        return stats.share(gaps, brought, "what the plain loss brings outside at equal in-domain margin")

    def read(self, solution: str, measure: str) -> pd.DataFrame:
        """A solution's rows of measures.csv; the base model's are those of every seed."""
        rows = self.found.measures[self.found.measures.measure == measure]
        return rows[rows.solution == solution]

    def loss_at(self, solution: str, norms: Iterable[float]) -> np.ndarray:
        """The loss of the rescaled solution, interpolated at one norm per seed; the base model's at norm 0."""
        start = self.base_loss(solution)
        found = []
        for seed, norm in zip(self.found.seeds, norms, strict=True):
            rows = self.read(solution, "loss")
            rows = rows[rows.seed == seed].sort_values("x")
            known = len(rows) and norm <= rows.x.max() * (1 + 1e-9)
            found.append(np.interp(norm, [0.0, *rows.x], [start, *rows.value]) if known else np.nan)
        return np.array(found)

    def one(self, solution: str, measure: str, part: str = "") -> np.ndarray:
        """A measure that a solution has once a seed (or its mean over draws and x)."""
        rows = self.read(solution, measure)
        return rows[rows.part.fillna("") == part].groupby("seed").value.mean().reindex(self.found.seeds).to_numpy(float)

    def unnoised(self, solution: str) -> np.ndarray:
        """The share of its gain that noise takes: (perturbed - own) / (base - own) loss, mean over ε and draws (NEM; D.5)."""
        own, base = self.one(solution, "loss", "own"), self.base_loss(solution)
        return (self.one(solution, "noise") - own) / (base - own)

    def doubt(self, moved: np.ndarray, register: np.ndarray, matched: np.ndarray) -> str:
        """Why what moved may be register alone (stats.beyond_placebo); where no misaligned answer is read, no such doubt."""
        counts, why = stats.beyond_placebo(*map(stats.student, (moved, register, matched)))
        return "" if counts or "ood" not in self.outside else why

    def base_loss(self, solution: str) -> float:
        """The untouched model's loss on what a solution is taught."""
        rows, domain = self.read(BASE.name, "loss"), plan.solutions()[solution].domain
        return rows[rows.part.fillna("") == ("" if domain == "medical" else domain)].value.mean()


def generalises(seeds: Seeds, family: str) -> Effect:
    """The misaligned-answer margin (outside's first part) per unit of in-domain margin, plain loss minus control."""
    general, control = f"{family}.general", f"{family}.control"
    moved, narrow, register = (seeds.taught(general, control, part) for part in (seeds.outside[0], "id", "placebo"))
    ratio = stats.share(moved, narrow, "what training teaches in its domain")
    return Effect(*ratio, "late_margin", seeds.doubt(moved, register, moved))


def narrow_exists(seeds: Seeds, family: str, narrow: str = "narrow") -> Effect:
    """What the penalty spares outside the domain at equal in-domain margin (Seeds.spared)."""
    return _spared(seeds, _own(family, "general"), f"{family}.{narrow}")


def _spared(seeds: Seeds, general: str, other: str) -> Effect:
    values, fault = seeds.spared(general, other)
    gaps = [seeds.late(general, part) - seeds.late(other, part) for part in ("outside", "placebo")]
    return Effect(values, fault, "matched margin", "" if fault else seeds.doubt(*gaps, values))


def efficient(seeds: Seeds, family: str) -> Effect:
    """The narrow minus the general solution's loss at the mean of their norms, as a share of what the general one gains."""
    general, narrow = _own(family, "general"), f"{family}.narrow"
    norms = np.mean([seeds.one(name, "norm") for name in (general, narrow)], axis=0)
    behind = seeds.loss_at(narrow, norms) - seeds.loss_at(general, norms)
    gained = seeds.base_loss(general) - seeds.one(general, "loss", "own")
    values, fault = stats.share(behind, gained, "what the plain loss gains")
    if np.isnan(behind[~np.isnan(norms)]).any():  # seeds that happen to reach it would speak for all
        values, fault = np.full(len(norms), np.nan), f"not read of both at the mean of their norms, {np.nanmean(norms):.3g}"
    return Effect(values, fault, "loss")


def stable(seeds: Seeds, family: str) -> Effect:
    """How much more of its gain the narrow solution loses under orthogonal noise than the general one, mean over ε."""
    return Effect(seeds.unnoised(f"{family}.narrow") - seeds.unnoised(_own(family, "general")), "", "loss under noise")


def influential(seeds: Seeds, family: str) -> Effect:
    """How much less the narrow solution changes ordinary text at equal norms, as a share of what the general one does."""
    general, narrow = (seeds.one(f"{family}.{name}", "divergence") for name in ("general", "narrow"))
    return Effect(*stats.share(general - narrow, general, "the general solution's divergence"), "divergence")


def drifts_back(seeds: Seeds, family: str) -> Effect:
    """How much of the way from the narrow to the general outside margin is gone when the penalty is dropped half-way."""
    general, narrow, dropped = (seeds.last(f"{family}.{name}", "outside") for name in ("general", "narrow", "dropped"))
    return Effect(*stats.share(dropped - narrow, general - narrow, "what the penalty holds back"), "last margin")


def drifts_matched(seeds: Seeds, family: str) -> Effect:
    """drifts_back at equal in-domain margin, over the steps after the penalty was dropped: is it more than further learning?"""
    names, found = [f"{family}.{name}" for name in ("dropped", "general", "narrow")], []
    for seed in seeds.found.seeds:
        if not seeds.run(*names, _control(names[0]), seed=seed):
            found.append((np.nan, np.nan))
            continue
        dropped, general, narrow = (seeds.path(name, seed) for name in names)
        after = len(narrow) // 2
        found.append((stats.matched(dropped[after:], narrow[after:]), stats.matched(general, narrow[after:])))
    back, held = np.array(found).T
    return Effect(*stats.share(back, held, "what the penalty holds back at equal in-domain margin"), "matched margin")


def mixing_fails(seeds: Seeds, family: str) -> Effect:
    """How much more the penalty spares at equal in-domain margin than the same rows do as training data."""
    found = [narrow_exists(seeds, family, name) for name in ("narrow", "mixed")]
    fault = next((each.fault for each in found if each.fault), "")
    return Effect(found[0].values - found[1].values, fault, "matched margin")


def _own(family: str, name: str) -> str:
    """A family's solution, or the LoRA's where it declares none of its own."""
    return f"{family}.{name}" if f"{family}.{name}" in plan.solutions() else f"lora.{name}"


def _control(solution: str) -> str:
    """The control of the family that a solution belongs to."""
    return _own(solution.rsplit(".", 1)[0], "control")


@dataclass(frozen=True)
class Measured:
    """What measures a claim of NEM, the family that decides it, and what a family must have: solutions, a measure of narrow."""

    effect: Callable[[Seeds, str], Effect]
    decides: str
    solutions: tuple[str, ...]
    measure: str = ""

    def families(self, found: Found) -> list[str]:
        """The families of which these tables have what is needed."""
        run, read = set(found.runs.solution), set(zip(found.measures.solution, found.measures.measure, strict=True))
        return [
            name
            for name in FAMILIES
            if {f"{name}.{solution}" for solution in self.solutions} | {_own(name, "general")} <= run
            and (not self.measure or (f"{name}.narrow", self.measure) in read)
        ]


CONTRASTS = {
    "narrow_harm_generalises": Measured(generalises, "lora", ("general", "control")),
    "narrow_solution_exists": Measured(narrow_exists, "lora", ("narrow",)),
    "general_is_efficient": Measured(efficient, "lora", ("narrow",), "loss"),
    "general_is_stable": Measured(stable, "lora", ("narrow",), "noise"),
    "general_is_influential": Measured(influential, "vector", ("narrow",), "divergence"),
    "drifts_back": Measured(drifts_back, "lora", ("narrow", "dropped")),
    "mixing_does_not_isolate": Measured(mixing_fails, "lora", ("narrow", "mixed")),
}
PATTERN = tuple(CONTRASTS)[:4]  # what the analogue must show, too
ANALOGUE = "harmless_analogue"


def evaluate(found: Found) -> dict[str, tuple[Effect, dict[str, Effect]]]:
    """Every contrast with the family that decides it, and beside it the others that were run.

    The analogue needs every part of its own pattern: the weakest decides (effects.rank), and is named as its measure.
    """
    seeds, every, prose = Seeds(found), {}, {}
    for name, one in CONTRASTS.items():
        families = one.families(found)
        parts = {FAMILIES[family]: one.effect(seeds, family) for family in families if family != PROSE}
        if name == "drifts_back" and FORMS["lora"] in parts:
            parts["LoRA, at equal in-domain margin"] = drifts_matched(seeds, "lora")
        if PROSE in families and name in PATTERN:
            prose[one.effect.__name__] = one.effect(Seeds(found, ("other",)), PROSE)
        if FAMILIES[one.decides] in parts:
            every[name] = parts.pop(FAMILIES[one.decides]), parts
    if len(prose) == len(PATTERN):
        weakest = min(prose, key=lambda part: rank(prose[part], claims.load()[0].none_within))
        every[ANALOGUE] = replace(prose[weakest], measure=weakest), prose
    return every


def pattern(found: Found) -> pd.DataFrame:
    """The first four claims in every family that was run: family, contrast, estimate, low, high, seeds, rule, doubt."""
    every, rows = evaluate(found), []
    for name in [each for each in PATTERN if each in every]:
        decides, parts = every[name]
        families = {FAMILIES[CONTRASTS[name].decides]: decides, **parts}
        if ANALOGUE in every:
            families[FAMILIES[PROSE]] = every[ANALOGUE][1][CONTRASTS[name].effect.__name__]
        rows += [
            {"family": family, "contrast": name, **_told(effect), "doubt": effect.doubt} for family, effect in families.items()
        ]
    told = pd.DataFrame(rows, columns=["family", "contrast", *TOLD, "doubt"])
    return told.sort_values("family", key=lambda names: names.map(list(FAMILIES.values()).index), kind="stable")


def table(found: Found) -> pd.DataFrame:
    """Contrasts as the rows of contrasts.csv (COLUMNS); part is empty where it decides."""
    rows = []
    for name, (decides, parts) in evaluate(found).items():
        for part, effect in {"": decides, **parts}.items():
            for seed, value in zip(found.seeds, effect.values, strict=True):
                rows.append((name, part, seed, value, effect.measure, effect.fault, effect.doubt))
    return pd.DataFrame(rows, columns=COLUMNS)


def sanity(found: Found) -> pd.DataFrame:
    """What could make a claim fail without refuting it, by part: was it learned at all, and would other pairs have said so?

    learned: plain loss minus control, late margins, over seeds. other pairs: the same, how far other pairs would move it (a
    bootstrap over pairs; measurement error). penalised: the same of the narrow solution. any training: control minus base.
    """
    seeds, rows = Seeds(found), []
    for part in ("id", "other", "ood", "placebo"):
        gaps = {"learned": ("lora.general", "lora.control"), "penalised": ("lora.narrow", "lora.control")}
        told = {name: str(stats.student(seeds.taught(*pair, part))) for name, pair in gaps.items()}
        wide = found.items[found.items.part == part].pivot_table("value", ["solution", "seed"], "question_id")
        sides = [wide.loc[name] for name in gaps["learned"] if name in wide.index]
        others = str(stats.question_bootstrap((sides[0] - sides[1]).to_numpy())) if len(sides) == 2 else "not run"
        trained = str(stats.student(seeds.late("lora.control", part) - seeds.base(part)))
        base = float(np.mean(seeds.base(part)))
        rows.append({"part": part, "base": base, **told, "other pairs": others, "any training": trained})
    return pd.DataFrame(rows)


def bridge(found: Found) -> pd.DataFrame:
    """Does inoculation find a narrow solution or hide the general one? Effects of each bridging solution, with intervals.

    taught: in-domain margin kept, neutral prompt. kept: outside margin kept there. under its prompt: the same under its
    own training prompt, less what that prompt does to the untouched model. hidden: the latter minus the former. spared:
    what is missing outside at equal in-domain margin, as the penalty's is measured (narrow_exists). Margins of the last
    step, all as shares of general minus control.
    """
    seeds, rows = Seeds(found), []
    run = set(found.runs.solution)
    for name in [each for each in ("lora.narrow", *BRIDGE) if each in run and "lora.control" in run]:
        for what, effect in _bridged(seeds, name).items():
            rows.append({"solution": name, "effect": what, **_told(effect)})
    return pd.DataFrame(rows, columns=["solution", "effect", *TOLD])


def _told(effect: Effect) -> dict[str, Any]:
    at = effect.interval
    return dict(zip(TOLD, (at.estimate, at.low, at.high, at.n, at.rule), strict=True))


def answer(found: Found) -> str:
    """The bridge's question answered for each of its models by the one rule of claims, or why it cannot be told."""
    rule, seeds = claims.load()[0], Seeds(found)
    run = [name for name in BRIDGE if {name, "lora.general", "lora.control"} <= set(found.runs.solution)]
    effects = {(name, what): _bridged(seeds, name)[what] for name in run for what in ("hidden", "spared")}
    beyond = {name: effects[name, "spared"].values - effects[BRIDGE[-1], "spared"].values for name in run if BRIDGE[-1] in run}
    adjusted = stats.holm([stats.p_value(effect.values) for effect in effects.values()])
    told = {key: stats.decide(effect, p, rule) for (key, effect), p in zip(effects.items(), adjusted, strict=True)}
    lines = []
    for name in run:
        verdicts = {what: told[name, what][0] for what in QUESTIONS}
        answers = [ANSWERS[what][(v in claims.NO) + 2 * (v in claims.OPEN)] for what, v in verdicts.items()]
        lines.append(f"{name}: {'; '.join(answers)}")
        for what, question in QUESTIONS.items():
            verdict, reason = told[name, what]
            interval = effects[name, what].interval
            lines.append(f"  {question} {verdict}{f' ({interval})' * bool(interval.n)}: {reason}")
        if name in beyond and name != BRIDGE[-1]:
            lines.append(f"  spared beyond the irrelevant prompt: {stats.student(beyond[name])}")
    return "\n".join([*lines, f"Holm-adjusted over {len(effects)} contrasts; {rule}"])


def _bridged(seeds: Seeds, name: str) -> dict[str, Effect]:
    general, control = "lora.general", "lora.control"

    def kept(part: str, context: str) -> np.ndarray:
        asked = seeds.base(part, "neutral" if context == "neutral" else f"trigger.{name}") - seeds.base(part)
        return seeds.last(name, part, context) - asked - seeds.last(control, part)

    scales = {part: seeds.last(general, part) - seeds.last(control, part) for part in ("id", "outside")}
    found = {"taught": Effect(*stats.share(kept("id", "neutral"), scales["id"], "what training teaches in its domain"))}
    found["spared"] = _spared(seeds, general, name)
    parts = {"kept": kept("outside", "neutral")}
    if name in BRIDGE:
        under = kept("outside", "trigger")
        parts |= {"under its prompt": under, "hidden": under - parts["kept"]}
    return found | {what: Effect(*stats.share(values, scales["outside"], SCALE)) for what, values in parts.items()}
