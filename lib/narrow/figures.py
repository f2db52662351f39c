"""This experiment's tables to figures, in the one look of all (inoculation.figures): picture, data and provenance.

Lines and points are means over seeds; bars are 95 % Student t over seeds.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from inoculation import claims, figures, stats, store
from inoculation.figures import canvas, caption, palette, word
from inoculation.settings import BASE
from matplotlib.figure import Figure

from narrow import plan
from narrow.contrasts import BRIDGE, FORMS, PATTERN, Seeds, bridge, pattern
from narrow.plan import FILE
from narrow.tables import Found

PANELS = ("id", "other", "ood", "placebo")
EFFECTS = ("taught", "kept", "under its prompt", "hidden", "spared")
Drawn = tuple[Figure, pd.DataFrame, dict[str, Any]]


def role(solution: str) -> str:
    """What a solution is, the key of its colour: the last part of its name."""
    return solution.rsplit(".", 1)[-1]


def _over_seeds(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The mean over seeds with its interval for each group; draws within a seed are averaged first."""
    seeds = rows.groupby([*by, "seed"], sort=False).value.mean()
    found = []
    for names, values in seeds.groupby(level=list(range(len(by))), sort=False):
        at = stats.student(values.to_numpy())
        names = names if isinstance(names, tuple) else (names,)
        found.append(
            {**dict(zip(by, names, strict=True)), "estimate": at.estimate, "low": at.low, "high": at.high, "seeds": at.n}
        )
    return pd.DataFrame(found, columns=[*by, "estimate", "low", "high", "seeds"])


def _lines(axis: Any, rows: pd.DataFrame, x: str) -> None:
    for name, line in rows.groupby("solution", sort=False):
        line = line.sort_values(x)
        bars = (line.estimate - line.low, line.high - line.estimate)
        axis.errorbar(
            line[x], line.estimate, bars, color=palette()[role(name)], marker="o", ms=2.5, lw=1, label=word(role(name))
        )


def solutions(found: Found) -> Drawn:
    """The LoRA solutions' margins along training, a panel per part."""
    names = [name for name in dict.fromkeys(found.margins.solution) if name.startswith("lora.")]
    return _along(found, names, PANELS)


def drift(found: Found) -> Drawn:
    """Outside and in-domain margins when the penalty is dropped half-way, beside keeping it and never having it; both forms."""
    rows = found.margins[found.margins.part.isin(["ood", "other", "id"])]
    rows = rows.assign(part=rows.part.replace({"ood": "outside", "other": "outside"}))
    drawn, panels = [], [(form, part) for part in ("outside", "id") for form in FORMS]
    figure, axes = canvas(3.4, 2, 2, sharex=True, sharey="row")
    for axis, (form, part) in zip(axes.flat, panels, strict=True):
        own = [f"{form}.{name}" for name in ("general", "narrow", "dropped")]
        line = _over_seeds(
            rows[rows.solution.isin(own) & (rows.part == part) & (rows.context == "neutral")], ["solution", "step"]
        )
        _lines(axis, line, "step")
        axis.set(title=f"{FORMS[form]}: {word(part)}", ylabel=word("of along"))
        axis.label_outer()
        drawn.append(line.assign(form=form, part=part))
    half = found.losses.step[found.losses.solution == "lora.dropped"].max() / 2
    for axis in axes.flat:
        axis.axvline(half, color="0.6", lw=0.6, ls=":")
    figure.supxlabel(f"{word('along')}\n{figures.mark(found.profile)}", fontsize=7)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    drawn = pd.concat(drawn)
    return figure, drawn, {"seeds": stats.in_words(drawn.seeds), "half": f"{half:g}"}


def _along(found: Found, names: list[str], parts: tuple[str, ...]) -> Drawn:
    rows = found.margins[found.margins.solution.isin(names) & (found.margins.context == "neutral")]
    drawn = _over_seeds(rows, ["solution", "part", "step"])
    base = found.margins[(found.margins.solution == BASE.name) & (found.margins.context == "neutral")].set_index("part").value
    figure, axes = canvas(3.6, 2, 2, sharex=True)
    for axis, part in zip(axes.flat, parts, strict=True):
        _lines(axis, drawn[drawn.part == part], "step")
        axis.axhline(base[part], color=palette()["base"], lw=0.8, ls="--")
        axis.set(title=word(part), ylabel=word("of along"))
        axis.label_outer()
    figure.supxlabel(f"{word('along')}\n{figures.mark(found.profile)}", fontsize=7)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure, drawn, {"seeds": stats.in_words(drawn.seeds)}


def efficiency(found: Found) -> Drawn:
    """Loss on what is taught against the norm, each solution rescaled along its own direction; a line per seed."""
    rows = found.measures[(found.measures.measure == "loss") & (found.measures.solution != BASE.name)]
    base = Seeds(found).base_loss("lora.general")
    figure, axes = canvas(2.6, 1, 2, sharey=True)
    drawn = []
    for axis, form in zip(axes, FORMS, strict=True):
        own = rows[rows.solution.isin([f"{form}.general", f"{form}.narrow"] + list(BRIDGE) * (form == "lora"))]
        for (name, _), line in own.groupby(["solution", "seed"], sort=False):
            line = line.sort_values("x")
            look = {"color": palette()[role(name)], "lw": 0.8, "label": word(role(name))}
            axis.plot([0, *line.x], [base, *line.value], ls=":" if name in BRIDGE else "-", **look)
        at = own[own.part == "own"]
        axis.scatter(at.x, at.value, c=[palette()[role(name)] for name in at.solution], s=8, zorder=3)
        axis.axhline(base, color=palette()["base"], lw=0.8, ls="--")
        axis.set(title=FORMS[form], xlabel="norm of the change", ylabel="loss (nats/token)")
        axis.label_outer()
        drawn.append(own.assign(form=form))
    handles = dict(zip(*axes[0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, title=figures.mark(found.profile))
    return figure, pd.concat(drawn), {"seeds": f"n = {len(found.seeds)} seeds, a line each."}


def stability(found: Found) -> Drawn:
    """The share of its gain that a solution loses under orthogonal noise, against ε."""
    seeds, every = Seeds(found), []
    noised = found.measures[(found.measures.measure == "noise") & found.measures.solution.str.startswith(tuple(FORMS))]
    for name in dict.fromkeys(noised.solution):
        own = pd.Series(seeds.one(name, "loss", "own"), found.seeds)
        rows = noised[noised.solution == name]
        gained = rows.seed.map(seeds.base_loss(name) - own)
        every.append(rows.assign(value=(rows.value - rows.seed.map(own)) / gained))
    drawn = _over_seeds(pd.concat(every), ["solution", "x"])
    figure, axes = canvas(2.6, 1, 2, sharey=True)
    for axis, form in zip(axes, FORMS, strict=True):
        _lines(axis, drawn[drawn.solution.str.startswith(form)], "x")
        axis.axhline(1, color=palette()["base"], lw=0.8, ls="--")
        axis.set(title=FORMS[form], xlabel="share of noise ε", ylabel="share of the gain lost")
        axis.label_outer()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, title=figures.mark(found.profile))
    return figure, drawn, {"seeds": stats.in_words(drawn.seeds), "draws": int(noised.draw.max()) + 1}


def significance(found: Found) -> Drawn:
    """Divergence on ordinary text against the norm: the trained vectors and random directions."""
    rows = found.measures[found.measures.measure == "divergence"]
    trained = _over_seeds(rows[rows.solution != BASE.name], ["solution", "x"])
    random = rows[rows.solution == BASE.name].assign(seed=lambda r: r.draw)
    drawn = pd.concat([trained, _over_seeds(random, ["x"]).assign(solution="random")])
    figure, axis = canvas(2.4)
    axis.set(xscale="log", yscale="log", xlabel="norm of the vector", ylabel="divergence (nats/token)")
    axis.set_title(figures.mark(found.profile))
    _lines(axis, drawn, "x")
    axis.set_xticks(sorted(drawn.x.unique()), [f"{norm:g}" for norm in sorted(drawn.x.unique())])
    axis.minorticks_off()
    axis.legend()
    return figure, drawn, {"seeds": stats.in_words(trained.seeds), "randoms": random.draw.nunique()}


def monitor(found: Found) -> Drawn:
    """Above: AUROC of the projection on the mean difference, beside random directions. Below: steering and ablation."""
    rows = found.measures[found.measures.solution == "lora.general"]
    areas, moved = rows[rows.measure.isin(["auroc_test", "auroc_placebo"])], _moved(rows)
    figure, axes = canvas(3.0, 2, 1, height_ratios=(2, 3))
    for axis, part, none in zip(axes, (areas, moved), (0.5, 0.0), strict=True):
        names = list(dict.fromkeys(part.measure))
        for kind, side, label in (("direction", 0.15, "mean difference"), ("random", -0.15, "random")):
            own = part[part.part == kind]
            heights = [names.index(name) + side for name in own.measure]
            colour = palette()["general" if kind == "direction" else "random"]
            axis.plot(own.value, heights, "o", ms=2.5, color=colour, alpha=0.6, label=label)
        axis.axvline(none, color="k", lw=0.6)
        axis.set_yticks(range(len(names)), [word(name) for name in names])
        axis.set_ylim(len(names) - 0.5, -0.5)
    axes[0].set(xlabel="AUROC of the projection", xlim=(-0.02, 1.02))
    axes[1].set(xlabel="change of the margin (nats/token)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, title=figures.mark(found.profile))
    layers = rows[rows.measure == "margin"].x.astype(int).value_counts()
    told = ", ".join(f"layer {layer} in {count // 2} of {len(found.seeds)} seeds" for layer, count in layers.items())
    return figure, pd.concat([areas, moved]), {"seeds": f"n = {len(found.seeds)} seeds, a point each.", "layers": told}


def _moved(rows: pd.DataFrame) -> pd.DataFrame:
    """How far steering lifts the untouched model's margin, and ablation moves the solution's and the untouched model's."""
    margins = rows[rows.measure == "margin"].pivot_table("value", "seed", "part")
    found = []
    for measure, before in (("steered", "base"), ("ablated", "own"), ("ablated_base", "base")):
        part = rows[rows.measure == measure]
        found.append(part.assign(value=part.value - part.seed.map(margins[before])))
    return pd.concat(found)


def bridged(found: Found) -> Drawn:
    """The bridge: what inoculated, rephrased and irrelevant-prompt models keep, with and without their prompts."""
    drawn = bridge(found)
    names = list(dict.fromkeys(drawn.solution))
    shown = [effect for effect in EFFECTS if effect in set(drawn.effect)]
    figure, axis = canvas(0.9 + 0.55 * len(shown))
    for row in drawn[drawn.seeds > 0].itertuples():
        height = shown.index(row.effect) + 0.2 * (names.index(row.solution) - (len(names) - 1) / 2)
        _point(axis, row, height, palette()[role(row.solution)], 0.07, label=word(role(row.solution)))
    for end in (0, 1):
        axis.axvline(end, color="k", lw=0.6)
    axis.set_yticks(range(len(shown)), [word(effect) for effect in shown])
    axis.set(ylim=(len(shown) - 0.5, -0.5), xlim=(-figures.EDGE, figures.EDGE + 1), xlabel="share of general minus control")
    handles = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, title=figures.mark(found.profile))
    return figure, drawn, figures.counted(drawn, drawn.rule)


def families(found: Found) -> Drawn:
    """The first four claims in every family of a general and a narrow solution: forms, weights of the penalty, domains."""
    drawn, bound = pattern(found), claims.load()[0].none_within
    names = list(dict.fromkeys(drawn.family))
    figure, axes = canvas(1.2 + 0.36 * len(names), 2, 2, sharex=True, sharey=True)
    for axis, contrast in zip(axes.flat, PATTERN, strict=True):
        axis.axvspan(-bound, bound, color="0.9", zorder=0)
        axis.axvline(0, color="k", lw=0.6)
        for row in drawn[(drawn.contrast == contrast) & (drawn.seeds > 0)].itertuples():
            colour = palette()["baseline" if row.family == names[0] else "narrow"]
            _point(axis, row, names.index(row.family), colour, 0.15, mfc="w" if row.doubt else colour)
        axis.set(title=word(contrast), xlim=(-figures.EDGE, figures.EDGE), ylim=(len(names) - 0.5, -0.5))
    axes[0, 0].set_yticks(range(len(names)), names)
    figure.supxlabel(f"{word('of pattern')}\n{figures.mark(found.profile)}", fontsize=7)
    facts = {"edge": figures.EDGE, "weight": f"{plan.scale(found.profile)['forms']['lora']['weight']:g}"}
    return figure, drawn, facts | figures.counted(drawn, drawn.family + ", " + drawn.contrast.map(word) + ", as " + drawn.rule)


def _point(axis: Any, row: Any, height: float, colour: str, tick: float, **look: Any) -> None:
    interval = stats.Interval(row.estimate, row.low, row.high, row.seeds, row.rule)
    figures.draw_interval(axis, interval, height, colour, tick)
    axis.plot(row.estimate, height, "o", ms=3, color=colour, **look)


FIGURES = {each.__name__: each for each in (solutions, efficiency, stability, drift, significance, families, monitor, bridged)}
VERDICTS = "claim_verdicts"


def draw(name: str, found: Found, folder: Path) -> tuple[Path, str]:
    """Draw one figure into a folder; the PNG's path and its caption."""
    if name == VERDICTS:
        named = replace(plan.setting("medical", found.profile), name=FILE)
        figure, drawn, told = figures.claim_verdicts(found, named, found.profile)
    else:
        figure, drawn, facts = FIGURES[name](found)
        told = caption(f"narrow_{name}", found.profile, **facts)
    record = {"figure": f"{FILE}.{name}", "caption": told, "run_ids": sorted(found.runs.run_id)}
    record |= {"commits_of_runs": sorted(set(found.runs.commit)), **store.provenance({found.own: found.origin})}
    store.write_figure(folder / f"{FILE}.{name}.png", figure, drawn, record)
    return folder / f"{FILE}.{name}.png", told


def able(name: str, found: Found) -> bool:
    """Whether what a figure needs was run."""
    run = set(found.runs.solution)
    if name == "monitor":
        return bool((found.measures.measure == "auroc_test").any())
    needed = {"solutions": {"lora.general"}, "drift": {"lora.dropped"}, "bridged": {"lora.general", "lora.control", BRIDGE[0]}}
    return needed.get(name, {"lora.general", "lora.narrow"}) | {BASE.name} <= run


def show(name: str, found: Found) -> None:
    """Draw a figure and show it with its caption in a notebook."""
    from IPython.display import Image, Markdown, display

    if able(name, found):
        path, told = draw(name, found, store.local_figures(found.profile))
        display(Image(path), Markdown(f"*{told}*"))
    else:
        display(Markdown(f"*{name}: not run.*"))


def redraw(found: Found, folder: Path) -> list[Path]:
    """Draw every figure whose solutions were run; returns the PNGs' paths."""
    return [draw(name, found, folder)[0] for name in (*FIGURES, VERDICTS) if able(name, found)]
