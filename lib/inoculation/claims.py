"""Claims to verdicts: each statement of CC or NEM with its pre-named contrast, one rule for all, and the trail that led there.

data/claims.yaml holds the statements; a verdict is computed from tables and never typed. What cannot be said is said to be so:
`not run`, `not testable` or `Inconclusive`, each with its reason. Two Inconclusives are not agreement.
"""

import fnmatch
import functools
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from inoculation import score, stats, store, tables
from inoculation.effects import BASE, BASELINE, CC, CONTROL, CORE, MAIN, Effects, asked, base_context, evaluate
from inoculation.settings import POLICIES, Setting, load_setting, setting_names
from inoculation.stats import Contrast, Effect, Rule, decide
from inoculation.store import Block, blocks, nearest, read_yaml

YES, NO = ("Strong", "Moderate", "Weak", "Yes"), ("No", "Opposite")
OPEN = ("Inconclusive", "not run", "not testable")
CONTEXTS = (*CORE, *POLICIES)
KINDS = ("suppress", "raise", "fall_short", "dose", "grow", "shrink", "solves", "spreads", "measured", "unknown")
TRAITLESS = ("fall_short", "dose", "solves", "unknown")
INDEX = {"CC's": "", "minus base": BASE, "minus baseline": BASELINE}
ROLES, LOSSES = ("all", "negative", "positive"), {"first": "loss, first step", "last": "loss, last quarter"}
COLUMNS = [
    *("claim", "source", "setting", "statement", "paper_verdict", "paper_class"),
    *("contrast", "estimate", "ci_low", "ci_high", "n_seeds", "verdict", "reason"),
]


@dataclass(frozen=True)
class Claim:
    """One statement of a paper, in our words, and the contrast that decides it."""

    name: str
    paper: str
    section: str
    setting: str
    statement: str
    words: str
    paper_class: str
    contrast: Contrast


@dataclass(frozen=True)
class Verdict:
    """What the tables say about a claim: values per seed, the deciding part and all parts, Holm-adjusted p, verdict and why."""

    claim: Claim
    effect: Effect
    decides: str
    parts: dict[str, Effect]
    p: float
    verdict: str
    reason: str

    @property
    def interval(self) -> stats.Interval:
        """The contrast's estimate and interval."""
        return self.effect.interval


@functools.cache
def load(path: Path = store.DATA / "claims.yaml") -> tuple[Rule, dict[str, Claim]]:
    """The rule and the claims; raises SettingError with file and line, also when a contrast names a missing condition."""
    top = read_yaml(path).only("rule", "apart", "contrasts", "claims")
    rule = top.take("rule", Block)
    contrasts = {name: _contrast(name, block) for name, block in blocks(top, "contrasts")}
    known = (*setting_names(), *top.take("apart", list))
    claims = {name: _claim(name, block, contrasts, known) for name, block in blocks(top, "claims")}
    numbers = {key: rule.take(key, (int, float)) for key in Rule.__dataclass_fields__}
    return Rule(**numbers), claims


def _contrast(name: str, block: Block) -> Contrast:
    block.only(*KINDS, "minus", "traits", "context", "every")
    kinds = [kind for kind in KINDS if kind in block]
    if len(kinds) != 1:
        raise block.error(f"contrast '{name}' needs one of {', '.join(KINDS)}; it has {', '.join(kinds) or 'none'}")
    if kinds[0] in ("measured", "unknown"):
        return Contrast(name, kinds[0], told=block.take(kinds[0], str))
    return Contrast(
        name=name,
        kind=kinds[0],
        conditions=tuple(block.take(kinds[0], list)),
        minus=tuple(block.take("minus", list)) if "minus" in block else (),
        traits=tuple(block.take("traits", list, ROLES)) if kinds[0] not in TRAITLESS else (),
        context=block.take("context", str, CONTEXTS) if kinds != ["solves"] else "",
        every=block.take("every", bool) if "every" in block else False,
    )


def _claim(name: str, block: Block, contrasts: dict[str, Contrast], known: Iterable[str]) -> Claim:
    block.only("paper", "section", "setting", "statement", "words", "class", "contrast")
    contrast = contrasts[block.take("contrast", str, contrasts)]
    setting = block.take("setting", str, known)
    if setting in setting_names():
        _check_conditions(block, contrast, load_setting(setting))
    return Claim(
        name=name,
        paper=block.take("paper", str, ("CC", "NEM")),
        section=block.take("section", str),
        setting=setting,
        statement=block.take("statement", str),
        words=block.take("words", str),
        paper_class=block.take("class", str, (*YES, *NO, "Inconclusive")),
        contrast=contrast,
    )


def _check_conditions(block: Block, contrast: Contrast, setting: Setting) -> None:
    for pattern in (*contrast.conditions, *contrast.minus):
        if not fnmatch.filter([BASE, *setting.conditions], pattern):
            fault = nearest(pattern, setting.conditions, f"condition in contrast {contrast.name} for {setting.name}")
            raise block.error(str(fault), "contrast")


def judge(found: tables.Tables | None, setting: str) -> list[Verdict]:
    """The verdict on every claim of a setting, from one profile's tables (None: nothing was run)."""
    rule, claims = load()
    own = [claim for claim in claims.values() if claim.setting == setting]
    lacks, evidence = "no run of it in these tables", {}
    if setting not in setting_names():
        measured = tables.measured_apart(found.folder, setting) if found is not None else {}
        # What another package measured: where every part must hold, the measure names the part that decides.
        read = {claim.contrast: measured[claim.contrast.name] for claim in own if claim.contrast.name in measured}
        evidence = {c: (e, e.measure if e.measure in parts else "", parts) for c, (e, parts) in read.items()}
    elif found is not None and not (runs := found.of(setting)).scores.empty:
        effects = Effects(runs, load_setting(setting))
        unswept = ("grow", "shrink") if runs.sweeps.empty else ()
        lacks = "the dataset-size sweep was not run; ./run_all.sh --sweeps runs it"
        testable = dict.fromkeys(claim.contrast for claim in own if claim.contrast.kind not in unswept)
        evidence = {contrast: evaluate(effects, contrast, rule.none_within) for contrast in testable}
    # One contrast may serve two claims; it is one test.
    adjusted = dict(zip(evidence, stats.holm([_p_value(*each) for each in evidence.values()]), strict=True))
    return [
        _judged(claim, *evidence[claim.contrast], adjusted[claim.contrast], rule)
        if claim.contrast in evidence
        else _not_run(claim, lacks)
        for claim in own
    ]


def _not_run(claim: Claim, reason: str) -> Verdict:
    return Verdict(claim, Effect(np.full(1, np.nan), reason), "", {}, math.nan, "not run", reason)


def _judged(claim: Claim, effect: Effect, decides: str, parts: dict[str, Effect], p: float, rule: Rule) -> Verdict:
    return Verdict(claim, effect, decides, parts, p, *decide(effect, p, rule))


def _p_value(effect: Effect, decides: str, parts: dict[str, Effect]) -> float:
    """Where every part must hold, the least certain part's p (an intersection-union test needs no more)."""
    return float(np.max([stats.p_value(part.values) for part in parts.values()])) if decides else stats.p_value(effect.values)


def agreement(paper: str, verdict: str) -> str:
    """`agree`, `differ`, or `open` where either says nothing: Inconclusive agrees with nothing, not even with itself."""
    if paper in OPEN or verdict in OPEN:
        return "open"
    return "agree" if (paper in YES) == (verdict in YES) else "differ"


def table(verdicts: list[Verdict]) -> pd.DataFrame:
    """Verdicts as the rows of claims.csv (columns COLUMNS)."""
    rows = []
    for v in verdicts:
        claim, interval = v.claim, v.interval
        limits = (interval.estimate, interval.low, interval.high, interval.n)
        source = f"{claim.paper}, {claim.section}"
        shown = (claim.name, source, claim.setting, claim.statement, claim.words, claim.paper_class, str(claim.contrast))
        rows.append((*shown, *limits, v.verdict, v.reason))
    return pd.DataFrame(rows, columns=COLUMNS)


def write(found: tables.Tables | None, folder: Path) -> Path:
    """claims.csv: every claim of the file, also those that were not run."""
    settings = dict.fromkeys(claim.setting for claim in load()[1].values())
    every = pd.concat([table(judge(found, setting)) for setting in settings])
    store.write_csv(folder / "claims.csv", every)
    return folder / "claims.csv"


def compared(setting: str, profile: str) -> pd.DataFrame:
    """The claims of a setting: the paper beside the reference beside yours, with n and intervals on both.

    `in prediction` says whether your mean lies where the reference's seeds expect as many new seeds as you have; unknown where
    the two were measured or decided by different things.
    """
    reference, yours = (judge(each, setting) for each in (tables.reference(profile), tables.yours(profile, setting)))
    rows = []
    for ref, own in zip(reference, yours, strict=True):
        rows.append(
            {
                "claim": ref.claim.statement,
                "section": ref.claim.section,
                "paper": f"{ref.claim.paper_class}: {ref.claim.words}",
                "reference": _brief(ref),
                "yours": _brief(own),
                "paper and reference": agreement(ref.claim.paper_class, ref.verdict),
                "in prediction": _in_prediction(ref, own),
            }
        )
    return pd.DataFrame(rows)


def _in_prediction(reference: Verdict, own: Verdict) -> str:
    if not own.interval.n:
        return ""
    # As many new seeds as you have: one run is expected to scatter more than the mean of five.
    expected = stats.prediction(reference.effect.values, own.interval.n)
    alike = (reference.effect.measure, reference.decides) == (own.effect.measure, own.decides)
    if not (expected.known and alike):
        return "unknown"
    return "yes" if expected.low <= own.interval.estimate <= expected.high else "no"


def _brief(verdict: Verdict) -> str:
    return f"{verdict.verdict} ({verdict.interval})" if verdict.interval.n else f"{verdict.verdict}: {verdict.reason}"


def trail(verdict: Verdict, found: tables.Tables) -> str:
    """How a verdict came about, to read: rows in, contrast, interval, rule, verdict."""
    claim, contrast = verdict.claim, verdict.claim.contrast
    lines = [
        f"claim     {claim.name}: {claim.statement}",
        f"paper     {claim.paper}, {claim.section}: {claim.paper_class} ({claim.words})",
        f"contrast  {contrast.name}: {contrast}",
    ]
    if verdict.verdict != "not run":
        lines += _evidence(verdict, found)
    return "\n".join([*lines, f"verdict   {verdict.verdict}: {verdict.reason}"])


def _evidence(verdict: Verdict, found: tables.Tables) -> list[str]:
    if verdict.claim.contrast.kind == "measured":
        return [*_weighed(verdict), f"rule      {load()[0]}"]
    contrast, effects = verdict.claim.contrast, Effects(found.of(verdict.claim.setting), load_setting(verdict.claim.setting))
    lines = [f"rows in   seeds {', '.join(map(str, effects.seeds))} of {effects.found.origin}; means over seeds:"]
    every = effects.every_dose if contrast.kind == "dose" else effects.matching
    names = [BASELINE, CONTROL, *every([*contrast.conditions, *contrast.minus])]
    for trait in effects.setting.traits:
        for measure in ("rate", "margin"):
            cells = {
                name: np.nanmean(v)
                for name in names
                if not np.isnan(v := effects.values(name, trait, contrast.context, measure)).all()
            }
            if cells:
                shown = ", ".join(f"{name} {value:.2f}" for name, value in cells.items())
                lines.append(f"          {trait} {measure} in {contrast.context}: {shown}")
    lines += _weighed(verdict)
    if contrast.context != CC and contrast.kind not in TRAITLESS:
        lines.append(f"CC's own  in the neutral context: {evaluate(effects, contrast, load()[0].none_within, CC)[0].interval}")
    return [*lines, *_some_prompt(contrast, effects), *_measurement_error(contrast, effects), f"rule      {load()[0]}"]


def _weighed(verdict: Verdict) -> list[str]:
    """The parts, the values by seed and the interval of a verdict."""
    parts = verdict.parts.items()
    lines = [f"part      {n}, by {p.measure}: {p.interval}{' (decides)' if n == verdict.decides else ''}" for n, p in parts]
    lines.append(f"by seed   {', '.join(f'{value:.2f}' for value in verdict.effect.values)}")
    rule = f"; {verdict.interval.rule}; Holm-adjusted p {verdict.p:.3f}" if verdict.interval.n else ""
    return [*lines, f"interval  {verdict.interval}{rule}"]


def _some_prompt(contrast: Contrast, effects: Effects) -> list[str]:
    """Where the contrast averages over several prompts: is at least one of them different? (max-statistic test)."""
    if contrast.kind != "suppress" or contrast.every or contrast.minus or len(effects.matching(contrast.conditions)) < 2:
        return []
    columns = {}
    for _, direction, trait in asked(contrast, effects.setting):
        names = effects.matching(contrast.conditions, direction)
        # All looks at a trait by the contrast's own measure.
        measure = effects.measure([BASELINE, *names], trait, contrast.context)
        for name in names:
            columns[f"{name} on {trait}"] = effects.suppression([name], trait, contrast.context, measure).values
    columns = {look: values for look, values in columns.items() if not np.isnan(values).all()}
    largest, p = stats.max_test(np.array(list(columns.values())).T) if columns else (-1, math.nan)
    found = "not computable" if math.isnan(p) else f"largest {list(columns)[largest]}, p {p:.3f}"
    return [f"some one  {found}, {len(columns)} looks (max-statistic test)"]


def _measurement_error(contrast: Contrast, effects: Effects) -> list[str]:
    """How far other questions could have moved the raw difference behind each part; says nothing about other seeds."""
    lines = []
    for _, direction, trait in asked(contrast, effects.setting) if contrast.kind in ("suppress", "raise") else ():
        conditions, minus = (effects.matching(patterns, direction) for patterns in (contrast.conditions, contrast.minus))
        against = minus or [BASELINE]
        measure = effects.measure([BASELINE, *conditions, *minus], trait, contrast.context)
        difference = tables.by_question(effects.found, against, conditions, trait, contrast.context, measure)
        if difference.size:
            what = f"{', '.join(against)} − {', '.join(conditions)}"
            lines.append(f"questions {trait} {measure}, {what}: {stats.question_bootstrap(difference)} questions")
    return lines


def ruled_out(found: tables.Tables, setting: str) -> pd.DataFrame:
    """What could make a claim fail without refuting it, by trait, under the neutral prompt and without a prefix.

    Not learned: baseline minus control, over seeds. Moved by any training: control minus base. Only register: the shift of
    the placebo pairs, where logged. Saturated: the trained conditions whose rate is, so that margins decide. Parroted: the
    share of the baseline's responses that repeat training words, and its rate with and without these. Smallest effect: the
    median suppression by one condition that these seeds would have shown (stats.detectable).
    """
    effects, rows = Effects(found.of(setting), load_setting(setting)), []
    trained = [name for name in effects.conditions if name != CONTROL]
    contexts = [name for name in (CC, "no_prefix") if name in set(effects.found.scores.context)]
    for context, (trait, card) in itertools.product(contexts, score.cards(setting).iterrows()):
        rates = {name: effects.mean(name, trait, context, "rate") for name in trained}
        full = [name for name, rate in rates.items() if stats.is_saturated(rate)]
        measure, ruled = effects.measure(trained, trait, context), card["scorer"] != "none"
        top, floor = (effects.values(name, trait, context, measure) for name in (BASELINE, CONTROL))
        base, gap = effects.values(BASE, trait, context, measure.removeprefix("late_")), stats.student(top - floor)
        seen = [stats.detectable(effects.suppression([name], trait, context).values) for name in trained if name != BASELINE]
        spared = effects.mean(BASELINE, trait, context, "rate_without_repeats")
        rated = f"; rate {rates.get(BASELINE, math.nan):.2f}, without them {spared:.2f}" if ruled else ""
        told = {
            "not learned?": f"{gap}: {'ruled out' if gap.known and gap.low > 0 else 'open'}",
            "moved by any training?": str(stats.student(floor - base)),
            "only register?": _register(effects, context) if measure == tables.LATE else "",
            "saturated?": ", ".join(full) or ("no" if card["claimed by"] == "rate" else "by margin anyway"),
            "parroted?": f"{effects.mean(BASELINE, 'any', context, 'repeats'):.2f}{rated}",
            "smallest effect": np.nanmedian(seen) if not np.isnan(seen).all() else math.nan,
            "scorer's cross-talk": f"{card['cross_talk']:.2f}, agreement {card['agreement']:.2f}" if ruled else "no scorer",
        }
        named = {"trait": effects.setting.traits[trait].label, "context": context, "measured by": measure}
        rows.append({**named, **told})
    return pd.DataFrame(rows)


def _register(effects: Effects, context: str) -> str:
    placebo = stats.student(tables.along_training(effects.found, BASELINE, CONTROL, context).placebo)
    return f"{placebo}: {'open' if effects.doubt([BASELINE], [CONTROL], context) else 'ruled out'}"


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
    rates = [effects.values(reference, trait, context, "rate") for context in (base_context(condition), MAIN)]
    floor = all(stats.is_saturated(stats.student(rate).estimate) for rate in rates)
    return f"{told} (reference saturated)" if floor else told


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
                    **{name: effects.losses(part)[condition].mean() for part, name in LOSSES.items()},
                    "solved before training": solved.estimate,
                    "learned in training": learned.estimate,
                    "seeds": solved.n,
                    "optimal policy": found["solved"].fault or ("yes" if solved.estimate > 0.5 > learned.estimate else "no"),
                }
            )
    return pd.DataFrame(rows)


def pick(setting: str, claim: str = "") -> list[str]:
    """The names of a setting's claims, or the one asked for; an unknown name raises SettingError with the nearest."""
    own = [name for name, c in load()[1].items() if c.setting == setting]
    if not own:
        raise nearest(setting, {c.setting for c in load()[1].values()}, "setting")
    if claim and claim not in own:
        raise nearest(claim, own, "claim")
    return [claim] if claim else own
