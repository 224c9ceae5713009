"""Candidates after SFT and after RL, a small and a large marker each: Figs. 1, 2, 4, 7, 8, 9 of the paper.

    panels = [plots.Panel(family, candidates, base, outcome, runs, "mini")]
    fig = stage_grid(panels, x="n_examples", by="epochs")

The large filled marker is the score after RL, the small hollow one the score after SFT (as in the caption of Fig. 7 of
the paper). A thin vertical line joins the two, and lines join the candidates of a series.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.report.plots.look import (
    GREY,
    INK,
    along_bars,
    candidate_labels,
    label_points,
    legend_entry,
    log_ticks,
    new_figure,
    not_run,
    per_cent,
)
from quagmire_utils.report.plots.series import Panel, half_widths, places, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

X_LABELS = {
    "n_examples": "unique SFT examples",
    "epochs": "SFT epochs",
    "sft_tokens": "SFT tokens trained on (examples × epochs × length)",
}


def plot_stages(panel: Panel, ax: Axes, x: str, by: str, among: pd.DataFrame | None = None) -> None:
    """Plot Pass@1 after SFT (small, hollow, dashed) and after RL (large, filled, solid) by `x`, a series for each `by`.

    x: n_examples, epochs or sft_tokens, on a logarithmic axis, on which overlapping markers are moved apart. Short
    dashes: single RL runs. Grey lines and bands: the base model before RL (dashed) and after it (solid).
    """
    if x not in X_LABELS:
        raise ParameterError("x", x, f"one of {', '.join(X_LABELS)}")
    ax.set_title(panel.title)
    ax.set_xlabel(X_LABELS[x])
    ax.set_ylabel("Pass@1 (%)")
    if not_run(ax, panel.candidates, panel.profile):
        return
    _base_lines(panel, ax)
    everything = series(panel.candidates.sort_values(x, kind="stable"), by, among)
    for place, one in zip(places(everything, x), everything, strict=True):
        rows = one.rows
        fewest = by != "selection" or rows["epochs"].iloc[0] == panel.candidates["epochs"].min()
        ax.vlines(place, rows["pass1"], rows[panel.outcome], color=GREY, lw=0.6, zorder=1)
        look = {"color": one.line_colour, "marker": one.marker, "mec": INK, "mew": 0.8, "elinewidth": 1, "ecolor": INK}
        look["lw"] = 1.3 if fewest else 0.6
        for column, style, size, face, order in (
            ("pass1", "--", 5, "white", 4),
            (panel.outcome, "-", 9, one.colour, 3),
        ):
            halves = half_widths(rows, column, panel.candidates)
            ax.errorbar(place, rows[column], halves, ls=style, ms=size, mfc=face, zorder=order, **look)
            if one.rate is not None:
                ax.plot(place, rows[column], ls="", marker=".", ms=size / 3, mfc=INK, mec="white", mew=0.4, zorder=5)
        runs = panel.run_scores(rows)
        at = runs["candidate"].map(dict(zip(rows["candidate"], place, strict=True)))
        ax.scatter(at, runs["score"], marker="_", s=70, color=INK, linewidths=0.9, zorder=2)
    if x == "sft_tokens":
        _token_axis(ax)
    else:
        log_ticks(ax, panel.candidates[x])
    per_cent(ax, "y")
    ax.margins(0.14, 0.08)


def plot_before_after(panel: Panel, ax: Axes, correlation: float = math.nan) -> None:
    """Plot Pass@1 after SFT against the outcome after RL, a line for each selection (Fig. 1).

    Rings mark the best after SFT (dashed) and after RL (solid) of the candidates of one epoch, which the claim of the
    paper compares. correlation: Spearman's of all candidates, for the title.
    """
    ax.set_xlabel("Pass@1 after SFT (%)")
    ax.set_ylabel("Pass@1 after RL (%)")
    rows, outcome = panel.candidates, panel.outcome
    if not_run(ax, rows, panel.profile):
        return
    known = "" if math.isnan(correlation) else f"rank correlation {correlation:.2f}, "
    ax.set_title(f"{known}n = {len(rows)} candidates")
    sides = half_widths(rows, "pass1"), half_widths(rows, outcome)
    ax.errorbar(rows["pass1"], rows[outcome], sides[1], sides[0], fmt="none", ecolor=GREY, elinewidth=0.9, zorder=1)
    for one in series(rows, "selection"):
        part = one.rows.sort_values("sft_tokens")
        look = {"marker": one.marker, "ms": 8, "mfc": one.colour, "mec": INK, "mew": 0.8, "zorder": 3}
        ax.plot(part["pass1"], part[outcome], color=one.line_colour, lw=1.2, **look)
    once = rows[rows["epochs"] == 1]
    for column, style, size in (("pass1", "--", 210), (outcome, "-", 330)) if len(once) else ():
        best = once.loc[[once[column].idxmax()]]
        ax.scatter(best["pass1"], best[outcome], s=size, facecolors="none", edgecolors=INK, ls=style, lw=1.3, zorder=4)
    per_cent(ax, "xy")
    ax.margins(0.12, 0.12)
    points = rows["pass1"].to_numpy(), rows[outcome].to_numpy()
    label_points(ax, *points, candidate_labels(rows, repeats=False), along_bars(*points, *sides))


def stage_grid(panels: Sequence[Panel], x: str, by: str, *, names: bool = False) -> Figure:
    """Draw `plot_stages` for each panel, side by side, with one legend. names: label each candidate's outcome."""
    fig, axes = new_figure(len(panels), 1, 7.4 if len(panels) == 1 else 5.2, 4.8, squeeze=False)
    among = pd.concat([panel.candidates for panel in panels])
    for panel, ax in zip(panels, axes.flat, strict=True):
        plot_stages(panel, ax, x, by, among)
    _legend(fig, stage_entries(panels, by), 4 if len(panels) == 1 else 5)
    if names:
        for panel, ax in zip(panels, axes.flat, strict=True):
            label_stages(panel, ax, x, by, among)
    return fig


def selection_figure(panel: Panel, x: str = "sft_tokens", correlation: float = math.nan) -> Figure:
    """Draw Fig. 1: scores of each selection by SFT tokens, and the score after RL against the one after SFT."""
    fig, (left, right) = new_figure(2, 1, 5.2, 4.6)
    plot_stages(panel, left, x, "selection")
    entries = stage_entries([panel], "selection")
    if entries:
        ring = {"marker": "o", "mfc": "none", "mew": 1.2}
        entries.append(legend_entry("one epoch, best after RL (solid ring)", ms=13, **ring))
        entries.append(legend_entry("one epoch, best after SFT (dashed ring)", ms=10, **{**ring, "mec": GREY}))
    _legend(fig, entries, 5)
    plot_before_after(panel, right, correlation)
    label_stages(panel, left, x, "selection")
    return fig


def label_stages(panel: Panel, ax: Axes, x: str, by: str, among: pd.DataFrame | None = None) -> None:
    """Write each candidate's label beside its outcome, on an axis that `plot_stages` drew."""
    everything = series(panel.candidates.sort_values(x, kind="stable"), by, among)
    if not everything:
        return
    avoid = []
    at = places(everything, x)
    for place, one in zip(at, everything, strict=True):  # the vertical lines and the upper lines
        after, before = one.rows[panel.outcome].to_numpy(), one.rows["pass1"].to_numpy()
        steps = np.linspace(0, 1, 15)
        avoid += [(p, a + t * (b - a)) for p, a, b in zip(place, after, before, strict=True) for t in steps]
        for i in range(len(place) - 1):
            line = zip(np.geomspace(place[i], place[i + 1], 15), np.linspace(after[i], after[i + 1], 15), strict=True)
            avoid += list(line)
    rows = pd.concat([one.rows for one in everything])
    label_points(ax, np.concatenate(at), rows[panel.outcome], candidate_labels(rows, repeats=False), avoid)


def stage_entries(panels: Sequence[Panel], by: str) -> list[Any]:
    """Return legend entries for axes drawn by `plot_stages`; none if no panel has a candidate."""
    everything = series(pd.concat([panel.candidates for panel in panels]), by)
    if not everything:
        return []
    solid = {"ls": "-", "lw": 1.2, "ms": 8}
    looks = {one.label: {"color": one.line_colour, "marker": one.marker, "mfc": one.colour} for one in everything}
    entries = [legend_entry(label, **solid, **look) for label, look in looks.items()]
    entries.append(legend_entry("after RL", ls="-", color=GREY, marker="o", ms=9, mfc=GREY))
    entries.append(legend_entry("after SFT", ls="--", color=GREY, marker="o", ms=5, mfc="white"))
    rates = sorted({one.rate for one in everything} - {None})
    if rates:
        entries.append(legend_entry("dot: learning rate " + ", ".join(f"{r:g}" for r in rates), marker=".", color=INK))
    if any(panel.runs is not None for panel in panels):
        entries.append(legend_entry("an RL run", marker="_", color=INK, ms=9))
    if any(len(panel.base) and len(panel.candidates) for panel in panels):
        entries.append(legend_entry("base (no SFT) after RL", ls="-", color=GREY, lw=1.3))
        entries.append(legend_entry("base before RL", ls="--", color=GREY, lw=1.3))
    return entries


def _legend(fig: Figure, entries: Sequence[Any], columns: int) -> None:
    if entries:
        fig.legend(handles=entries, loc="outside upper left", ncols=columns)


def _base_lines(panel: Panel, ax: Axes) -> None:
    for column, style in (("pass1", "--"), (panel.outcome, "-")):
        halves = half_widths(panel.base, column, pd.concat([panel.candidates, panel.base]))
        for value, half in zip(panel.base[column], np.nan_to_num(halves), strict=True):
            ax.axhspan(value - half, value + half, color="0.9", lw=0, zorder=0)
            ax.axhline(value, ls=style, color=GREY, lw=1.3, zorder=0.9)


def _token_axis(ax: Axes) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator

    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.minorticks_off()
