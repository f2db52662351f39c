"""All settings in one picture each, in the one look of all (inoculation.figures): picture, data and provenance.

A point is a mean over seeds, a line its 95 % Student t interval; one seed has a point and no line.
"""

import itertools
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import seaborn as sns
from inoculation import claims, stats, store
from inoculation.claims import Verdict
from inoculation.figures import TWO_BY_TWO, VERDICTS, canvas, caption, counted, draw_interval, mark, palette, word
from matplotlib.figure import Figure
from narrow import plan

from summary import tables
from summary.tables import TABLE, Everything

Drawn = tuple[Figure, pd.DataFrame, dict[str, Any]]
WITHIN = 1.0  # of the axes of effects; what reaches further is cut, and the caption says so
KEPT_SHOWN = (0, 1.75)  # of the axis of what is kept; a condition beyond it is named at the edge
MARKERS = ("o", "s", "D", "^", "v", "<", ">", "P", "X", "p", "*")


def _verdict(axis: Any, verdict: Verdict, height: float, between: str) -> None:
    """One claim at a height: what the paper says, the verdict, and the estimate with its interval where there is one."""
    colour = VERDICTS[claims.agreement(verdict.claim.paper_class, verdict.verdict)]
    if verdict.interval.n:
        draw_interval(axis, verdict.interval, height, colour, tick=0.1)
        at = verdict.interval.estimate
        beyond = "<" if at < -WITHIN else ">" if at > WITHIN else ""
        axis.plot(min(max(at, -WITHIN), WITHIN), height, beyond or "o", ms=2.5, color=colour, clip_on=not beyond)
    told = f"{verdict.claim.paper_class}{between}{verdict.verdict}"
    axis.text(0.04 - WITHIN, height - 0.12, told, size=4.2, va="bottom", linespacing=1.05, color="0.25")


def _scale(axis: Any) -> None:
    bound = claims.load()[0].none_within
    axis.axvline(0, color="k", lw=0.6)
    axis.axvspan(-bound, bound, color="0.92", zorder=0)
    axis.grid(False, axis="y")
    axis.tick_params(axis="x", labelsize=5.5, pad=1)
    axis.set(xlim=(-WITHIN, WITHIN), xticks=[-0.5, 0, 0.5])


def summary(every: Everything) -> Drawn:
    """CC's summary table: settings down, its four questions across, the paper's class beside the verdict and the estimate."""
    shown = [verdict for verdict in every.verdicts if verdict.claim.name.startswith(TABLE)]
    rows = list(dict.fromkeys(verdict.claim.section.split(", ")[-1] for verdict in shown))
    columns = list(dict.fromkeys(verdict.claim.name.split(".")[-1] for verdict in shown))
    figure, axes = canvas(0.9 + 0.4 * len(rows), 1, len(columns), sharey=True, sharex=True)
    figure.get_layout_engine().set(w_pad=0.01, wspace=0)
    for verdict in shown:
        place = rows.index(verdict.claim.section.split(", ")[-1])
        _verdict(axes[columns.index(verdict.claim.name.split(".")[-1])], verdict, place, "\n")
    for axis, name in zip(axes, columns, strict=True):
        _scale(axis)
        axis.set(title=word(name), ylim=(len(rows) - 0.7, -0.9))
        axis.title.set_size(5.5)
    axes[0].set_yticks(range(len(rows)), [textwrap.fill(name, 12) for name in rows], fontsize=5.5)
    _legend(figure, every.profile)
    return figure, tables.cells(every), {"seeds": _seeds(shown)}


def forest(every: Everything) -> Drawn:
    """Every claim of both write-ups, grouped by setting: the paper's class, the verdict, and the estimate with its interval."""
    shown = every.verdicts
    figure, axis = canvas(1 + 0.15 * len(shown))
    for height, verdict in enumerate(shown):
        _verdict(axis, verdict, height, " / ")
    settings = [verdict.claim.setting for verdict in shown]
    for height in range(1, len(shown)):
        if settings[height] != settings[height - 1]:
            axis.axhline(height - 0.5, color="0.6", lw=0.5)
    _scale(axis)
    labels = [verdict.claim.name.removeprefix("cc.").replace("table.", "table: ").replace("_", " ") for verdict in shown]
    axis.set_yticks(range(len(shown)), labels, fontsize=4.5)
    axis.set(ylim=(len(shown) - 0.5, -1))
    _legend(figure, every.profile)
    return figure, claims.table(shown), {"seeds": _seeds(shown)}


def selectivity(every: Everything) -> Drawn:
    """Positive trait kept against negative trait suppressed, a point per setting, condition and pair of traits, by kind."""
    drawn = tables.selectivity(every)
    known = drawn[drawn.seeds > 0]
    figure, axis = canvas(4.1)
    axis.hlines(known.suppressed, known.kept_low, known.kept_high, color="0.8", lw=0.4, zorder=1)
    axis.vlines(known.kept, known.suppressed_low, known.suppressed_high, color="0.8", lw=0.4, zorder=1)
    style = {
        "markers": dict(zip(every.effects, itertools.cycle(MARKERS), strict=False)),
        "s": 16,
        "zorder": 2,
        "linewidth": 0.3,
    }
    style["palette"] = {kind: palette()[kind] for kind in dict.fromkeys(known.kind)} or None
    sns.scatterplot(known, x="kept", y="suppressed", hue="kind", style="setting", ax=axis, **style).legend([], [])
    axis.plot([1], [1], marker="+", color="k", ms=8, ls="")
    axis.plot([0, 2], [1, -1], color="k", lw=0.6, ls=":")
    axis.set(xlim=KEPT_SHOWN, ylim=(-0.75, 1.25), xlabel=word("kept of positive"), ylabel=word("suppressed of negative"))
    for row in known[known.kept > KEPT_SHOWN[1]].itertuples():
        axis.text(
            KEPT_SHOWN[1], row.suppressed + 0.02, f"{row.condition}, at {row.kept:.1f} >", size=4.5, ha="right", color="0.25"
        )
    _two_columns(figure, axis, every.profile)
    return figure, drawn, counted(drawn, drawn.setting + ": " + drawn.fault)


def _two_columns(figure: Figure, axis: Any, profile: str) -> None:
    """A legend with the kinds in one column and the settings in the other."""
    named = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    kinds = [label for label in named if label in palette()]
    others = [label for label in named if label not in (*kinds, "kind", "setting")]
    blank = matplotlib.lines.Line2D([], [], ls="")
    columns = [[*column, *[""] * (max(len(kinds), len(others)) - len(column))] for column in (kinds, others)]
    labels = list(itertools.chain(*columns))
    look = {"loc": "outside lower center", "ncols": 2, "title": mark(profile), "fontsize": 5}
    figure.legend([named.get(label, blank) for label in labels], [word(label) for label in labels], **look)


def identification(every: Everything) -> Drawn:
    """The 2×2 effects of all settings under unrelated prompts, a row per setting, direction and trait."""
    drawn = tables.identification(every)
    known = drawn[drawn.seeds > 0]
    groups = list(dict.fromkeys(zip(known.setting, known.direction, known.trait, strict=True)))
    figure, axes = canvas(0.9 + 0.15 * len(groups), 1, len(TWO_BY_TWO), sharey=True, sharex=True)
    for axis, (name, colour) in zip(axes, TWO_BY_TWO.items(), strict=True):
        for row in known[known.effect == name].itertuples():
            height = groups.index((row.setting, row.direction, row.trait))
            axis.plot(row.estimate, height, "o", ms=2.5, color=colour)
            draw_interval(
                axis, stats.Interval(row.estimate, row.low, row.high, row.seeds, row.interval), height, colour, tick=0.1
            )
        _scale(axis)
        axis.set(title=name, ylim=(max(len(groups), 1) - 0.5, -0.5))
    labels = [f"{setting.replace('_', ' ')}\n{trait} when inoculating {direction}" for setting, direction, trait in groups]
    axes[0].set_yticks(range(len(groups)), labels, fontsize=3.8)
    figure.supxlabel(f"{word('suppression')}\n{mark(every.profile)}", fontsize=6.5)
    return figure, drawn, counted(drawn, drawn.setting + ": " + drawn.interval)


def _legend(figure: Figure, profile: str) -> None:
    looks = {"agree": "as the paper", "differ": "not as the paper", "open": "open"}
    handles = [matplotlib.lines.Line2D([], [], marker="o", color=VERDICTS[name], ls="", ms=3) for name in looks]
    figure.legend(
        handles, looks.values(), loc="outside lower center", ncols=3, title=f"value of the claim's contrast\n{mark(profile)}"
    )


def _seeds(shown: list[Verdict]) -> str:
    return stats.in_words(pd.Series([verdict.interval.n for verdict in shown if verdict.interval.n], dtype=int))


FIGURES: dict[str, Callable[[Everything], Drawn]] = {
    each.__name__: each for each in (summary, forest, selectivity, identification)
}


def draw(name: str, every: Everything, folder: Path) -> tuple[Path, str]:
    """Draw one figure from all settings' tables into a folder; the PNG's path and its caption."""
    figure, drawn, facts = FIGURES[name](every)
    told = caption(name, every.profile, edge=WITHIN, **facts)
    found = {setting: own for setting, own in every.found.items() if own is not None}
    apart = found.get(plan.FILE)
    record = {"figure": name, "caption": told, plan.FILE: store.provenance({apart.own: apart.origin} if apart else {})}
    record |= store.provenance({own.folder: own.origin for setting, own in found.items() if setting != plan.FILE})
    record |= {"run_ids": sorted({run for own in found.values() for run in own.runs.run_id})}
    record |= {"commits_of_runs": sorted({commit for own in found.values() for commit in own.runs.commit})}
    store.write_figure(folder / f"{name}.png", figure, drawn, record)
    return folder / f"{name}.png", told


def show(name: str, every: Everything) -> None:
    """Draw a figure and show it with its caption in a notebook."""
    from IPython.display import Image, Markdown, display

    path, told = draw(name, every, store.local_figures(every.profile))
    display(Image(path), Markdown(f"*{told}*"))


def redraw(every: Everything, folder: Path) -> list[Path]:
    """Draw every figure, and write the summary table beside its own; returns the paths."""
    return [*(draw(name, every, folder)[0] for name in FIGURES), *tables.write(every, folder)]
