"""Verdicts to pages: a list of all claims, and for each one page that a sceptic checks in a minute.

A page shows what the paper says, what this profile's seeds say and by which rule, the values and the rows behind them, how to
compute it again and where to disagree. Nothing is decided here: the verdicts and their trail are those of inoculation.claims.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pandas as pd
from inoculation import claims, figures, store, tables
from inoculation.claims import Claim, Verdict
from inoculation.effects import BASELINE, CONTROL, Effects, asked
from inoculation.settings import load_setting, setting_names
from inoculation.stats import Contrast, Effect, Interval
from inoculation.tables import LATE, Tables
from matplotlib.figure import Figure
from narrow import plan

from readalong import pages

PAPERS = {
    "CC": "Conditionalization Confounds Inoculation Prompting Results (2026)",
    "NEM": "Emergent Misalignment is Easy, Narrow Misalignment is Hard (arXiv 2602.07852)",
}
SUPPRESSION = "(baseline − condition) / (baseline − control): 0 is as strong as in the baseline, 1 as absent as in the control"
KINDS = {
    "suppress": f"How much the conditions suppress the traits, {SUPPRESSION}.",
    "raise": f"How much the conditions raise the traits: suppression with its sign turned, {SUPPRESSION}.",
    "fall_short": "How far a condition is from removing all of the negative and none of the positive trait, by the worse one.",
    "dose": "How much of the positive trait more rephrasings bring back; how much the most still suppress the negative one.",
    "grow": f"How much suppression rises from the smallest to the largest training data, {SUPPRESSION}.",
    "shrink": f"How much suppression falls from the smallest to the largest training data, {SUPPRESSION}.",
    "solves": "How much more than half of the loss that training closes the prompt closes alone; how much less is learned.",
    "spreads": "How far training moves the trait per unit of the positive one.",
    "measured": "A share that the package narrow measures, one value per seed (lib/narrow/contrasts.py has the formulas).",
    "unknown": "It rests on something that was not published, so nothing is computed.",
}
ALL_PARTS = "the contrast"
DECIDES, BESIDE = "black", "0.55"
SHOWN = ["condition", "point", "context", "trait", "measure", "seed", "step", "n", "n_unscored", "value", "run_id"]


@dataclass(frozen=True)
class Finding:
    """What one origin's tables of its setting (None: there are none) say about a claim; `label` is reference or yours.

    effects: of these tables, None where nothing was run or another package measures.
    """

    label: str
    found: Tables | None
    effects: Effects | None
    verdict: Verdict

    @property
    def agreement(self) -> str:
        """Agree, differ or open, beside the paper."""
        return claims.agreement(self.verdict.claim.paper_class, self.verdict.verdict)

    @property
    def folder(self) -> Path | None:
        """Where the tables lie; another package's in a folder of their own."""
        apart = self.verdict.claim.setting if self.verdict.claim.contrast.kind == "measured" else ""
        return self.found.folder / apart if self.found else None

    @property
    def run_ids(self) -> list[str]:
        """The runs whose rows these are, where the rows name them."""
        return sorted(self.rows.run_id.unique()) if "run_id" in self.rows else []

    @property
    def brief(self) -> str:
        """Estimate, interval and seeds, or why there are none."""
        return f"{self.verdict.verdict}, {self.verdict.interval}" if self.verdict.interval.n else self.verdict.verdict

    @property
    def lines(self) -> list[tuple[str, Effect, bool]]:
        """What is compared: name, effect and whether it decides; where parts are averaged, their mean comes first."""
        parts = self.verdict.parts
        if self.verdict.decides or (len(parts) == 1 and self.verdict.claim.contrast.kind != "measured"):
            return [(name, part, len(parts) == 1 or name == self.verdict.decides) for name, part in parts.items()]
        return [(ALL_PARTS, self.verdict.effect, True), *((name, part, False) for name, part in parts.items())]

    @property
    def seeds(self) -> list[int]:
        """The seeds that the values belong to, in order."""
        if self.effects:
            return self.effects.seeds
        return sorted(self.rows.seed.unique()) if "seed" in self.rows else []

    @functools.cached_property
    def rows(self) -> pd.DataFrame:
        """The rows of the tables that the verdict rests on: of scores.csv (of sweeps.csv, too, with their `point`, where data
        sizes are compared), of losses.csv (the steps that are read), or of contrasts.csv; none where nothing was computed."""
        contrast = self.verdict.claim.contrast
        if self.verdict.verdict == "not run" or not (self.verdict.parts or contrast.kind == "measured"):
            return pd.DataFrame()
        if contrast.kind == "measured":
            rows = pd.read_csv(self.folder / "contrasts.csv", keep_default_na=False)
            return rows[rows.contrast == contrast.name].assign(value=lambda each: pd.to_numeric(each.value))
        return _losses(self) if contrast.kind == "solves" else _scores(self)


@dataclass(frozen=True)
class Case:
    """A claim and what each origin says about it, the one that is shown elsewhere (yours, where there is any) last."""

    claim: Claim
    findings: list[Finding]


def build(profile: str, site: Path) -> int:
    """Write claims.html and claims/NAME.html with a figure for every claim; returns how many claims there are."""
    names = dict.fromkeys(claim.setting for claim in claims.load()[1].values())
    groups = {name: judged(profile, name) for name in names}
    every = list(itertools.chain(*groups.values()))
    findings = [finding for case in every for finding in case.findings]
    records = {each.folder: store.provenance({each.folder: each.label}) for each in findings if each.folder}
    for before, case, after in zip([None, *every], every, [*every[1:], None], strict=False):
        _page(profile, site, case, records, before=before and before.claim, after=after and after.claim)
    counts = {label: Counter(each.agreement for each in findings if each.label == label) for label in ("reference", "yours")}
    counts = {label: count for label, count in counts.items() if count}
    told = {"groups": groups, "titles": {name: _title(name) for name in groups}, "counts": counts, "total": len(every)}
    pages.render(site, "claims.html", "claims.html", **told)
    return len(every)


def judged(profile: str, setting: str) -> list[Case]:
    """The claims of a setting with the reference's verdict and yours, where there is either; else without a run."""
    found = {"reference": tables.reference(profile), "yours": tables.yours(profile, setting)}
    there = {label: each for label, each in found.items() if each} or {"reference": None}
    findings = [_findings(label, each, setting) for label, each in there.items()]
    return [Case(each[0].verdict.claim, list(each)) for each in zip(*findings, strict=True)]


def _findings(label: str, found: Tables | None, setting: str) -> list[Finding]:
    own = found and found.of(setting)
    computed = setting in setting_names() and own is not None and not own.scores.empty
    effects = Effects(own, load_setting(setting)) if computed else None
    return [Finding(label, own, effects, verdict) for verdict in claims.judge(found, setting)]


def _title(setting: str) -> str:
    return load_setting(setting).title if setting in setting_names() else plan.declared().take("title", str)


def _page(profile: str, site: Path, case: Case, records: dict[Path, Any], **around: Claim | None) -> None:
    claim = case.claim
    figure = _figure(site, case, records)
    command = f"./run_all.sh claims --setting {claim.setting} --claim {claim.name}"
    pages.render(
        site,
        f"claims/{claim.name}.html",
        "claim.html",
        claim=claim,
        title=_title(claim.setting),
        paper=PAPERS[claim.paper],
        kind=KINDS[claim.contrast.kind],
        rule=claims.load()[0],
        findings=[_told(finding) for finding in case.findings],
        figure=figure,
        entries=[_entry("claims", claim.name), _entry("contrasts", claim.contrast.name)],
        command=command if profile == "mini" else f"{command} --profile {profile}",
        **around,
    )


def _told(finding: Finding) -> dict[str, Any]:
    """A finding as its part of the page: the verdict, the values by seed, the rows behind them and the trail."""
    verdict, rows = finding.verdict, finding.rows
    linked = _with_links(finding)
    return {
        "label": finding.label,
        "agreement": finding.agreement,
        "verdict": verdict,
        "lines": finding.lines if verdict.interval.n or verdict.parts else [],
        "seeds": finding.seeds,
        "tables": list(_by_seed(linked)),
        "file": _file(verdict),
        "columns": [name for name in rows if name in SHOWN] if "condition" in rows else list(rows),
        "rows": linked.to_dict("records"),
        "late": "trait" in rows and (rows.measure == LATE).any(),
        "linked": (linked.of_condition != "").any(),
        "trail": claims.trail(verdict, finding.found),
    }


def _file(verdict: Verdict) -> str:
    kind = verdict.claim.contrast.kind
    files = {"measured": f"{verdict.claim.setting}/contrasts.csv", "solves": "losses.csv"}
    return files.get(kind, "scores.csv and sweeps.csv" if kind in ("grow", "shrink") else "scores.csv")


def _losses(finding: Finding) -> pd.DataFrame:
    names = [BASELINE, *finding.effects.matching(finding.verdict.claim.contrast.conditions)]
    read = finding.found.losses[finding.found.losses.condition.isin(names)]
    return read[(read.step == 1) | (read.step > 0.75 * read.step.max())]


def _scores(finding: Finding) -> pd.DataFrame:
    contrast, found = finding.verdict.claim.contrast, finding.found
    looks = _looks(contrast, finding.effects, finding.verdict.parts)
    keys = {(name, *look) for names, *look in looks for name in (BASELINE, CONTROL, *names)}
    swept = contrast.kind in ("grow", "shrink")
    sizes = found.sweeps[found.sweeps.point.str.startswith("rows")] if swept else found.sweeps
    every = pd.concat([found.scores.assign(point=""), sizes]) if swept else found.scores
    every = every[every.context == contrast.context]
    return every[[key in keys for key in zip(every.condition, every.trait, every.measure, strict=True)]]


def _looks(contrast: Contrast, effects: Effects, parts: dict[str, Effect]) -> Iterator[tuple[list[str], str, str]]:
    """What a contrast reads beside baseline and control: (conditions, trait, measure), as effects.evaluate does."""
    setting, context = effects.setting, contrast.context
    if contrast.kind in ("fall_short", "dose"):
        for direction, roles in setting.directions.items():
            names = effects.every_dose(contrast.conditions, direction)
            groups = (
                [names] if contrast.kind == "dose" else [[name] for name in effects.matching(contrast.conditions, direction)]
            )
            for group, trait in itertools.product(groups, roles.values()):
                yield group, trait, effects.measure([BASELINE, *group], trait, context)
        return
    swept = setting.sweeps.get(effects.profile, {}).get("conditions", ()) if contrast.kind in ("grow", "shrink") else ()
    for (_, direction, trait), part in zip(asked(contrast, setting), parts.values(), strict=True):
        names = [*effects.matching(contrast.conditions, direction), *effects.matching(contrast.minus, direction)]
        yield [name for name in names if not swept or name in swept], trait, part.measure
        if contrast.kind == "spreads":
            yield [], setting.directions[direction]["positive"], "margin"


def _with_links(finding: Finding) -> pd.DataFrame:
    """A finding's rows with `of_condition` and `of_run`: where the responses behind them can be read, or an empty text."""
    rows = finding.rows
    if "context" not in rows:
        return rows.assign(of_condition="", of_run="")
    read = _sampled(finding)
    conditions = {(condition, context) for _, condition, context in read}
    links = [
        (
            _samples(finding, row, ()) if (row.condition, row.context) in conditions and not getattr(row, "point", "") else "",
            _samples(finding, row, ("run_id",)) if (row.run_id, row.condition, row.context) in read else "",
        )
        for row in rows.itertuples()
    ]
    return rows.assign(of_condition=[link for link, _ in links], of_run=[link for _, link in links])


def _sampled(finding: Finding) -> set[tuple[str, str, str]]:
    """(run id, condition, context) of the responses that the sample browser has of this origin and setting."""
    kept = finding.found.samples if finding.label == "reference" else finding.found.scores.query("measure == 'repeats'")
    return set(kept[["run_id", "condition", "context"]].itertuples(index=False, name=None))


def _samples(finding: Finding, row: Any, more: Iterable[str]) -> str:
    wanted = {
        "origin": finding.label,
        "setting": finding.verdict.claim.setting,
        "condition": row.condition,
        "context": row.context,
    }
    return "samples.html#" + urlencode(wanted | {name.removesuffix("_id"): getattr(row, name) for name in more})


def _by_seed(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Small tables of the rows, conditions (or parts) by seed: caption, seeds, rows of (name, link, values, mean)."""
    if rows.empty:
        return
    name = "condition" if "condition" in rows else "part"
    unnamed = {"part": ALL_PARTS, "point": "the setting's own size of data"}
    kept = rows.assign(**{key: rows[key].replace("", word) for key, word in unnamed.items() if key in rows})
    if "loss" in kept:
        kept = kept.assign(value=kept.loss, measure=np.where(kept.step == 1, "loss at the first step", "loss, last quarter"))
    keys = [key for key in ("trait", "measure", "point", "context") if key in kept]
    keys = keys if name == "condition" else ["contrast"]
    for values, group in kept.groupby(keys, sort=False, dropna=False):
        wide = group.pivot_table(index=name, columns="seed", values="value", sort=False, dropna=False)
        links = dict(zip(group[name], group.of_condition, strict=True))
        lines = [(each, links[each], list(wide.loc[each]), wide.loc[each].mean()) for each in dict.fromkeys(group[name])]
        yield {"caption": ", ".join(values), "seeds": list(wide), "lines": lines}


def _entry(key: str, name: str) -> dict[str, Any]:
    """An entry of data/claims.yaml as it stands there: file line and text."""
    path = store.DATA / "claims.yaml"
    first = store.read_yaml(path).take(key, store.Block).lines[name]
    start, *rest = path.read_text(encoding="utf-8").splitlines()[first - 1 :]
    own = itertools.takewhile(lambda line: line.startswith("    "), rest)
    return {"key": key, "line": first, "text": "\n".join([start, *own])}


def _figure(site: Path, case: Case, records: dict[Path, Any]) -> dict[str, str] | None:
    """Draw a case into the site (PNG, CSV, JSON), if any of its parts has a value; returns its file name and what it shows."""
    if not any(effect.interval.n for finding in case.findings for _, effect, _ in finding.lines):
        return None
    figure, rows = drawn(case.findings)
    told = "; ".join(f"{finding.label.capitalize()}: {finding.brief}" for finding in case.findings)
    sources = {each.label: {**records[each.folder], "run_ids": each.run_ids} for each in case.findings if each.folder}
    facts = {"figure": case.claim.name, "caption": told, "sources": sources}
    store.write_figure(site / "claims" / f"{case.claim.name}.png", figure, rows, facts)
    return {"file": f"{case.claim.name}.png", "told": told}


def drawn(findings: list[Finding]) -> tuple[Figure, pd.DataFrame]:
    """Seeds as dots, means with intervals, a line per part and origin, over the band of No; returns figure and rows drawn."""
    lines = [(each.label, each.seeds, *line) for each in findings for line in each.lines if line[1].interval.n]
    figure, axis = figures.canvas(0.6 + 0.17 * len(lines))
    bound, rows = claims.load()[0].none_within, []
    for height, (origin, seeds, name, effect, decides) in enumerate(lines):
        colour, interval = DECIDES if decides else BESIDE, effect.interval
        axis.plot(effect.values, np.full(len(effect.values), height), "o", ms=2.5, mfc="none", mec=colour, mew=0.6)
        figures.draw_interval(axis, interval, height, colour)
        rows += [
            (origin, name, decides, seed, value, *_limits(interval)) for seed, value in zip(seeds, effect.values, strict=True)
        ]
    axis.axvspan(-bound, bound, color="0.92", zorder=0)
    axis.axvline(0, color="k", lw=0.6)
    several = len(findings) > 1
    axis.set_yticks(range(len(lines)), [f"{name} · {origin}" if several else name for origin, _, name, *_ in lines], fontsize=6)
    axis.set(ylim=(len(lines) - 0.4, -0.6))
    axis.tick_params(axis="x", labelsize=6)
    axis.grid(axis="y", visible=False)
    return figure, pd.DataFrame(rows, columns=["origin", "part", "decides", "seed", "value", "estimate", "low", "high", "n"])


def _limits(interval: Interval) -> tuple[float, float, float, int]:
    return interval.estimate, interval.low, interval.high, interval.n
