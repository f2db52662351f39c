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

from inoculation import store, tables
from inoculation.settings import Setting, load_profile, load_setting

PALETTE = {
    "base": "#999999",
    "control": "#56b4e9",
    "baseline": "#000000",
    "default": "#666666",
    "empty": "#666666",
    "inoculation": "#d55e00",
    "rephrased": "#e69f00",
    "irrelevant": "#0072b2",
    "irrelevant-varied": "#009e73",
}
MARKERS = {"neutral": "o", "trigger": "D"}
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
    """Both traits by condition, a point per seed: filled under the neutral prompt, hollow under the training prompt.

    Returns the figure, the rows drawn and the caption, which names n, the unit and the interval rule.
    """
    style()
    drawn = found.scores[(found.scores.measure == "rate") & found.scores.context.isin(MARKERS)]
    order = list(dict.fromkeys(drawn.condition))
    figure = Figure(figsize=(3.5, 0.9 + 0.2 * len(order)), layout="constrained")
    axes = figure.subplots(1, len(setting.traits), sharey=True)
    for axis, trait in zip(axes, setting.traits.values(), strict=True):
        _points(axis, drawn[drawn.trait == trait.name], order)
        axis.set(
            xlim=(-0.04, 1.04), ylim=(len(order) - 0.5, -0.5), title=trait.label, xlabel=trait.unit.replace(" in ", "\nin ")
        )
        axis.set_yticks(range(len(order)), order)
    hollow = [("o", "k", "neutral prompt"), ("D", "none", "its training prompt")]
    handles = [matplotlib.lines.Line2D([], [], marker=m, mfc=c, mec="k", ls="", ms=4, label=label) for m, c, label in hollow]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, title=_mark(profile), title_fontsize=7)
    return figure, drawn, _caption(drawn, profile)


def _points(axis: Any, rows: pd.DataFrame, order: list[str]) -> None:
    for context, marker in MARKERS.items():
        part = rows[rows.context == context]
        heights = [order.index(name) for name in part.condition]
        colours = [PALETTE[kind(name)] for name in part.condition]
        filled = context == "neutral"
        faces = colours if filled else "none"
        axis.scatter(part.value, heights, s=18, marker=marker, facecolors=faces, edgecolors=colours, zorder=3 - filled)
    means = rows[rows.context == "neutral"].groupby("condition").value.mean()
    axis.vlines(
        means, [order.index(c) - 0.3 for c in means.index], [order.index(c) + 0.3 for c in means.index], color="k", lw=0.8
    )


def _mark(profile: str) -> str:
    return MARKS[load_profile(profile).scale]


def _caption(drawn: pd.DataFrame, profile: str) -> str:
    seeds = drawn.groupby("condition").seed.nunique()
    n = drawn.n + drawn.n_unscored
    many = f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"
    missing = f"{int(drawn.n_unscored.sum())} of {int(n.sum())} scores are missing"
    return (
        f"{_mark(profile)}. Each point is one seed ({seeds.min()} to {seeds.max()} a condition): the mean over {many} everyday "
        f"questions, one response each; {missing}. The bar is the mean over seeds under the neutral prompt. "
        "No interval is drawn: the seed is the unit."
    )


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


FIGURES = {"traits_by_condition": traits_by_condition, "loss_curves": loss_curves}


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
    drawn.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n", float_format="%.6g")
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

    path, caption = draw(name, setting, profile, tables.shown(profile), store.local_figures(profile))
    display(Image(path), Markdown(f"*{caption}*"))


def redraw(profile: str, found: tables.Tables | None, folder: Path) -> list[Path]:
    """Draw every figure of every setting in the tables; returns the PNGs' paths, none without tables."""
    names = [] if found is None else dict.fromkeys(found.scores.setting)
    return [draw(name, setting, profile, found, folder)[0] for setting in names for name in FIGURES]
