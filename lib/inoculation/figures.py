"""Tables to figures: one style, one colour per kind of condition, and beside every picture its data and its provenance.

A figure is NAME.png, NAME.csv (what is drawn) and NAME.json (digests of the tables, run ids, the commit of the runs; no clock).
Nothing here knows how a number was made.
"""

import functools
import itertools
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from inoculation import claims, effects, score, stats, store, tables
from inoculation.settings import SWEPT, Setting, Trait, load_profile, load_setting, setting_names
from inoculation.store import Block

MARKERS = {"neutral": "o", "no_prefix": "s", "trigger": "D"}
TWO_BY_TWO = {"pattern": "#009e73", "semantic": "#d55e00", "interaction": "#999999"}
VERDICTS = {"agree": "#009e73", "differ": "#d55e00", "open": "#999999"}
PARTS = ("id", "placebo", "ood", "unrelated")  # of the margins along training, by panel
EDGE = 1.6  # of the axes of effects; what reaches further is cut, and the caption says so


def canvas(height: float, rows: int = 1, columns: int = 1, **shared: Any) -> tuple[Figure, Any]:
    """A figure in the one look of all, readable at column width (3.5 in), no chart junk, and its axes (as of subplots)."""
    sizes = {"figure.dpi": 120, "savefig.dpi": 200, "axes.titlesize": 7.5, "legend.fontsize": 7, "legend.title_fontsize": 7}
    sns.set_theme(context="paper", style="whitegrid", font_scale=0.85, rc={**sizes, "legend.frameon": False})
    figure = Figure(figsize=(3.5, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **shared)


def text() -> Block:
    """data/figures.yaml: the colours, words and captions of figures."""
    return store.read_yaml(store.DATA / "figures.yaml").only("colours", "words", "captions")


@functools.cache
def palette() -> dict[str, str]:
    """A colour for every kind of condition."""
    return dict(text().take("colours", Block))


def kind(condition: str) -> str:
    """The kind of a condition by its name, the key of its colour."""
    stem = condition.split(".")[0]
    return stem if stem in palette() else stem.rsplit("-", 1)[0]


def traits_by_condition(found: tables.Tables, setting: Setting, profile: str) -> tuple[Figure, pd.DataFrame, str]:
    """The traits by condition, a point per seed: filled under the neutral prompt, hollow under the training prompt (or none).

    Each trait by the measure that its scorer's card names. Returns the figure, the rows drawn and the caption.
    """
    other = "no_prefix" if "no_prefix" in set(found.scores.context) else "trigger"
    drawn = _by_card(found, setting, (effects.CC, other))
    order = list(dict.fromkeys(drawn.condition))
    figure, axes = canvas(0.9 + 0.2 * len(order), 1, len(setting.traits), sharey=True)
    for axis, trait in zip(axes, setting.traits.values(), strict=True):
        part = drawn[drawn.trait == trait.name]
        _points(axis, part, order, other)
        unit, limits = _unit(trait, part)
        axis.tick_params(axis="x", labelsize=5, rotation=40 * (len(axes) > 2))
        axis.locator_params(axis="x", nbins=2)
        axis.xaxis.label.set_size(6.5)
        axis.set(xlim=limits, xlabel=unit, title=fill(trait.label, 12), ylim=(len(order) - 0.5, -0.5))
        axis.set_yticks(range(len(order)), order)
    look = [(MARKERS[name], face, word(name)) for name, face in ((effects.CC, "k"), (other, "none"))]
    handles = [matplotlib.lines.Line2D([], [], marker=m, mfc=c, mec="k", ls="", ms=4, label=label) for m, c, label in look]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, title=mark(profile))
    seeds = stats.in_words(drawn.groupby("condition").seed.nunique())
    return figure, drawn, caption("traits_by_condition", profile, measured=_measured(drawn, setting), seeds=seeds)


def _by_card(found: tables.Tables, setting: Setting, contexts: tuple[str, ...]) -> pd.DataFrame:
    """The scores in some contexts, each trait by the measure its card names, or by margin where no model shows it at all."""
    by, rates = score.cards(setting.name)["claimed by"], found.scores[found.scores.measure == "rate"].groupby("trait").value
    measure = found.scores.trait.map(by.mask(rates.max().reindex(by.index) < stats.SATURATED, "margin"))
    return found.scores[(found.scores.measure == measure) & found.scores.context.isin(contexts)]


def _unit(trait: Trait, rows: pd.DataFrame) -> tuple[str, tuple[float | None, float | None]]:
    """A trait's axis label and limits: a share, or the margin where its card names that."""
    rated = (rows.measure == "rate").all()
    return (fill(trait.unit, 18), (-0.04, 1.04)) if rated else (f"margin\n{_per(trait)}", (None, None))


def _per(trait: Trait) -> str:
    return "nats/token" if trait.margin == "per_token" else "nats"


def _points(axis: Any, rows: pd.DataFrame, order: list[str], other: str) -> None:
    for context in (effects.CC, other):
        part = rows[rows.context == context]
        heights = [order.index(name) for name in part.condition]
        colours = [palette()[kind(name)] for name in part.condition]
        filled = context == effects.CC
        look = {"marker": MARKERS[context], "facecolors": colours if filled else "none", "edgecolors": colours}
        axis.scatter(part.value, heights, s=18, clip_on=False, zorder=3 - filled, **look)
    for name, values in rows[rows.context == effects.CC].groupby("condition").value:
        draw_interval(axis, stats.student(values), order.index(name), "k")


def dose_response(found: tables.Tables, setting: Setting, profile: str) -> tuple[Figure, pd.DataFrame, str]:
    """Both traits against the number of unique rephrasings (log axis), without a prefix and under the neutral one.

    Points are seeds, lines join the means. Returns the figure, the rows drawn (`prompts`: how many training saw), the caption.
    """
    known, panels = effects.Effects(found, setting), ("no_prefix", effects.CC)
    (direction,) = setting.directions
    doses = known.doses(name for name in known.conditions if kind(name) in ("inoculation", "rephrased"))
    drawn = _by_card(found, setting, panels).assign(prompts=lambda rows: rows.condition.map(doses))
    drawn = drawn[drawn.condition.isin([*doses, effects.BASELINE, effects.CONTROL])]
    figure, axes = canvas(3.4, 2, 2, sharex=True, sharey="row")
    for row, role in zip(axes, ("positive", "negative"), strict=True):
        trait = setting.traits[setting.directions[direction][role]]
        for axis, context in zip(row, panels, strict=True):
            part = drawn[(drawn.trait == trait.name) & (drawn.context == context)]
            _curve(axis, part, sorted(set(doses.values())))
            axis.set(title=word(context) if role == "positive" else "")
        unit, limits = _unit(trait, drawn[drawn.trait == trait.name])
        row[0].set(ylabel=f"{trait.label} ({role})\n{unit}", ylim=limits)
    figure.supxlabel(f"unique rephrasings in training\n{mark(profile)}", fontsize=7)
    sizes = ", ".join(f"{name} ({seen} seen)" for name, seen in doses.items())
    seeds = stats.in_words(drawn[drawn.prompts.notna()].groupby("condition").seed.nunique())
    facts = {"doses": sizes or "none", "measured": _measured(drawn, setting), "seeds": seeds}
    return figure, drawn, caption("dose_response", profile, **facts)


def _curve(axis: Any, rows: pd.DataFrame, doses: list[int]) -> None:
    """Points and means with intervals by dose, coloured by kind, and the two ends of the scale as lines."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(doses, doses, fontsize=6)
    axis.minorticks_off()
    for name, line in ((effects.BASELINE, "--"), (effects.CONTROL, ":")):
        for value in rows[rows.condition == name].groupby("condition").value.mean():
            axis.axhline(value, color="0.5", lw=0.8, ls=line)
    means = rows.groupby("prompts").value.mean()
    axis.plot(means.index, means, color=palette()["rephrased"], lw=1)
    for name, part in rows[rows.prompts.notna()].groupby("condition"):
        axis.scatter(part.prompts, part.value, s=10, color=palette()[kind(name)], alpha=0.6)
        interval = stats.student(part.value)
        if interval.known:
            axis.vlines(part.prompts.iloc[0], interval.low, interval.high, color="k", lw=0.8)


def course(found: tables.Tables, setting: Setting, profile: str, x: str) -> tuple[Figure, pd.DataFrame, str]:
    """Traits by context: suppression over a sweep (x: rows, learning_rate), or margins along training (gate, along).

    Points are means over seeds with their intervals. Returns the figure, the rows drawn and the caption.
    """
    known, logs, along = effects.Effects(found, setting), x in ("gate", "along"), "step" if x in ("gate", "along") else x
    contexts = ("no_prefix" if "no_prefix" in set(found.scores.context) else "id", effects.CC)
    drawn = effects.logged(known, x == "gate") if logs else effects.over_sweep(known, x, contexts)
    figure, panels = canvas(3.4, 2, 2, sharex=True, sharey="row")
    parts = [(drawn.trait[drawn.context == part].iloc[0], part) for part in PARTS] if x == "along" else []
    shown = parts or list(itertools.product(setting.traits, dict.fromkeys(drawn.context)))
    for axis, (trait, context) in zip(panels.flat, shown, strict=False):
        part = drawn[(drawn.trait == trait) & (drawn.context == context)].dropna(subset="estimate")
        for name, line in part.groupby("condition", sort=False):
            bars = (line.estimate - line.low, line.high - line.estimate)
            axis.errorbar(line[along], line.estimate, bars, color=palette()[kind(name)], marker="o", ms=2.5, lw=1, label=name)
        axis.axhline(0, color="k", lw=0.6)
        named = "" if x == "along" else f"{setting.traits[trait].label}\n"
        axis.set(title=word(context), ylabel=named + word(f"of {x}"))
        axis.label_outer()
        if not logs:
            axis.set_xscale("log", base=2)
            axis.set_xticks(drawn[x].unique(), [f"{value:g}" for value in drawn[x].unique()])
    figure.supxlabel(f"{word(x)}\n{mark(profile)}", fontsize=7)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    facts = {"own": f"{known.recipe()['rows']} rows", "gate": setting.sweeps.get(profile, {}).get("gate")}
    if not logs:
        rises = drawn.dropna(subset="trend_low").drop_duplicates(["trait", "context", "condition"]).itertuples()
        told = (f"{r.trait} {r.context}, {r.condition}: {r.trend:.2f} [{r.trend_low:.2f}, {r.trend_high:.2f}]" for r in rises)
        facts["trends"] = "; ".join(told) or "none could be computed"
    return figure, drawn, caption(x, profile, **counted(drawn, drawn.interval), **facts)


def heuristics(found: dict[str, tables.Tables], profile: str) -> tuple[Figure, pd.DataFrame, str]:
    """Suppression after training against what each prompt did before it, by elicitation and by the answers' likelihood.

    A point per condition and trait of every setting. Returns the figure, the rows drawn and the caption.
    """
    every = [effects.Effects(own, load_setting(name)) for name, own in found.items() if len(set(own.scores.condition)) > 1]
    drawn = effects.heuristics(every)
    figure = _against_suppression(drawn, tables.HEURISTICS, 4.2, "setting", profile)
    r, off = tables.correlations(drawn).iloc[-1], tables.errors(drawn).iloc[-1].round(2).to_dict()
    return figure, drawn, caption("heuristics", profile, r=r, off=off, edge=EDGE, **counted(drawn, drawn.interval))


def _against_suppression(drawn: pd.DataFrame, names: tuple[str, ...], height: float, style: str, profile: str) -> Figure:
    figure, axes = canvas(height, 1, len(names), sharey=True)
    look = {"hue": "kind", "style": style, "palette": palette(), "s": 14, "zorder": 2}
    for axis, name in zip(axes, names, strict=True):
        axis.vlines(drawn[name], drawn.low, drawn.high, color="0.7", lw=0.4, zorder=1)
        sns.scatterplot(drawn, x=name, y="estimate", ax=axis, **look).legend([], [])
        axis.axhline(0, color="k", lw=0.6)
        shares = None if name in tables.HEURISTICS else (-0.25, 1.25)
        axis.set(xlabel=word(name), ylabel="suppression after training", ylim=(-EDGE, EDGE), xlim=shares)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, title=mark(profile))
    return figure


def confound(found: tables.Tables, setting: Setting, profile: str) -> tuple[Figure, pd.DataFrame, str]:
    """Suppression against the loss that a prompt closes before training, and training then; figure, rows drawn and caption."""
    drawn = effects.heuristics([effects.Effects(found, setting)], effects.CC)
    figure = _against_suppression(drawn, ("solved", "learned", "elicited"), 3.4, "trait", profile)
    return figure, drawn, caption("confound", profile, edge=EDGE, **counted(drawn, drawn.interval))


def counted(drawn: pd.DataFrame, why: pd.Series) -> dict[str, str]:
    """What a caption says of n, and of rows without seeds: why they are not drawn (one text a row)."""
    missing = "; ".join(why[drawn.seeds == 0].unique())
    return {"seeds": stats.in_words(drawn.seeds[drawn.seeds > 0]), "without": f" Not drawn: {missing}." * bool(missing)}


def draw_interval(axis: Any, found: stats.Interval, height: float, colour: str, tick: float = 0.3) -> None:
    """Draw an estimate as a tick at a height, and its limits as a line where they are known."""
    axis.vlines(found.estimate, height - tick, height + tick, color=colour, lw=0.8)
    if found.known:
        axis.hlines(height, found.low, found.high, color=colour, lw=0.8)


def mark(profile: str) -> str:
    """A profile's scale, as every figure states it."""
    return word(load_profile(profile).scale)


def caption(figure: str, profile: str, **facts: Any) -> str:
    """What stands under a figure: its text in data/figures.yaml, with the facts filled in."""
    return text()["captions"].take(figure, str).format(mark=mark(profile), **facts)


def word(name: str) -> str:
    """How an axis or a panel calls something (data/figures.yaml), or its own name."""
    return text()["words"].get(name, name)


def _measured(drawn: pd.DataFrame, setting: Setting) -> str:
    """What a point is, trait by trait: a mean over responses, with how many are missing, or over pairs."""
    told = []
    for trait in setting.traits.values():
        rows = drawn[drawn.trait == trait.name]
        n = rows.n + rows.n_unscored
        if rows.empty:
            continue
        many = f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"
        asked = "tasks" if trait.scorer == "hidden_tests" else "everyday questions"
        missing = f"one response each; {int(rows.n_unscored.sum())} of {int(n.sum())} scores are missing"
        what = f"{many} {asked}, {missing}" if (rows.measure == "rate").all() else f"{many} pairs of answers"
        told.append(f"{trait.label}, the mean over {what}")
    return "; ".join(told) or "nothing could be computed"


def loss_curves(found: tables.Tables, setting: Setting, profile: str) -> tuple[Figure, pd.DataFrame, str]:
    """Training loss by step for each condition, a line per seed; returns figure, rows drawn and caption."""
    figure, axis = canvas(2.4)
    drawn = found.losses.assign(kind=found.losses.condition.map(kind), run=lambda rows: rows.condition + rows.seed.astype(str))
    sns.lineplot(drawn, x="step", y="loss", hue="kind", units="run", estimator=None, palette=palette(), lw=0.8, ax=axis)
    axis.set(xlabel="training step", ylabel="loss on the answer (nats per token)", title=mark(profile))
    axis.legend(loc="upper right", ncols=2)
    return figure, found.losses, caption("loss_curves", profile, lines=drawn.run.nunique())


def context_grid(found: tables.Tables, setting: Setting, profile: str) -> tuple[Figure, pd.DataFrame, str]:
    """The heat-map of every condition in every context, a panel per trait; returns figure, rows drawn and caption.

    Colour: margin minus the base model's in the same context, mean over seeds. Number: the sampled rate in per cent.
    """
    known = effects.Effects(found, setting)
    drawn = effects.grid(known)
    rows, columns = list(dict.fromkeys(drawn.condition)), list(dict.fromkeys(drawn.context))
    columns.sort(key=lambda name: effects.CORE.index(name) if name in effects.CORE else len(effects.CORE))
    figure, panels = canvas(1.3 + 0.155 * len(rows) * len(setting.traits), len(setting.traits), sharex=True)
    for axis, trait in zip(panels, setting.traits.values(), strict=True):
        part = drawn[drawn.trait == trait.name].set_index(["condition", "context"])
        _heat(axis, part, rows, columns, _per(trait))
        axis.set(title=f"{trait.label} · {mark(profile)}", xlabel="", ylabel="")
    panels[-1].set_xticklabels(panels[-1].get_xticklabels(), rotation=60, ha="right", rotation_mode="anchor")
    return figure, drawn, caption("context_grid", profile, n=len(known.seeds))


def _heat(axis: Any, part: pd.DataFrame, rows: list[str], columns: list[str], unit: str) -> None:
    colour = part.minus_base.unstack().reindex(index=rows, columns=columns)
    limit = float(colour.abs().max().max())
    bar = {"label": f"margin − base ({unit})", "shrink": 0.8}
    look = {"cmap": "vlag", "vmin": -limit, "vmax": limit, "linewidths": 0.4, "cbar_kws": bar}
    sns.heatmap(colour, ax=axis, xticklabels=1, yticklabels=1, **look)
    for (condition, context), row in part[part.rate.notna()].iterrows():
        deep = abs(colour.loc[condition, context]) > 0.6 * limit
        text = ("({:.0f})" if row.saturated else "{:.0f}").format(100 * row.rate)
        place = (columns.index(context) + 0.5, rows.index(condition) + 0.5)
        axis.text(*place, text, size=4.5, ha="center", va="center", color="w" if deep else "k")
    axis.grid(False)
    axis.tick_params(labelsize=5.5, length=0, pad=1)


def two_by_two(found: tables.Tables, setting: Setting, profile: str) -> tuple[Figure, pd.DataFrame, str]:
    """Pattern, semantic and interaction effects by direction and trait, under unrelated and under neutral prompts."""
    known = effects.Effects(found, setting)
    drawn = pd.concat([effects.identification(known, context) for context in (effects.MAIN, effects.CC)], ignore_index=True)
    groups = list(dict.fromkeys(zip(drawn.direction, drawn.trait, strict=True)))
    figure, panels = canvas(1.1 + 0.42 * len(groups), 1, 2, sharey=True, sharex=True)
    for axis, context in zip(panels, (effects.MAIN, effects.CC), strict=True):
        for row in drawn[drawn.context == context].itertuples():
            height = groups.index((row.direction, row.trait)) + 0.24 * (list(TWO_BY_TWO).index(row.effect) - 1)
            axis.plot(row.estimate, height, "o", ms=3, color=TWO_BY_TWO[row.effect], label=row.effect)
            interval = stats.Interval(row.estimate, row.low, row.high, row.seeds, row.interval)
            draw_interval(axis, interval, height, TWO_BY_TWO[row.effect], tick=0.1)
        axis.axvline(0, color="k", lw=0.6)
        axis.set(title=f"{context}\nprompts", xlim=(-EDGE, EDGE))
    asks = {d: setting.traits[d].label if d in setting.traits else word(d) for d in setting.directions}
    labels = [f"{setting.traits[trait].label} when\ninoculating {asks[d]}" for d, trait in groups]
    panels[0].set_yticks(range(len(groups)), labels)
    panels[0].set_ylim(len(groups) - 0.5, -0.5)
    figure.supxlabel(word("suppression"), fontsize=7)
    handles = dict(zip(*panels[0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, title=mark(profile))
    return figure, drawn, caption("two_by_two", profile, edge=EDGE, **counted(drawn, drawn.interval))


def claim_verdicts(found: tables.Tables, setting: Setting, profile: str) -> tuple[Figure, pd.DataFrame, str]:
    """The setting's claims: the paper's class beside the reference's estimate beside yours, each by its own contrast."""
    yours = found if found.origin == "yours" else None
    sources = {"reference": tables.reference(profile) if yours else found, "yours": yours}
    judged = {name: claims.judge(source, setting.name) for name, source in sources.items()}
    drawn = pd.concat([claims.table(verdicts).assign(origin=name) for name, verdicts in judged.items()], ignore_index=True)
    claimed, bound = [verdict.claim for verdict in judged["reference"]], claims.load()[0].none_within
    figure, panels = canvas(0.9 + 0.27 * len(claimed), 1, 2, sharey=True, sharex=True)
    for axis, (origin, verdicts) in zip(panels, judged.items(), strict=True):
        for height, verdict in enumerate(verdicts):
            _verdict(axis, verdict, height)
        axis.axvline(0, color="k", lw=0.6)
        axis.axvspan(-bound, bound, color="0.9", zorder=0)
        axis.set(title=origin, xlim=(-EDGE, EDGE), ylim=(len(claimed) - 0.5, -0.7))
    labels = [f"{c.name.split('.')[-1].replace('_', ' ')}\n{c.paper}: {c.paper_class}" for c in claimed]
    panels[0].set_yticks(range(len(claimed)), labels, fontsize=5.5)
    figure.supxlabel(f"value of the claim's contrast\n{mark(profile)}", fontsize=7)
    return figure, drawn, caption("claim_verdicts", profile, edge=EDGE, seeds=stats.in_words(drawn[drawn.n_seeds > 0].n_seeds))


def _verdict(axis: Any, verdict: claims.Verdict, height: int) -> None:
    colour = VERDICTS[claims.agreement(verdict.claim.paper_class, verdict.verdict)]
    if verdict.interval.n:
        axis.plot(verdict.interval.estimate, height, "o", ms=3, color=colour)
        draw_interval(axis, verdict.interval, height, colour, tick=0.1)
    axis.text(0.1 - EDGE, height - 0.12, verdict.verdict, fontsize=4.5, va="bottom", color=colour)


DRAWN = (dose_response, traits_by_condition, loss_curves, confound, context_grid, two_by_two, claim_verdicts)
SWEEPS = {**{key: f"sweep_{key}" for key in SWEPT}, "gate": "gate"}
COURSES = {**SWEEPS, "along": "along_training"}
FIGURES = {draws.__name__: draws for draws in DRAWN} | {name: functools.partial(course, x=x) for x, name in COURSES.items()}
ACROSS = {"heuristics": heuristics}


def draw(name: str, found: dict[str, tables.Tables], profile: str, folder: Path) -> tuple[Path, str]:
    """Draw one figure of a setting, or of all (ACROSS), from their tables into a folder; the PNG's path and the caption."""
    own = {setting: every.of(setting) for setting, every in found.items()}
    stem = name if name in ACROSS else f"{next(iter(own))}.{name}"
    one = (*own.values(), *map(load_setting, own))
    figure, drawn, told = ACROSS[name](own, profile) if name in ACROSS else FIGURES[name](*one, profile)
    runs = pd.concat([each.runs for each in own.values()])
    facts = {"run_ids": sorted(runs.run_id), **store.provenance({each.folder: each.origin for each in own.values()})}
    facts |= {"figure": stem, "caption": told, "commits_of_runs": sorted(set(runs.commit))}
    store.write_figure(folder / f"{stem}.png", figure, drawn, facts)
    return folder / f"{stem}.png", told


def show(name: str, setting: str, profile: str) -> None:
    """Draw a figure from `tables.shown` and show it with its caption in a notebook; setting: `all` for a figure of ACROSS."""
    from IPython.display import Image, Markdown, display

    found = {each: own for each in (setting_names() if setting == "all" else [setting]) if (own := tables.shown(profile, each))}
    if not found or (name not in ACROSS and name not in _figures(load_setting(setting), found[setting], profile)):
        return display(Markdown(f"*{name}: not run (`--sweeps` runs sweeps).*"))
    path, told = draw(name, found, profile, store.local_figures(profile))
    return display(Image(path), Markdown(f"*{told}*"))


def redraw(profile: str, found: dict[str, tables.Tables], folder: Path) -> list[Path]:
    """Draw every figure of every setting from its tables, and those of all where these are all; returns the PNGs' paths."""
    every = [(name, {setting: own}) for setting, own in found.items() for name in _figures(load_setting(setting), own, profile)]
    every += [(name, dict(sorted(found.items()))) for name in ACROSS if len(found) == len(setting_names())]
    return [draw(name, own, profile, folder)[0] for name, own in every]


def _figures(setting: Setting, found: tables.Tables, profile: str) -> list[str]:
    """The figures that a setting has: doses where evaluation can leave the prompt out, and what was run of the others."""
    own = found.of(setting.name)
    run = setting.sweeps.get(profile, ()) if len(own.sweeps) else ()
    lacks = [name for x, name in SWEEPS.items() if x not in run] + [COURSES["along"]] * (not own.tracks.point.isna().any())
    lacks += ["dose_response"] * ((setting.slot, len(setting.directions)) != ("user_prefix", 1))
    lacks += ["confound"] * effects.heuristics([effects.Effects(own, setting)]).empty
    return [name for name in FIGURES if name not in lacks]
