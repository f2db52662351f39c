"""All settings' verdicts and effects as tables: CC's summary table recomputed, NEM's claims, the published numbers, the map.

Every number comes from a run's tables, from data/claims.yaml or from data/published.csv; none is typed here.
"""

import functools
import itertools
from dataclasses import dataclass
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
    *("agreement", "decided_by", "contrast", "reason", "origin"),
]
KEPT = [
    *("setting", "direction", "condition", "kind", "kept", "kept_low", "kept_high", "kept_by"),
    *("suppressed", "suppressed_low", "suppressed_high", "suppressed_by", "seeds", "fault"),
]
TWO_BY_TWO = ["direction", "trait", "effect", "context", "measure", "estimate", "low", "high", "seeds", "interval", "setting"]
ELICITATION = "09_elicitation"
PAGE = '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>CC\'s summary table, recomputed</title>\n{}</html>\n'


@dataclass(frozen=True)
class Everything:
    """One profile's tables by setting, narrow_vs_general among them (absent or None: nothing was run), and all verdicts."""

    profile: str
    found: dict[str, Any]

    @functools.cached_property
    def verdicts(self) -> list[Verdict]:
        """The verdict on every claim, in the order of data/claims.yaml, settings together."""
        names = dict.fromkeys(claim.setting for claim in claims.load()[1].values())
        return list(itertools.chain(*(claims.judge(self.found.get(name), name) for name in names)))

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
        return "\n".join(f"{told.get(origin, origin)}: {', '.join(own)}" for origin, own in names.items())


def gather(profile: str) -> Everything:
    """Every setting's tables: yours where you have any, else the committed reference."""
    return Everything(
        profile, {name: tables.shown(profile, name) for name in setting_names()} | {plan.FILE: solutions.shown(profile)}
    )


def cells(every: Everything) -> pd.DataFrame:
    """CC's summary table, a row per cell (columns CELLS): nine settings by four questions, the paper beside what came out."""
    rows = []
    for verdict in every.verdicts:
        claim, at = verdict.claim, verdict.interval
        if claim.name.startswith(TABLE):
            rows.append(
                (
                    *(claim.section.split(", ")[-1], claim.statement, claim.name, claim.paper_class, claim.words),
                    *(verdict.verdict, at.estimate, at.low, at.high, at.n, verdict.p),
                    *(claims.agreement(claim.paper_class, verdict.verdict), verdict.decides or verdict.effect.measure),
                    *(str(claim.contrast), verdict.reason, every.origins[claim.setting]),
                )
            )
    return pd.DataFrame(rows, columns=CELLS)


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
        return f"{row.contrast}: {row.reason}"
    value = (
        f"{row.estimate:.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}], {row.n_seeds} seeds"
        if row.ci_low == row.ci_low
        else f"{row.estimate:.2f}"
    )
    return f"{row.contrast}: {value}, by {row.decided_by}; {row.reason or 'as the rule says'}"


def write(every: Everything, folder: Path) -> list[Path]:
    """CC's summary table as summary.csv (that of the figure of this name), summary.html and summary.md; returns their paths."""
    paths = [folder / f"summary.{ending}" for ending in ("csv", "html", "md")]
    store.write_csv(paths[0], cells(every))
    store.write_whole(paths[1], PAGE.format(rendered(every, "table.html")))
    store.write_whole(paths[2], rendered(every, "table.md"))
    return paths


def tally(every: Everything) -> pd.DataFrame:
    """How many claims agree with their paper, differ from it or stay open, by paper; and how many say what."""
    drawn = pd.DataFrame(
        [(v.claim.paper, v.verdict, claims.agreement(v.claim.paper_class, v.verdict)) for v in every.verdicts],
        columns=["paper", "verdict", "agreement"],
    )
    return pd.crosstab([drawn.paper, drawn.agreement], drawn.verdict, margins=True, margins_name="all").reset_index()


def selectivity(every: Everything) -> pd.DataFrame:
    """How much of the positive trait every trained condition keeps, and how much of the negative it suppresses.

    A row per setting, direction and condition: shares of what training brings under the neutral prompt's training, in the
    unrelated context, means over seeds with intervals; kind is the condition's.
    """
    rows = []
    for name, known in every.effects.items():
        for direction, roles in known.setting.directions.items():
            for condition in known.every_dose([c for c in known.conditions if known.known[c].data == "trait"], direction):
                if condition != BASELINE and known.known[condition].direction in ("", direction):
                    rows.append({"setting": name, "direction": direction, **_both(known, condition, roles)})
    return pd.DataFrame(rows, columns=KEPT)


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
    """The 2×2 of every setting, direction and trait under unrelated prompts: pattern, semantic and interaction effects."""
    found = [effects.identification(known).assign(setting=name) for name, known in every.effects.items()]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=TWO_BY_TWO)


def published() -> pd.DataFrame:
    """Other published numbers on CC's four questions, each with its source and its caveat (data/published.csv)."""
    return pd.read_csv(store.DATA / "published.csv", keep_default_na=False)


def words() -> pd.DataFrame:
    """The words of this project, from data/glossary.yaml."""
    found = store.read_yaml(store.DATA / "glossary.yaml")
    return pd.DataFrame([(word, block["short"]) for word, block in found.items()], columns=["word", "meaning"])


def sections() -> pd.DataFrame:
    """Which notebook follows which section, on which settings."""
    rows = [(load_setting(name).notebook, load_setting(name).source, load_setting(name).title) for name in setting_names()]
    rows.append((plan.declared()["notebook"], "NEM", plan.declared()["title"]))
    rows.append((ELICITATION, "CC, appendix", "every prompt of the settings above, before training"))
    drawn = pd.DataFrame(rows, columns=["notebook", "follows", "settings"])
    joined = {"follows": lambda own: " and ".join(dict.fromkeys(own)), "settings": "; ".join}
    return drawn.groupby("notebook").agg(joined).reset_index()


def planned(profile: str) -> dict[str, list[runs.Spec]]:
    """The runs of a profile by notebook; a setting that has none in it is left out."""
    found: dict[str, list[runs.Spec]] = {}
    for name in setting_names():
        with_pools = all(not c.lacks for c in load_setting(name).in_profile(profile))
        found.setdefault(load_setting(name).notebook, []).extend(runs.grid(name, profile) if with_pools else [])
    if profile in plan.declared()["profiles"]:
        found[plan.declared()["notebook"]] = plan.grid(profile)
    return {notebook: specs for notebook, specs in sorted(found.items()) if specs}


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
