"""All settings' verdicts and effects as tables: CC's summary table recomputed, NEM's claims, the published numbers, the map.

Every number comes from a run's tables, from data/claims.yaml or from data/published.csv; none is typed here.
"""

import functools
import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml
from inoculation import claims, effects, figures, runs, settings, store, tables
from inoculation.claims import Verdict
from inoculation.effects import BASELINE, MAIN, Effects
from inoculation.settings import load_setting, setting_names
from narrow import plan
from narrow import tables as solutions

TABLE = "cc.table."
CELLS = [
    *("setting", "question", "claim", "paper_class", "paper_words", "verdict", "estimate", "ci_low", "ci_high", "n_seeds", "p"),
    *("agreement", "measure", "decides", "contrast", "reason", "origin", "remark", "yours"),
]
KEPT = [
    *("setting", "direction", "condition", "kind", "kept", "kept_low", "kept_high", "kept_by"),
    *("suppressed", "suppressed_low", "suppressed_high", "suppressed_by", "seeds", "fault"),
]
IDENTIFIED = ["direction", "trait", "effect", "context", "measure", "estimate", "low", "high", "seeds", "interval", "setting"]
PAGE = '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>CC\'s summary table, recomputed</title>\n{}</html>\n'


@dataclass(frozen=True)
class Everything:
    """One profile's tables by setting, narrow_vs_general among them (absent or None: nothing was run), and all verdicts.

    yours: your tables of settings of which something else is shown, as they have too few seeds for a verdict.
    """

    profile: str
    found: dict[str, Any]
    yours: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def verdicts(self) -> list[Verdict]:
        """The verdict on every claim, in the order of data/claims.yaml, settings together."""
        names = dict.fromkeys(claim.setting for claim in claims.load()[1].values())
        return list(itertools.chain(*(claims.judge(self.found.get(name), name) for name in names)))

    @functools.cached_property
    def own_verdicts(self) -> dict[str, Verdict]:
        """What `yours` say, by claim."""
        return {each.claim.name: each for name, own in self.yours.items() for each in claims.judge(own, name)}

    @functools.cached_property
    def effects(self) -> dict[str, Effects]:
        """The effects of every setting in which anything was trained."""
        trained = {name: own.of(name) for name in setting_names() if (own := self.found.get(name)) is not None}
        known = {name: Effects(own, load_setting(name)) for name, own in trained.items()}
        return {name: own for name, own in known.items() if own.conditions}

    @property
    def origins(self) -> dict[str, str]:
        """Where each setting's numbers come from: `yours`, `reference`, or `not run`."""
        found = {name: self.found.get(name) for name in (*setting_names(), plan.FILE)}
        return {name: own.origin if own is not None else "not run" for name, own in found.items()}

    def __str__(self) -> str:
        names = {origin: [name for name, own in self.origins.items() if own == origin] for origin in self.origins.values()}
        told = {"yours": "what follows is yours", "reference": "what follows is reference"}
        lines = [f"{told.get(origin, origin)}: {', '.join(own)}" for origin, own in names.items()]
        return "\n".join([*lines, *(f"beside it, with fewer seeds, yours: {name}" for name in self.yours)])


def gather(profile: str) -> Everything:
    """Every setting's tables: yours where they have the seeds that a verdict needs or stand alone, else the reference."""
    found, few = {}, {}
    for name, (shown, kept, seeds) in _offered(profile).items():
        found[name] = shown
        if kept is not None and shown is not None and shown.origin == "yours" and seeds < claims.load()[0].seeds:
            few[name], found[name] = shown, kept
    return Everything(profile, found, few)


def _offered(profile: str) -> dict[str, tuple[Any, Any, int]]:
    """By setting: the tables that its notebook shows, the reference's (or None), and the seeds of the former's trainings."""
    reference, offered = tables.reference(profile), {}
    for name in setting_names():
        shown = tables.shown(profile, name)
        kept = reference.of(name) if reference and name in set(reference.scores.setting) else None
        trained = shown.scores[shown.scores.condition != effects.BASE] if shown else pd.DataFrame({"seed": []})
        offered[name] = (shown, kept, trained.seed.nunique())
    shown = solutions.shown(profile)
    offered[plan.FILE] = (
        shown,
        solutions.read(store.RESULTS / profile, profile, "reference"),
        len(shown.seeds) if shown else 0,
    )
    return offered


def cells(every: Everything) -> pd.DataFrame:
    """CC's summary table, a row per cell (columns CELLS): nine settings by four questions, the paper beside what came out.

    yours: what too few seeds of yours say, empty where there are none or they are what is shown.
    """
    rows = []
    for verdict in every.verdicts:
        claim, at = verdict.claim, verdict.interval
        if claim.name.startswith(TABLE):
            own = every.own_verdicts.get(claim.name)
            rows.append(
                (
                    *(claim.section.split(", ")[-1], claim.statement, claim.name, claim.paper_class, claim.words),
                    *(verdict.verdict, at.estimate, at.low, at.high, at.n, verdict.p),
                    *(claims.agreement(claim.paper_class, verdict.verdict), verdict.effect.measure, verdict.decides),
                    *(str(claim.contrast), verdict.reason, every.origins[claim.setting]),
                    *(_remark(verdict, every), f"{own.verdict}: {own.interval}" if own else ""),
                )
            )
    return pd.DataFrame(rows, columns=CELLS)


def _remark(verdict: Verdict, every: Everything) -> str:
    """Where rephrasing restores nothing: did the fixed prompts take anything away that could be restored?"""
    contrast, bound = verdict.claim.contrast, claims.load()[0].none_within
    if contrast.kind != "suppress" or not contrast.minus or verdict.verdict != "No":
        return ""
    fixed, _, _ = effects.evaluate(every.effects[verdict.claim.setting], replace(contrast, name="taken", minus=()), bound)
    return f"the fixed prompts take {fixed.interval}, so there is little to restore" if fixed.interval.inside(bound) else ""


def rendered(every: Everything, template: str) -> str:
    """CC's summary table in a template of this package: `table.html` (hover and footnotes) or `table.md` (footnotes)."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=template.endswith("html"), trim_blocks=True, lstrip_blocks=True)
    drawn = cells(every)
    told = [_told(row) for row in drawn.itertuples()]
    numbered = drawn.assign(number=range(1, len(drawn) + 1), told=told)
    facts = {
        "questions": list(dict.fromkeys(drawn.question)),
        "rule": str(claims.load()[0]),
        "mark": figures.mark(every.profile),
        "colours": figures.VERDICTS,
    }
    by_setting = {name: list(part.itertuples()) for name, part in numbered.groupby("setting", sort=False)}
    return environment.get_template(template).render(rows=by_setting, notes=list(numbered.itertuples()), **facts)


def _told(row: Any) -> str:
    """A cell's footnote: effect, interval, seeds, what decided, and why the verdict is what it is."""
    if not row.n_seeds:
        value = row.reason
    else:
        limits = f" [{row.ci_low:.2f}, {row.ci_high:.2f}]" if row.ci_low == row.ci_low else ""
        part = f", of {row.decides}" if row.decides else ""
        value = f"{row.estimate:.2f}{limits}, {row.n_seeds} seeds, by {row.measure}{part}; {row.reason}"
    more = [row.remark, f"yours: {row.yours}" * bool(row.yours)]
    return "; ".join([f"{row.contrast}: {value}", *filter(None, more)])


def write(every: Everything, folder: Path) -> list[Path]:
    """CC's summary table as summary.html and summary.md, beside the figure's summary.csv, which holds it, too; their paths."""
    paths = [folder / "summary.html", folder / "summary.md"]
    store.write_whole(paths[0], PAGE.format(rendered(every, "table.html")))
    store.write_whole(paths[1], rendered(every, "table.md"))
    return paths


def tally(every: Everything) -> pd.DataFrame:
    """How many claims agree with their paper, differ from it or stay open, by paper; and how many say what."""
    drawn = pd.DataFrame(
        [(v.claim.paper, v.verdict, claims.agreement(v.claim.paper_class, v.verdict)) for v in every.verdicts],
        columns=["paper", "verdict", "agreement"],
    )
    return pd.crosstab([drawn.paper, drawn.agreement], drawn.verdict, margins=True, margins_name="all").reset_index()


def selectivity(every: Everything) -> pd.DataFrame:
    """How much of the positive trait every condition keeps that is trained on it, and how much of the negative it suppresses.

    A row per setting, condition and pair of traits: shares of what training brings, under unrelated prompts, means over seeds
    with intervals. A condition that belongs to no direction stands once where several directions have the same traits.
    """
    rows = []
    for name, known in every.effects.items():
        for direction, roles in known.setting.directions.items():
            for condition in known.conditions:
                about = known.known[condition]
                if about.data == "trait" and condition != BASELINE and about.direction in ("", direction):
                    rows.append({"setting": name, "direction": direction, **_both(known, condition, roles)})
    return pd.DataFrame(rows, columns=KEPT).drop_duplicates(["setting", "condition", "kept", "suppressed"])


def _both(known: Effects, condition: str, roles: dict[str, str]) -> dict[str, Any]:
    negative, positive = (known.suppression([condition], roles[role], MAIN) for role in ("negative", "positive"))
    lost, gone = positive.interval, negative.interval
    counted = min(lost.n, gone.n)
    return {
        **{"condition": condition, "kind": known.known[condition].kind},
        **{"kept": 1 - lost.estimate, "kept_low": 1 - lost.high, "kept_high": 1 - lost.low, "kept_by": positive.measure},
        **{
            "suppressed": gone.estimate,
            "suppressed_low": gone.low,
            "suppressed_high": gone.high,
            "suppressed_by": negative.measure,
        },
        **{"seeds": counted, "fault": "" if counted else negative.fault or positive.fault},
    }


def identification(every: Everything) -> pd.DataFrame:
    """The 2×2 of every setting, direction and trait under unrelated prompts: pattern, semantic and interaction effects.

    What does not depend on the direction stands once, with the first.
    """
    found = [effects.identification(known).assign(setting=name) for name, known in every.effects.items()]
    drawn = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=IDENTIFIED)
    return drawn.drop_duplicates(["setting", "trait", "effect", "estimate"])


def published() -> pd.DataFrame:
    """Other published numbers on the questions that CC begins with, with source and caveat (data/published.csv), to read."""
    found = pd.read_csv(store.DATA / "published.csv", keep_default_na=False)
    told = {
        "question": [figures.word(f"question {number}") for number in found.question],
        **{column: found[column] for column in ("says", "with", "without", "unit", "compared")},
        "measured": found.measure + " (" + found.setting + ", " + found.model + ")",
        "source": found.source + ": " + found["where"],
        "caveat": found.caveat,
    }
    return pd.DataFrame(told)


def words() -> pd.DataFrame:
    """The words of this project, from data/glossary.yaml."""
    found = store.read_yaml(store.DATA / "glossary.yaml")
    return pd.DataFrame([(word, block["short"]) for word, block in found.items()], columns=["word", "meaning"])


def sections() -> pd.DataFrame:
    """Which notebook follows which section, on which settings."""
    rows = [(load_setting(name).notebook, load_setting(name).source, load_setting(name).title) for name in setting_names()]
    rows.append((plan.declared()["notebook"], "NEM", plan.declared()["title"]))
    rows.append(("09_elicitation", "CC, appendix", "every prompt of the settings above, before training"))
    rows.append(("11_your_own_setting", "CC, recommendations", "your own data and training prompt"))
    drawn = pd.DataFrame(rows, columns=["notebook", "follows", "settings"])
    joined = {"follows": lambda own: " and ".join(dict.fromkeys(own)), "settings": "; ".join}
    return drawn.groupby("notebook").agg(joined).reset_index()


def planned(profile: str) -> dict[str, list[runs.Spec]]:
    """The runs of a profile by notebook, without the conditions that draw on more prompts than their pool holds."""
    found: dict[str, list[runs.Spec]] = {}
    for name in setting_names():
        able = [condition.name for condition in load_setting(name).in_profile(profile) if not condition.lacks]
        found.setdefault(load_setting(name).notebook, []).extend(runs.grid(name, profile, [effects.BASE, *able]))
    if profile in plan.declared()["profiles"]:
        found[plan.declared()["notebook"]] = plan.grid(profile)
    return dict(sorted(found.items()))


def minutes() -> pd.DataFrame:
    """Runs and minutes on 2 cores of every notebook in every profile; a profile that was not measured has its runs alone."""
    columns = {}
    for profile in settings.profile_names():
        for notebook, specs in planned(profile).items():
            each = [spec.parts[2].minutes for spec in specs]
            told = "minutes not measured" if None in each else f"{sum(each):.0f} minutes"
            columns.setdefault(profile, {})[notebook] = f"{len(specs)} runs, {told}"
    return pd.DataFrame(columns).rename_axis("notebook").fillna("").reset_index()


def done(profile: str) -> pd.DataFrame:
    """What is already run: your finished runs of the profile's, and the seeds of the reference, by notebook and setting."""
    rows, reference = [], tables.reference(profile)
    for notebook, specs in planned(profile).items():
        for name in dict.fromkeys(spec.setting for spec in specs):
            own = [spec for spec in specs if spec.setting == name]
            kept = _reference_runs(reference, profile, name)
            rows.append((notebook, name, f"{sum(not spec.missing() for spec in own)} of {len(own)}", kept))
    return pd.DataFrame(rows, columns=["notebook", "setting", "your runs", "runs in the reference"])


def _reference_runs(reference: tables.Tables | None, profile: str, name: str) -> int:
    if name == plan.FILE:
        apart = solutions.read(store.RESULTS / profile, profile, "reference")
        return len(apart.runs) if apart else 0
    return len(reference.of(name).runs) if reference else 0


def citation() -> str:
    """How to cite: this companion and the two write-ups, from CITATION.cff."""
    found = yaml.safe_load((store.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    lines = [f"{_authors(found)}. *{found['title']}*. Software, {found['license']}."]
    for each in found["references"]:
        where = "".join(f", {one['value']}" for one in each.get("identifiers", []))
        lines.append(f"{_authors(each)} ({each['year']}). *{each['title']}*{where}.")
    return f"{found['message']}\n\n" + "\n".join(f"* {line}" for line in lines)


def _authors(entry: dict[str, Any]) -> str:
    names = [one.get("name") or f"{one['given-names']} {one['family-names']}" for one in entry["authors"]]
    return " and ".join(names)
