"""Tables to figures: one style, one colour per kind of condition, and beside every picture its data and its provenance.

A figure is NAME.png, NAME.csv (what is drawn) and NAME.json (digests of the tables, run ids, the commit of the runs; no clock).
Nothing here knows how a number was made.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from inoculation import claims, effects, score, stats, store, tables
from inoculation.settings import Setting, Trait, load_profile, load_setting

PALETTE = {
    "base": "#999999",
    "control": "#56b4e9",
    "baseline": "#000000",
    "partial": "#cc79a7",
    "default": "#666666",
    "empty": "#666666",
    "no_prefix": "#666666",
    "inoculation": "#d55e00",
    "rephrased": "#e69f00",
    "irrelevant": "#0072b2",
    "irrelevant-varied": "#009e73",
}
MARKERS = {"neutral": "o", "no_prefix": "s", "trigger": "D"}
ASKED = {"neutral": "neutral prompt", "no_prefix": "no prefix", "trigger": "its training prompt"}
TWO_BY_TWO = {"pattern": "#009e73", "semantic": "#d55e00", "interaction": "#999999"}
VERDICTS = {"agree": "#009e73", "differ": "#d55e00", "open": "#999999"}
EDGE = 1.6  # of the axes of effects; what reaches further is cut, and the caption says so
SCALE = "suppression (0: as in the baseline, 1: as in the control)"
INTERVAL = "95 % Student t over seeds, on these questions"
MARKS = {"smoke": "SMOKE TEST · not a result", "demo": "DEMO SCALE · 135M model", "paper": "paper scale"}


def style() -> None:
    """The one look of every figure: readable at column width (3.5 in), no chart junk."""
    sns.set_theme(context="paper", style="whitegrid", font_scale=0.85)
    matplotlib.rcParams.update({"figure.dpi": 120, "savefig.dpi": 200, "axes.titlesize": 8, "legend.fontsize": 7})


def kind(condition: str) -> str:
    """The kind of a condition by its name, the key of its colour."""
    stem = condition.split(".")[0]
    return stem if stem in PALETTE else stem.rsplit("-", 1)[0]


def traits_by_condition(found: tables.Tables, setting: Setting, profile: str) -> tuple[Figure, pd.DataFrame, str]:
    """Both traits by condition, a point per seed: filled under the neutral prompt, hollow under another.

    The other is the training prompt; in a setting whose prompt is a prefix, it is none. Each trait by the measure that its
    scorer's card names. Returns the figure, the rows drawn and the caption, which names n, the unit and the interval rule.
    """
    style()
    other = "no_prefix" if "no_prefix" in set(found.scores.context) else "trigger"
    drawn = _by_card(found, setting, (effects.CC, other))
    order = list(dict.fromkeys(drawn.condition))
    figure = Figure(figsize=(3.5, 0.9 + 0.2 * len(order)), layout="constrained")
    axes = figure.subplots(1, len(setting.traits), sharey=True)
    for axis, trait in zip(axes, setting.traits.values(), strict=True):
        part = drawn[drawn.trait == trait.name]
        _points(axis, part, order, other)
        unit, limits = _unit(trait, part)
        axis.set(xlim=limits, ylim=(len(order) - 0.5, -0.5), title=trait.label, xlabel=unit)
        axis.set_yticks(range(len(order)), order)
    look = [(MARKERS[name], face, ASKED[name]) for name, face in ((effects.CC, "k"), (other, "none"))]
    handles = [matplotlib.lines.Line2D([], [], marker=m, mfc=c, mec="k", ls="", ms=4, label=label) for m, c, label in look]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, title=_mark(profile), title_fontsize=7)
    return figure, drawn, _caption(drawn, setting, profile)


def _by_card(found: tables.Tables, setting: Setting, contexts: tuple[str, ...]) -> pd.DataFrame:
    """The scores in some contexts, each trait by the measure that its scorer's card names."""
    measure = found.scores.trait.map(score.cards(setting.name)["claimed by"])
    return found.scores[(found.scores.measure == measure) & found.scores.context.isin(contexts)]


def _unit(trait: Trait, rows: pd.DataFrame) -> tuple[str, tuple[float | None, float | None]]:
    """A trait's axis label and limits: a share, or the margin where its card names that."""
    if (rows.measure == "rate").all():
        return trait.unit.replace(" in ", "\nin "), (-0.04, 1.04)
    return f"margin\n({_per(trait)})", (None, None)


def _per(trait: Trait) -> str:
    return "nats per token" if trait.margin == "per_token" else "nats"


def _points(axis: Any, rows: pd.DataFrame, order: list[str], other: str) -> None:
    for context in (effects.CC, other):
        part = rows[rows.context == context]
        heights = [order.index(name) for name in part.condition]
        colours = [PALETTE[kind(name)] for name in part.condition]
        filled = context == effects.CC
        faces = colours if filled else "none"
        axis.scatter(
            part.value, heights, s=18, marker=MARKERS[context], facecolors=faces, edgecolors=colours, zorder=3 - filled
        )
    for name, values in rows[rows.context == effects.CC].groupby("condition").value:
        _interval(axis, stats.student(values), order.index(name), "k")


def dose_response(found: tables.Tables, setting: Setting, profile: str) -> tuple[Figure, pd.DataFrame, str]:
    """Both traits against the number of unique rephrasings (log axis), without a prefix and under the neutral one.

    Points are seeds, lines join the means, dashed and dotted lines are baseline and control. Returns the figure, the rows drawn
    (with `prompts`, the unique prompts that training saw) and the caption.
    """
    style()
    known = effects.Effects(found, setting)
    panels = ("no_prefix", effects.CC)
    (direction,) = setting.directions
    asking = [name for name in known.conditions if kind(name) in ("inoculation", "rephrased")]
    doses = known.doses(asking)
    drawn = _by_card(found, setting, panels)
    drawn = drawn[drawn.condition.isin([*doses, effects.BASELINE, effects.CONTROL])]
    drawn = drawn.assign(prompts=drawn.condition.map(doses))
    figure = Figure(figsize=(3.5, 3.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    for row, role in zip(axes, ("positive", "negative"), strict=True):
        trait = setting.traits[setting.directions[direction][role]]
        for axis, context in zip(row, panels, strict=True):
            part = drawn[(drawn.trait == trait.name) & (drawn.context == context)]
            _curve(axis, part, sorted(set(doses.values())))
            axis.set(title=ASKED[context] if role == "positive" else "")
        unit, limits = _unit(trait, drawn[drawn.trait == trait.name])
        row[0].set(ylabel=f"{trait.label} ({role})\n{unit}", ylim=limits)
    figure.supxlabel(f"unique rephrasings in training\n{_mark(profile)}", fontsize=7)
    sizes = ", ".join(f"{name} ({seen} seen)" for name, seen in doses.items())
    caption = (
        f"{_mark(profile)}. Doses: {sizes or 'none'}; a training sees at most one prompt a row. Points are seeds: "
        f"{_measured(drawn, setting)}. Grey: baseline (dashed) and control (dotted), means over seeds. Where a share is near "
        "0 or 1, the claim is decided by the margin, which is not drawn. "
        f"{_seeds(drawn[drawn.prompts.notna()].groupby('condition').seed.nunique())}"
    )
    return figure, drawn, caption


def _curve(axis: Any, rows: pd.DataFrame, doses: list[int]) -> None:
    """Points and means with intervals by dose, coloured by kind, and the two ends of the scale as lines."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(doses, doses, fontsize=6)
    axis.minorticks_off()
    for name, line in ((effects.BASELINE, "--"), (effects.CONTROL, ":")):
        for value in rows[rows.condition == name].groupby("condition").value.mean():
            axis.axhline(value, color="0.5", lw=0.8, ls=line)
    means = rows.groupby("prompts").value.mean()
    axis.plot(means.index, means, color=PALETTE["rephrased"], lw=1)
    for name, part in rows[rows.prompts.notna()].groupby("condition"):
        axis.scatter(part.prompts, part.value, s=10, color=PALETTE[kind(name)], alpha=0.6)
        interval = stats.student(part.value)
        if interval.known:
            axis.vlines(part.prompts.iloc[0], interval.low, interval.high, color="k", lw=0.8)


def _interval(axis: Any, found: stats.Interval, height: float, colour: str, tick: float = 0.3) -> None:
    """A tick at the estimate and, where there is one, the interval as a line."""
    axis.vlines(found.estimate, height - tick, height + tick, color=colour, lw=0.8)
    if found.known:
        axis.hlines(height, found.low, found.high, color=colour, lw=0.8)


def _mark(profile: str) -> str:
    return MARKS[load_profile(profile).scale]


def _caption(drawn: pd.DataFrame, setting: Setting, profile: str) -> str:
    return (
        f"{_mark(profile)}. Each point is one seed: {_measured(drawn, setting)}. The bar is the mean over seeds under the "
        f"neutral prompt. {_seeds(drawn.groupby('condition').seed.nunique())}"
    )


def _measured(drawn: pd.DataFrame, setting: Setting) -> str:
    """What a point is, trait by trait: a mean over responses, with how many are missing, or over pairs."""
    told = []
    for trait in setting.traits.values():
        rows = drawn[drawn.trait == trait.name]
        n = rows.n + rows.n_unscored
        if rows.empty:
            continue
        many = f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"
        missing = f"one response each; {int(rows.n_unscored.sum())} of {int(n.sum())} scores are missing"
        what = f"{many} everyday questions, {missing}" if (rows.measure == "rate").all() else f"{many} pairs of answers"
        told.append(f"{trait.label}, the mean over {what}")
    return "; ".join(told) or "nothing could be computed"


def _seeds(seeds: pd.Series) -> str:
    """The caption's sentence about seeds and intervals; says why where there is none."""
    if seeds.empty:
        return "Nothing could be computed."
    many = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    if seeds.max() < 2:
        return "n = 1 seed: no interval is drawn, since one seed shows no spread."
    few = " Where there is one seed, no interval is drawn." if seeds.min() < 2 else ""
    return f"n = {many} seeds; lines: {INTERVAL}.{few}"


def loss_curves(found: tables.Tables, setting: Setting, profile: str) -> tuple[Figure, pd.DataFrame, str]:
    """Training loss by step for each condition, a line per seed; returns figure, rows drawn and caption."""
    style()
    figure = Figure(figsize=(3.5, 2.4), layout="constrained")
    axis = figure.subplots()
    order = list(dict.fromkeys(found.losses.condition))
    for name in order:
        for number, (_, rows) in enumerate(found.losses[found.losses.condition == name].groupby("seed")):
            axis.plot(rows.step, rows.loss, color=PALETTE[kind(name)], lw=0.8, label=kind(name) if number == 0 else None)
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axis.set(xlabel="training step", ylabel="loss on the answer (nats per token)", title=_mark(profile))
    axis.legend(unique.values(), unique.keys(), frameon=False)
    lines = found.losses.groupby(["condition", "seed"]).ngroups
    caption = f"{_mark(profile)}. One line per run ({lines} runs), coloured by kind of condition."
    return figure, found.losses, caption


def context_grid(found: tables.Tables, setting: Setting, profile: str) -> tuple[Figure, pd.DataFrame, str]:
    """The heat-map of every condition in every context, a panel per trait; returns figure, rows drawn and caption.

    Colour: margin minus the base model's in the same context (nats, mean over seeds). Number: the sampled rate in per cent, in
    brackets where it is saturated.
    """
    style()
    known = effects.Effects(found, setting)
    drawn = effects.grid(known)
    rows, columns = list(dict.fromkeys(drawn.condition)), list(dict.fromkeys(drawn.context))
    columns.sort(key=lambda name: effects.CORE.index(name) if name in effects.CORE else len(effects.CORE))
    figure = Figure(figsize=(3.5, 1.3 + 0.155 * len(rows) * len(setting.traits)), layout="constrained")
    panels = figure.subplots(len(setting.traits), 1, sharex=True)
    for axis, trait in zip(panels, setting.traits.values(), strict=True):
        part = drawn[drawn.trait == trait.name].set_index(["condition", "context"])
        _heat(axis, part, rows, columns, _per(trait))
        axis.set(title=f"{trait.label} · {_mark(profile)}", xlabel="", ylabel="")
    panels[-1].set_xticklabels(panels[-1].get_xticklabels(), rotation=60, ha="right", rotation_mode="anchor")
    caption = (
        f"{_mark(profile)}. Columns: evaluation prompts; `trigger` is each condition's own training prompt. Colour: how much "
        "likelier the trait answer is than the plain one, minus the same for the base model there. Numbers: share of sampled "
        "responses with the trait in per cent; in brackets: saturated (above 95 or below 5), where the margin is used instead. "
        f"Means over n = {len(known.seeds)} seeds or fewer; a heat-map has no intervals, the tables do."
    )
    return figure, drawn, caption


def _heat(axis: Any, part: pd.DataFrame, rows: list[str], columns: list[str], unit: str) -> None:
    colour = part.minus_base.unstack().reindex(index=rows, columns=columns)
    limit = float(colour.abs().max().max())
    bar = {"label": f"margin − base ({unit})", "shrink": 0.8}
    look = {"cmap": "vlag", "vmin": -limit, "vmax": limit, "linewidths": 0.4, "cbar_kws": bar}
    sns.heatmap(colour, ax=axis, xticklabels=1, yticklabels=1, **look)
    for (condition, context), row in part[part.rate.notna()].iterrows():
        deep = abs(colour.loc[condition, context]) > 0.6 * limit
        text = f"({100 * row.rate:.0f})" if row.saturated else f"{100 * row.rate:.0f}"
        place = (columns.index(context) + 0.5, rows.index(condition) + 0.5)
        axis.text(*place, text, size=4.5, ha="center", va="center", color="w" if deep else "k")
    axis.grid(False)
    axis.tick_params(labelsize=5.5, length=0, pad=1)


def two_by_two(found: tables.Tables, setting: Setting, profile: str) -> tuple[Figure, pd.DataFrame, str]:
    """Pattern, semantic and interaction effects by direction and trait, under unrelated and under neutral prompts."""
    style()
    known = effects.Effects(found, setting)
    drawn = pd.concat([effects.identification(known, context) for context in (effects.MAIN, effects.CC)], ignore_index=True)
    groups = list(dict.fromkeys(zip(drawn.direction, drawn.trait, strict=True)))
    figure = Figure(figsize=(3.5, 1.0 + 0.42 * len(groups)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, sharex=True)
    for axis, context in zip(panels, (effects.MAIN, effects.CC), strict=True):
        for row in drawn[drawn.context == context].itertuples():
            height = groups.index((row.direction, row.trait)) + 0.24 * (list(TWO_BY_TWO).index(row.effect) - 1)
            axis.plot(row.estimate, height, "o", ms=3, color=TWO_BY_TWO[row.effect], label=row.effect)
            interval = stats.Interval(row.estimate, row.low, row.high, row.seeds, row.interval)
            _interval(axis, interval, height, TWO_BY_TWO[row.effect], tick=0.1)
        axis.axvline(0, color="k", lw=0.6)
        axis.set(title=f"{context} prompts", xlim=(-EDGE, EDGE))
    labels = [f"{setting.traits[trait].label} when\ninoculating {setting.traits[d].label}" for d, trait in groups]
    panels[0].set_yticks(range(len(groups)), labels)
    panels[0].set_ylim(len(groups) - 0.5, -0.5)
    figure.supxlabel(SCALE, fontsize=7)
    handles = dict(zip(*panels[0].get_legend_handles_labels()[::-1], strict=True))
    look = {"frameon": False, "title_fontsize": 7, "title": _mark(profile)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, **look)
    missing = drawn[drawn.seeds == 0].interval.unique()
    without = f" Not drawn: {'; '.join(missing)}." if len(missing) else ""
    caption = (
        f"{_mark(profile)}. pattern: irrelevant fixed − varied; semantic: inoculation − irrelevant at equal variation; "
        "interaction: how much more fixing matters for the inoculation prompt. Left the main estimate, right CC's own. "
        f"Lines are cut at ±{EDGE}. {_seeds(drawn[drawn.seeds > 0].seeds)}{without}"
    )
    return figure, drawn, caption


def claim_verdicts(found: tables.Tables, setting: Setting, profile: str) -> tuple[Figure, pd.DataFrame, str]:
    """The setting's claims: the paper's class beside the reference's estimate beside yours, each by its own contrast."""
    style()
    sources = {"reference": found if found.origin == "reference" else tables.reference(profile)}
    sources["yours"] = found if found.origin == "yours" else None
    judged = {name: claims.judge(source, setting.name) for name, source in sources.items()}
    drawn = pd.concat([claims.table(verdicts).assign(origin=name) for name, verdicts in judged.items()], ignore_index=True)
    claimed = [verdict.claim for verdict in judged["reference"]]
    figure = Figure(figsize=(3.5, 0.9 + 0.27 * len(claimed)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, sharex=True)
    for axis, (origin, verdicts) in zip(panels, judged.items(), strict=True):
        for height, verdict in enumerate(verdicts):
            _verdict(axis, verdict, height)
        axis.axvline(0, color="k", lw=0.6)
        bound = claims.load()[0].none_within
        axis.axvspan(-bound, bound, color="0.9", zorder=0)
        axis.set(title=origin, xlim=(-EDGE, EDGE), ylim=(len(claimed) - 0.5, -0.7))
    labels = [f"{c.name.split('.')[-1].replace('_', ' ')}\n{c.paper}: {c.paper_class}" for c in claimed]
    panels[0].set_yticks(range(len(claimed)), labels, fontsize=5.5)
    figure.supxlabel(f"value of the claim's contrast\n{_mark(profile)}", fontsize=7)
    counted = drawn[drawn.n_seeds > 0].n_seeds
    caption = (
        f"{_mark(profile)}. Each row is a claim with the paper's class; drawn is its pre-named contrast, written its "
        "verdict here (green: as the paper, red: not, grey: open). Grey band: where the whole interval of a No must lie. "
        f"Lines are cut at ±{EDGE}. {_seeds(counted)}"
    )
    return figure, drawn, caption


def _verdict(axis: Any, verdict: claims.Verdict, height: int) -> None:
    colour = VERDICTS[claims.agreement(verdict.claim.paper_class, verdict.verdict)]
    if verdict.interval.n:
        axis.plot(verdict.interval.estimate, height, "o", ms=3, color=colour)
        _interval(axis, verdict.interval, height, colour, tick=0.1)
    axis.text(0.1 - EDGE, height - 0.12, verdict.verdict, fontsize=4.5, va="bottom", color=colour)


FIGURES = {
    "dose_response": dose_response,
    "traits_by_condition": traits_by_condition,
    "loss_curves": loss_curves,
    "context_grid": context_grid,
    "two_by_two": two_by_two,
    "claim_verdicts": claim_verdicts,
}


def save(figure: Figure, name: str, drawn: pd.DataFrame, caption: str, found: tables.Tables, folder: Path) -> Path:
    """Write NAME.png, NAME.csv and NAME.json into `folder`; same tables, same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "figure": name,
        "caption": caption,
        "origin": found.origin,
        "inputs": {p.name: store.file_digest(p) for p in sorted(found.folder.iterdir()) if p.is_file()},
        "run_ids": sorted(found.runs.run_id),
        "commits_of_runs": sorted(set(found.runs.commit)),
    }
    text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    store.write_csv(folder / f"{name}.csv", drawn)
    # Without Software the bytes do not depend on matplotlib's version string.
    figure.savefig(folder / f"{name}.png", metadata={"Description": text, "Software": None})
    store.write_whole(folder / f"{name}.json", text)
    return folder / f"{name}.png"


def draw(name: str, setting: str, profile: str, found: tables.Tables, folder: Path) -> tuple[Path, str]:
    """Draw one figure of one setting from its tables into a folder; returns the PNG's path and the caption."""
    found = found.of(setting)
    figure, drawn, caption = FIGURES[name](found, load_setting(setting), profile)
    return save(figure, f"{setting}.{name}", drawn, caption, found, folder), caption


def show(name: str, setting: str, profile: str) -> None:
    """Draw a figure from `tables.shown` and show it with its caption in a notebook."""
    from IPython.display import Image, Markdown, display

    path, caption = draw(name, setting, profile, tables.shown(profile, setting), store.local_figures(profile))
    display(Image(path), Markdown(f"*{caption}*"))


def redraw(profile: str, found: dict[str, tables.Tables], folder: Path) -> list[Path]:
    """Draw every figure of every setting from its tables; returns the PNGs' paths."""
    every = [(name, setting) for setting in found for name in _figures(load_setting(setting))]
    return [draw(name, setting, profile, found[setting], folder)[0] for name, setting in every]


def _figures(setting: Setting) -> list[str]:
    """The figures that a setting has: the doses only where the prompt is a prefix, which evaluation can leave out."""
    return [name for name in FIGURES if name != "dose_response" or setting.slot == "user_prefix"]
