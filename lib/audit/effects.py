"""From an audit's finished runs to numbers: values, what each prompt takes from each trait, the 2×2, the index.

The mathematics is inoculation.effects': paired within seed, Student's t over seeds, questions apart. An audit differs in two
things: where no control was given, the untouched model ends the scale; and a trait has one measure, or two of which the margin
serves where the rate is saturated. Differences are in the trait's own unit; shares only where `may_share` says so.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from inoculation import claims, stats, store, tables
from inoculation.effects import BASE, BASELINE, CC, CONTROL, MAIN, Effects
from inoculation.render import WHY
from inoculation.runs import stage_name
from inoculation.settings import load_profile
from inoculation.stats import Effect, Interval, is_saturated

from audit.hub import Base
from audit.specs import Spec, folder, prepared, setting, specs

OVER_BASE = "minus the untouched model's"
REFERENCES = {"CC's": "", OVER_BASE: BASE, "minus the baseline's": BASELINE}
TAKES = {  # what a line of effects is about, and the conditions it compares with the baseline
    "training": "what training brings",
    "yours": "what your prompt takes",
    "irrelevant": "what irrelevant prompts take, fixed",
    "varied": "what irrelevant prompts take, varied",
    "rephrased": "what your prompt takes, rephrased",
    "beyond": "what your prompt takes beyond irrelevant ones, fixed",
    "pattern": "pattern: irrelevant, fixed minus varied",
    "semantic": "semantic: yours minus irrelevant, at equal variation",
    "interaction": "interaction: fixed minus varied, yours minus irrelevant",
}
KINDS = {"yours": "inoculation", "irrelevant": "irrelevant", "varied": "irrelevant-varied", "rephrased": "rephrased"}
CONTEXTS = (MAIN, CC)


def fewest() -> int:
    """The seeds that a share needs, as a verdict does (design decision 8)."""
    return claims.load()[0].seeds


def least() -> float:
    """A rate that training moves by less is taken for one that it does not move: the bound of No (design decision 8)."""
    return claims.load()[0].none_within


class Audited(Effects):
    """The effects of one audit: `end` is the control, or the untouched model where there is none."""

    def __init__(self, found: tables.Tables, name: str) -> None:
        super().__init__(found, setting(name))
        self.name, self.end = name, CONTROL if CONTROL in self.conditions else BASE
        self.model = Base(**prepared(name)["model"])

    def measure(self, names: list[str], trait: str, context: str) -> str:
        """`rate`, or `margin` where there is no rate, or where one of these is saturated and there are pairs."""
        rates = [self.mean(name, trait, context, "rate") for name in names]
        margins = self.values(BASELINE, trait, context, "margin")
        hidden = any(np.isnan(rate) or is_saturated(rate) for rate in rates)
        return "margin" if hidden and not np.isnan(margins).all() else "rate"

    def taught(self, trait: str, context: str, measure: str) -> np.ndarray:
        """How far training moves a trait: baseline minus control (or untouched model), one value per seed."""
        return self.values(BASELINE, trait, context, measure) - self.values(self.end, trait, context, measure)

    def of_kind(self, kind: str) -> list[str]:
        """The conditions of a kind that were run."""
        return [name for name in self.conditions if self.known[name].kind == kind]

    def takes(self, trait: str, context: str) -> dict[str, Effect]:
        """Every line of TAKES for a trait in a context, in the trait's own unit, one value per seed."""
        named = {line: self.of_kind(kind) for line, kind in KINDS.items()}
        measure = self.measure([BASELINE, *itertools.chain(*named.values())], trait, context)
        baseline = self.values(BASELINE, trait, context, measure)
        found = {"training": self.taught(trait, context, measure)}
        for line, names in named.items():
            each = [self.values(name, trait, context, measure) for name in names]
            found[line] = baseline - np.mean(each, axis=0) if each else np.full(len(self.seeds), np.nan)
        fixed, varied, yours, rephrased = (found[line] for line in ("irrelevant", "varied", "yours", "rephrased"))
        found["beyond"] = yours - fixed
        found["pattern"] = fixed - varied
        found["semantic"] = (yours - fixed + rephrased - varied) / 2
        found["interaction"] = (yours - rephrased) - (fixed - varied)
        return {line: Effect(found[line], "" if self._seen(found[line]) else "not run", measure) for line in TAKES}

    @staticmethod
    def _seen(values: np.ndarray) -> bool:
        return not np.isnan(values).all()

    def on_these_questions(self, line: str, trait: str, context: str, measure: str) -> Interval | None:
        """The interval of a line over questions (measurement error); None for lines that compare more than two conditions."""
        sides = [[BASELINE], [self.end] if line == "training" else self.of_kind(KINDS.get(line, ""))]
        if line == "beyond":
            sides = [self.of_kind("irrelevant"), self.of_kind("inoculation")]
        if not all(sides):
            return None
        sides = [self._by_question(side, trait, context, measure) for side in sides]
        return stats.question_bootstrap((sides[0] - sides[1]).to_numpy())

    def _by_question(self, names: list[str], trait: str, context: str, measure: str) -> pd.DataFrame:
        """The mean over conditions, a row per seed and a column per question; the untouched model's one row for every seed."""
        runs = self.found.runs[self.found.runs.condition.isin(names)][["run_id", "seed"]]
        items = self.found.items.merge(runs, on="run_id")
        own = items[(items.trait == trait) & (items.context == context) & (items.measure == measure)]
        cells = own.pivot_table(index="seed", columns="question_id", values="value")
        cells = cells.reindex(cells.index.union(self.seeds))
        return (cells.ffill().bfill() if names == [BASE] else cells).loc[self.seeds]

    def share(self, trait: str, context: str) -> Effect:
        """How much of what your prompt takes is more than what irrelevant fixed prompts take; never of a screening."""
        found = self.takes(trait, context)
        few = f"{len(self.seeds)} seeds; a share needs {fewest()}" * (len(self.seeds) < fewest())
        if fault := few if self.may_share else "a screening states no share that survives":
            return Effect(np.full(len(self.seeds), np.nan), fault)
        yours, irrelevant = found["yours"].values, found["irrelevant"].values
        values, fault = stats.share(yours - irrelevant, yours, TAKES["yours"])
        return Effect(values, fault, found["yours"].measure)

    @property
    def may_share(self) -> bool:
        """Whether shares may be stated: of a model of yours at full scale; all else is a screening."""
        return load_profile(self.profile).scale == "paper"


def collect(name: str) -> tables.Tables | None:
    """Write the tables of an audit's finished runs into its folder and read them; None where no trained run is finished."""
    done = [spec for spec in specs(name) if not spec.missing()]
    if not any(spec.rows for spec in done):
        return None
    place = folder(name) / "tables"
    rows = {spec: _items(spec) for spec in done}
    logs = [(spec, pd.read_csv(spec.folder / "train_log.csv")) for spec in done if spec.rows]
    losses = [log.assign(**{key: getattr(spec, key) for key in tables.RUN}) for spec, log in logs]
    store.write_csv(place / "scores.csv", pd.concat([tables.scores(spec, own) for spec, own in rows.items()]))
    store.write_csv(place / "losses.csv", pd.concat(losses))
    store.write_csv(place / "runs.csv", pd.DataFrame([tables.facts(spec) for spec in done]))
    store.write_csv(place / "items.csv.gz", pd.concat(rows.values()))
    first = {spec.condition: spec for spec in reversed(done)}
    store.write_jsonl(place / "samples.jsonl", [row for spec in first.values() for row in tables.samples(spec)])
    return tables.read(place, "yours")


def _items(spec: Spec) -> pd.DataFrame:
    """A run's items (tables.items) and, where a judge decides a measure, its verdicts as rates; of the unscored, the reason."""
    rows = tables.items(spec)
    if "judge" not in spec.keys:
        return rows
    told = pd.read_parquet(spec.file("judge"))
    rates = told.assign(measure="rate", run_id=spec.run_id)
    why = told[told.reason != ""]
    unscored = why.assign(measure=WHY + why.reason, value=1.0, run_id=spec.run_id)
    return pd.concat([rows, rates[tables.ITEMS], unscored[tables.ITEMS]])


def values(audited: Audited) -> list[dict[str, Any]]:
    """Every condition's mean of every trait in every context, by every measure it has, with the seeds' interval."""
    scores = audited.found.scores
    own = scores[scores.measure.isin(["rate", "margin"]) & scores.trait.isin(list(audited.setting.traits))]
    told = []
    for (trait, measure, context, condition), rows in own.groupby(["trait", "measure", "context", "condition"], sort=False):
        if not context.startswith("trigger."):
            names = {"trait": trait, "condition": condition, "context": context, "measure": measure}
            rate = rows.value.mean()
            facts = {"items": int(rows.n.sum()), "unscored": int(rows.n_unscored.sum())}
            facts["saturated"] = measure == "rate" and is_saturated(rate)
            told.append({**names, **limits(stats.student(rows.value)), **facts, "unit": unit(audited, trait, measure)})
    return told


def limits(found: Interval) -> dict[str, Any]:
    """An interval as plain values; NaN as None, so that JSON has no NaN."""
    return {"value": _rounded(found.estimate), "low": _rounded(found.low), "high": _rounded(found.high), "seeds": found.n}


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def effects(audited: Audited) -> list[dict[str, Any]]:
    """Every line of TAKES of every trait in both contexts, with the seeds' interval, the questions', and the values by seed."""
    told = []
    for context, name in itertools.product(CONTEXTS, audited.setting.traits):
        for line, effect in audited.takes(name, context).items():
            if effect.fault:
                continue
            over = audited.on_these_questions(line, name, context, effect.measure)
            told.append(
                {
                    **{"trait": name, "role": _role(audited, name), "context": context, "effect": line, "words": TAKES[line]},
                    **{"measure": effect.measure, **limits(effect.interval)},
                    "questions": limits(over) if over else None,
                    "by_seed": list(map(_rounded, effect.values)),
                    "unit": unit(audited, name, effect.measure),
                }
            )
    return told


def moved(training: dict[str, Any]) -> bool:
    """Whether a line `training` shows that training brings its trait: in every seed, beyond what other questions would change.

    A rate must rise by 0.15 at least.
    """
    low = (training["questions"] or {}).get("low")
    beyond = low is not None and low > 0
    return (
        beyond
        and all(value is None or value > 0 for value in training["by_seed"])
        and (training["measure"] != "rate" or training["value"] >= least())
    )


def left_out(audited: Audited) -> dict[str, int]:
    """How many rows each condition left out as too long, over its seeds; those that left out none are not named."""
    counts = audited.found.runs.groupby("condition").left_out.sum()
    return {name: int(count) for name, count in counts.items() if count}


def judged(name: str) -> list[dict[str, Any]]:
    """What each judge said of its controls: your example with the trait, the one without, and that with an injected verdict."""
    told: dict[tuple[str, str], list[float]] = {}
    for spec in (spec for spec in specs(name) if spec.judged and not spec.missing()):
        facts = store.Run(spec.folder).manifest["stages"][stage_name("judge", spec.keys["judge"])]["facts"]["controls"]
        for key, value in facts.items():
            told.setdefault(tuple(key.split("/")), []).append(value)
    means = {key: float(np.nanmean(values)) if not np.isnan(values).all() else None for key, values in told.items()}
    measures = {m["name"]: m for m in prepared(name)["measures"]}
    traits = dict.fromkeys(trait for trait, _ in means)
    sides = ("good", "bad", "injected")
    return [{"trait": t, "judge": measures[t]["judge"], **{side: means.get((t, side)) for side in sides}} for t in traits]


def unfinished(name: str) -> float:
    """The share of the trained models' responses that were cut before they ended."""
    done = [spec for spec in specs(name) if spec.rows and not spec.missing()]
    return float(1 - pd.concat([pd.read_parquet(spec.file("sample")).finished for spec in done]).mean())


def _role(audited: Audited, trait: str) -> str:
    return next(m["role"] for m in prepared(audited.name)["measures"] if m["name"] == trait)


def unit(audited: Audited, trait: str, measure: str) -> str:
    """The unit of a trait by a measure."""
    if measure == "rate":
        return audited.setting.traits[trait].unit
    return "nats a token" if audited.setting.traits[trait].margin == "per_token" else "nats"


def index(audited: Audited) -> list[dict[str, Any]]:
    """The conditionalization index (design decision 9) of your prompt, fixed and rephrased, for every trait and reference."""
    told = []
    for kind, trait in itertools.product(("inoculation", "rephrased"), audited.setting.traits):
        for condition in audited.of_kind(kind):
            measures = [audited.measure([condition], trait, context) for context in ("trigger", MAIN)]
            measure = "margin" if "margin" in measures else "rate"
            for words, reference in REFERENCES.items():
                found = audited.index(condition, trait, measure, reference).interval
                names = {"trait": trait, "condition": condition, "reference": words, "measure": measure}
                told.append({**names, **limits(found), "unit": unit(audited, trait, measure)})
    return told


def samples(audited: Audited, contexts: Iterable[str] = (MAIN, "trigger")) -> list[dict[str, str]]:
    """One response per condition and context, to be read."""
    rows = audited.found.samples
    own = rows[rows.context.isin(list(contexts))].groupby(["condition", "context"], sort=False).head(1)
    return own[["condition", "context", "question", "response"]].to_dict("records")


def audited(name: str) -> Audited | None:
    """The effects of an audit as far as its runs are finished; None before base model and baseline are."""
    found = collect(name)
    return Audited(found, name) if found and {BASE, BASELINE} <= set(found.scores.condition) else None
