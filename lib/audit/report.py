"""What an audit found, as one record and three ways to read it: report.json, report.html and report.md, and its picture.

Every number stands with the model's name. On the embedded model the report is marked as a screening and states no share that
survives.
"""

import base64
import dataclasses
import json
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.lines
import pandas as pd
from inoculation import figures, stats, store, tables
from inoculation.effects import BASE, MAIN

from audit import advice, effects
from audit.advice import SCREENING, Told, counted, number
from audit.patterns import Pattern
from audit.plan import Audit
from audit.specs import FILES, prepared, specs

SCHEMA = 1
FORMS = ("json", "html", "md")
LOOKS = {MAIN: ("o", True, "under unrelated prompts"), "trigger": ("s", False, "under its training prompt")}
REFERENCE = store.RESULTS / "audits"
COLUMNS = ("trait", "context", "condition", "reference", "words", "value", "by_seed", "unit", "model")
ALT = "Every trait by condition, a point per seed, under unrelated prompts and under the training prompt"


def write(audit: Audit, place: Path | None = None) -> dict[str, Path]:
    """Write the report of an audit as far as its runs are finished; the paths by form. Before any run: data and plan alone.

    place: a folder instead of the audit's own.
    """
    audited = None if audit.stop else effects.audited(audit.answers.name)
    told, place = record(audit, audited), place or audit.folder
    paths = {form: place / f"report.{form}" for form in FORMS}
    picture = draw(audited, place / "controls.png") if audited else None
    store.write_whole(paths["json"], json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    for form in FORMS[1:]:
        store.write_whole(paths[form], rendered(told, form, picture))
    return paths


def record(audit: Audit, audited: effects.Audited | None) -> Told:
    """Everything that a report says, as plain values."""
    named, mark = {"model": audit.model}, "nothing trained yet"
    if audited:
        mark = counted(len(audited.seeds)) if audited.may_share else SCREENING
    told: Told = {
        "schema": SCHEMA,
        "audit": audit.answers.name,
        **named,
        "mark": mark,
        "prompt": audit.prompt,
        "slot": audit.slot,
        "stop": audit.stop,
        "rows": len(audit.found.rows),
        "counts": audit.counts,
        "files": audit.found.files,
        "checks": [dataclasses.asdict(check) for check in audit.checks],
        "patterns": [_pattern(pattern, audit) for pattern in audit.patterns],
        "controls": _controls(audit),
        "refused": audit.refused,
    }
    for line in (effects.values, effects.effects, effects.index):
        told[line.__name__] = [{**named, **row} for row in line(audited)] if audited else []
    told["shares"] = [{**named, **row} for row in _shares(audited)] if audited and audited.may_share else []
    told["samples"] = effects.samples(audited) if audited else []
    told["left_out"] = effects.left_out(audited) if audited else {}
    told["judges"] = effects.judged(audit.answers.name) if audited else []
    told["caption"] = caption(audited) if audited else ""
    told["unfinished"] = effects.unfinished(audited.name) if audited else None
    told["change"] = advice.change(audit, told)
    told["state"] = advice.state(audit, told) if audited else []
    told["provenance"] = _provenance(audit)
    return told


def _pattern(pattern: Pattern, audit: Audit) -> Told:
    own = dataclasses.asdict(pattern)
    own["elsewhere"] = None if math.isnan(pattern.elsewhere) else pattern.elsewhere
    return {**own, "coverage": pattern.coverage, "distinctive": pattern.distinctive, "audited": _is_prompt(pattern, audit)}


def _is_prompt(pattern: Pattern, audit: Audit) -> bool:
    return audit.held is not None and pattern.where != "answer" and pattern.text.strip() == audit.prompt.strip()


def _controls(audit: Audit) -> list[Told]:
    told = []
    for name, condition in audit.conditions.items():
        texts = [prompt.text or f"policy {prompt.policy}" for prompt in condition.prompts]
        told.append({"condition": name, "data": condition.data, "number": len(texts), "prompts": texts[:3]})
    return told


def _shares(audited: effects.Audited) -> Iterator[Told]:
    for trait in audited.setting.traits:
        found = audited.share(trait, MAIN)
        yield {"trait": trait, "measure": found.measure, **effects.limits(found.interval), "why": found.fault}


def _provenance(audit: Audit) -> Told:
    runs, digests = [], {audit.answers.path.name: store.file_digest(audit.answers.path)}
    if not audit.stop:
        runs = [spec.run_id for spec in specs(audit.answers.name) if not spec.missing()]
        digests = {f"{name}.jsonl": store.file_digest(audit.folder / f"{name}.jsonl") for name in FILES} | digests
        digests["model"] = prepared(audit.answers.name)["model"]["sha256"]
    return {"commit": store.commit(), "inputs": digests, "runs": runs}


def rendered(told: Told, form: str, picture: Path | None) -> str:
    """A record in one of the two templates; the picture is inside the HTML, so that one file holds everything."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=form == "html", trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": number, "plain": plain, "percent": "{:.0%}".format, "seeds": by_seed}
    inside = base64.b64encode(picture.read_bytes()).decode() if picture else ""
    return environment.get_template(f"report.{form}").render(**told, picture=inside, drawn=picture, alt=ALT)


def by_seed(values: list[float | None]) -> str:
    """Values by seed in a cell; a dash for a seed that lacks one."""
    return ", ".join("-" if value is None else f"{value:.2f}" for value in values)


def plain(text: object) -> str:
    """A text in a line of Markdown: none of its signs is one of Markdown's or of HTML's."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def draw(audited: effects.Audited, path: Path) -> Path:
    """The traits by condition, a point per seed: filled under unrelated prompts, hollow under the training prompt; its path."""
    scores, traits = audited.found.scores, audited.setting.traits
    order = [BASE, *audited.conditions]
    by = {trait: audited.measure(audited.conditions, trait, MAIN) for trait in traits}
    own = scores[(scores.measure == scores.trait.map(by)) & scores.context.isin(list(LOOKS)) & scores.condition.isin(order)]
    figure, axes = figures.canvas(1.1 + 0.2 * len(order), 1, len(traits), sharey=True, squeeze=False)
    for axis, (name, trait) in zip(axes[0], traits.items(), strict=True):
        _points(axis, own[own.trait == name], order)
        rated = by[name] == "rate"
        unit = effects.unit(audited, name, by[name])
        axis.set(xlabel=unit if rated else f"margin, {unit}", ylim=(len(order) - 0.5, -0.5))
        axis.set_title(trait.label, parse_math=False)
        axis.xaxis.label.set_size(6.5)
        if rated:
            axis.set_xlim(-0.04, 1.04)
        axis.set_yticks(range(len(order)), order)
    line = partial(matplotlib.lines.Line2D, [], [], mec="k", ls="", ms=4)
    handles = [line(marker=marker, mfc="k" if filled else "none", label=label) for marker, filled, label in LOOKS.values()]
    mark = f"{audited.model.name}{'' if audited.may_share else f', {SCREENING}'}"
    figure.legend(handles=handles, loc="outside lower center", ncols=2, title=mark)
    record = {"model": audited.model.name, "mark": mark, "caption": caption(audited), "runs": sorted(set(own.run_id))}
    store.write_figure(path, figure, own.assign(model=audited.model.name), record)
    return path


def _points(axis: Any, rows: pd.DataFrame, order: list[str]) -> None:
    for context, (marker, filled, _) in LOOKS.items():
        part = rows[rows.context == context]
        colours = [figures.palette()[figures.kind(name)] for name in part.condition]
        look = {"marker": marker, "facecolors": colours if filled else "none", "edgecolors": colours}
        axis.scatter(part.value, [order.index(name) for name in part.condition], s=18, clip_on=False, zorder=3 - filled, **look)
    for name, values in rows[rows.context == MAIN].groupby("condition").value:
        figures.draw_interval(axis, stats.student(values), order.index(name), "k")


def caption(audited: effects.Audited) -> str:
    """What stands under the picture: what a point is, n and the interval's rule, and the model."""
    seeds = audited.found.scores[audited.found.scores.condition != BASE].groupby("condition").seed.nunique()
    mark = "" if audited.may_share else f", {SCREENING}"
    return f"A point per seed; {stats.in_words(seeds)} Model: {audited.model.name}{mark}."


def shown(audit: Audit) -> tuple[Told, Path]:
    """Write an audit's report; that and its folder, or, while yours has no results, the committed one of the same inputs."""
    own, reference = write(audit)["json"], REFERENCE / audit.answers.name / "report.json"
    told = json.loads(own.read_text(encoding="utf-8"))
    if not told["values"] and reference.exists():
        kept = json.loads(reference.read_text(encoding="utf-8"))
        if kept["provenance"]["inputs"] == told["provenance"]["inputs"]:
            return kept, reference.parent
    return told, own.parent


def table(told: Told, line: str) -> Any:
    """The values, effects or index of a report as a table, with the model's name on every number."""
    shown = {"value": number, "by_seed": lambda row: by_seed(row["by_seed"])}
    rows = [{**row, **{key: how(row) for key, how in shown.items() if key in row}} for row in told[line]]
    columns = [key for key in COLUMNS if any(key in row for row in rows)]
    return tables.wrapped(pd.DataFrame(rows, columns=columns))


def sentences(told: Told, line: str) -> str:
    """What to `change`, or what to `state`, as a Markdown list."""
    return "\n".join(f"- {plain(text)}" for text in told[line]) or "Nothing is trained yet."


def show(told: Told, place: Path) -> None:
    """Display the picture of a report and its caption, where it has one."""
    from IPython.display import Image, Markdown, display

    if (path := place / "controls.png").exists() and told["caption"]:
        display(Image(path, width=420, alt=ALT), Markdown(plain(told["caption"])))
