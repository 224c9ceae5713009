"""Candidates after SFT and after RL: Figs. 1 to 10 of the paper.

In `plot_stages`, the large filled marker is the score after RL, the small hollow one the score after SFT (as in the
caption of Fig. 7 of the paper). A thin vertical line joins the two, and lines join the candidates of a series.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.report.plots.look import (
    GREY,
    INK,
    SAND,
    SKY,
    candidate_labels,
    entries_of,
    error_crosses,
    halo,
    label_points,
    legend_above,
    legend_entry,
    log_ticks,
    new_figure,
    per_cent,
    shades,
)
from quagmire_utils.report.plots.series import Panel, Series, counted, half_widths, places, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quagmire_utils.analysis.fits import LinearFit

X_LABELS = {
    "n_examples": "unique SFT examples",
    "epochs": "SFT epochs",
    "sft_tokens": "SFT tokens trained on (examples × epochs × length)",
}
# a dot in a marker: a learning rate that is not the most common one of the figure
DOT: dict[str, Any] = {"ls": "", "marker": ".", "color": INK, "ms": 4.5, "mec": "white", "mew": 0.5}


Placed = list[tuple[Series, np.ndarray]]  # the series of an axis, with the x of their markers


def plot_stages(panel: Panel, ax: Axes, x: str, by: str, among: pd.DataFrame | None = None) -> Placed:
    """Plot Pass@1 after SFT (small, hollow, dashed) and after RL (large, filled, solid) by `x`, a series for each `by`.

    x: n_examples, epochs or sft_tokens; overlapping markers are moved apart. Short dashes: single RL runs. Grey lines
    and bands: the base before RL (dashed) and after it (solid). Return what was drawn where, for `label_stages`.
    """
    from matplotlib.ticker import EngFormatter, LogLocator

    if x not in X_LABELS:
        raise ParameterError("x", x, f"one of {', '.join(X_LABELS)}")
    if not panel.begin(ax, title=panel.title, xlabel=X_LABELS[x], ylabel="Pass@1 (%)"):
        return []
    for column, style in (("pass1", "--"), (panel.outcome, "-")):
        halves = half_widths(panel.base, column, pd.concat([panel.candidates, panel.base]))
        for value, half in zip(panel.base[column], np.nan_to_num(halves), strict=True):
            ax.axhspan(value - half, value + half, color="0.9", lw=0, zorder=0)
            ax.axhline(value, ls=style, color=GREY, lw=1.3, zorder=0.9)
    everything = series(panel.candidates.sort_values(x, kind="stable"), by, among)
    placed = list(zip(everything, places(everything, x), strict=True))
    for one, place in placed:
        rows = one.rows
        fewest = by != "selection" or rows["epochs"].iloc[0] == panel.candidates["epochs"].min()
        ax.vlines(place, rows["pass1"], rows[panel.outcome], color=GREY, lw=0.6, zorder=1)
        look = {"elinewidth": 1, "ecolor": INK, "lw": 1.3 if fewest else 0.6}
        for column, style, size, face, order in (
            ("pass1", "--", 5, "white", 4),
            (panel.outcome, "-", 9, one.colour, 3),
        ):
            _line(panel, ax, one, place, column, ls=style, ms=size, mfc=face, zorder=order, **look)
        panel.draw_runs(ax, rows, place, s=70, zorder=2)
    if x == "sft_tokens":
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.minorticks_off()
    else:
        log_ticks(ax, panel.candidates[x])
    per_cent(ax, "y")
    ax.margins(0.14, 0.08)
    return placed


def _line(panel: Panel, ax: Axes, one: Series, place: np.ndarray, column: str, **look: Any) -> None:
    """Draw one column of a series with its intervals, and a dot in the markers of an unusual learning rate."""
    halves = half_widths(one.rows, column, panel.candidates)
    look = {"color": one.line_colour, "marker": one.marker, "mec": INK, "mew": 0.8, **look}
    ax.errorbar(place, one.rows[column], halves, **look)
    if one.rate is not None:
        ax.plot(place, one.rows[column], **{**DOT, "ms": look["ms"] / 2}, zorder=5)


def plot_before_after(panel: Panel, ax: Axes, correlation: float = math.nan) -> None:
    """Plot Pass@1 after SFT against the outcome after RL, a line for each selection (Fig. 1).

    Rings mark the best after SFT (dashed) and after RL (solid) of the candidates of one epoch, which the claim of the
    paper compares. correlation: Spearman's of all candidates, for the title.
    """
    rows, outcome = panel.candidates, panel.outcome
    known = "" if math.isnan(correlation) else f"rank correlation {correlation:.2f}, "
    if not panel.begin(ax, xlabel="Pass@1 after SFT (%)", ylabel="Pass@1 after RL (%)"):
        return
    ax.set_title(f"{known}n = {len(rows)} candidates")
    x, y = rows["pass1"].to_numpy(), rows[outcome].to_numpy()
    bars = error_crosses(ax, x, y, half_widths(rows, "pass1"), half_widths(rows, outcome))
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
    label_points(ax, x, y, candidate_labels(rows, repeats=False), bars)


def stage_grid(panels: Sequence[Panel], x: str, by: str, *, names: bool = False) -> Figure:
    """Draw `plot_stages` for each panel, side by side, with one legend. names: label each candidate's outcome."""
    fig, axes = new_figure(len(panels), 1, 7.4 if len(panels) == 1 else 5.2, 4.8, squeeze=False)
    among = pd.concat([panel.candidates for panel in panels])
    placed = [plot_stages(panel, ax, x, by, among) for panel, ax in zip(panels, axes.flat, strict=True)]
    legend_above(fig, stage_entries(panels, by), ncols=4 if len(panels) == 1 else 5)
    if names:
        for panel, ax, mine in zip(panels, axes.flat, placed, strict=True):
            label_stages(panel, ax, mine)
    return fig


def selection_figure(panel: Panel, x: str = "sft_tokens", correlation: float = math.nan) -> Figure:
    """Draw Fig. 1: scores of each selection by SFT tokens, and the score after RL against the one after SFT."""
    fig, (left, right) = new_figure(2, 1, 5.2, 4.6)
    placed = plot_stages(panel, left, x, "selection")
    entries = stage_entries([panel], "selection")
    if entries:
        for style, size, what in (("-", 170, "after RL"), ("--", 105, "after SFT")):
            ring = {"facecolors": "none", "edgecolors": INK, "ls": style, "label": f"one epoch, best {what}"}
            entries.append(left.scatter([], [], s=size, **ring))
    legend_above(fig, entries)
    plot_before_after(panel, right, correlation)
    label_stages(panel, left, placed)
    return fig


def label_stages(panel: Panel, ax: Axes, placed: Placed) -> None:
    """Write each candidate's label beside its outcome, off the lines that `plot_stages` drew."""
    if not placed:
        return
    avoid, steps = [], np.linspace(0, 1, 15)
    for one, place in placed:
        after, before = one.rows[panel.outcome].to_numpy(), one.rows["pass1"].to_numpy()
        avoid += [(p, a + t * (b - a)) for p, a, b in zip(place, after, before, strict=True) for t in steps]
        for i in range(len(place) - 1):
            avoid += zip(np.geomspace(*place[i : i + 2], 15), np.linspace(*after[i : i + 2], 15), strict=True)
    rows = pd.concat([one.rows for one, _ in placed])
    x = np.concatenate([place for _, place in placed])
    label_points(ax, x, rows[panel.outcome], candidate_labels(rows, repeats=False), avoid)


def stage_entries(panels: Sequence[Panel], by: str) -> list[Any]:
    """Return legend entries for axes drawn by `plot_stages`; none if no panel has a candidate."""
    everything = series(pd.concat([panel.candidates for panel in panels]), by)
    if not everything:
        return []
    entries = [
        legend_entry(one.label, ls="-", lw=1.2, ms=8, color=one.line_colour, marker=one.marker, mfc=one.colour)
        for one in everything
    ]
    entries.append(legend_entry("after RL", ls="-", color=GREY, marker="o", ms=9, mfc=GREY))
    entries.append(legend_entry("after SFT", ls="--", color=GREY, marker="o", ms=5, mfc="white"))
    entries += _rate_entry(everything)
    if any(panel.runs is not None for panel in panels):
        entries.append(legend_entry("an RL run", marker="_", color=INK, ms=9))
    if any(len(panel.base) and len(panel.candidates) for panel in panels):
        entries.append(legend_entry("base (no SFT) after RL", ls="-", color=GREY, lw=1.3))
        entries.append(legend_entry("base before RL", ls="--", color=GREY, lw=1.3))
    return entries


def _rate_entry(everything: Sequence[Series]) -> list[Any]:
    rates = sorted({one.rate for one in everything} - {None})
    return [legend_entry("dot: learning rate " + ", ".join(f"{r:g}" for r in rates), **DOT)] if rates else []


# --- Figs. 3 and 5: the dataset level ---------------------------------------------------------------------------------


def plot_sft_vs_rl(panel: Panel, fit: LinearFit | None, ax: Axes) -> None:
    """Plot Pass@1 after SFT against the outcome after RL, a marker for each candidate, and the fitted line (Fig. 3).

    The base model is hollow and not in the fit. Marker: number of unique examples; lightness: epochs; dot: another
    learning rate. Below two candidates there is no line (`fit` is None), and the axis says so.
    """
    labels = {"xlabel": "Pass@1 after SFT (%), mean of the benchmarks", "ylabel": "Pass@1 after RL (%)"}
    if not panel.begin(ax, needs=2, **labels) or fit is None:
        return
    candidates, outcome = panel.candidates, panel.outcome
    colours = shades(sorted(candidates["epochs"].unique()))
    everyone = pd.concat([candidates, panel.base])
    line = np.linspace(candidates["pass1"].min(), candidates["pass1"].max(), 60)
    ax.plot(line, fit.intercept + fit.slope * line, "-", color=GREY, lw=1.5, zorder=1)
    x, y = everyone["pass1"].to_numpy(), everyone[outcome].to_numpy()
    avoid = error_crosses(ax, x, y, half_widths(everyone, "pass1"), half_widths(everyone, outcome))
    avoid += zip(line, fit.intercept + fit.slope * line, strict=True)
    everything = series(candidates, "n_examples")
    for one in everything:
        _markers(ax, one, one.rows["pass1"], one.rows[outcome], [colours[epochs] for epochs in one.rows["epochs"]])
    ring = {"facecolors": "none", "edgecolors": INK, "linewidths": 1.8, "label": "no SFT (not in the fit)"}
    ax.scatter(panel.base["pass1"], panel.base[outcome], s=110, zorder=3, **ring)
    entries = [legend_entry(one.label, marker=one.marker, ms=8, mfc="white") for one in everything]
    entries += entries_of([ax])
    for epochs, colour in colours.items():
        entries.append(legend_entry(counted(epochs, "epoch"), marker="s", ms=8, mfc=colour, mec="none"))
    per_cent(ax, "xy")
    ax.margins(0.1, 0.1)
    ax.set_title(f"Linear fit: R² = {fit.r2:.2f}, n = {fit.n} candidates")
    legend_above(ax, [*entries, *_rate_entry(everything)], loc="upper left", bbox_to_anchor=(1.0, 1.0), ncols=1)
    label_points(ax, x, y, candidate_labels(everyone), avoid)


def _markers(ax: Axes, one: Series, x: pd.Series, y: pd.Series, face: Any) -> None:
    """Draw the markers of a series, with a dot for an unusual learning rate."""
    ax.scatter(x, y, s=70, marker=one.marker, c=face, edgecolors=INK, linewidths=0.8, zorder=3)
    if one.rate is not None:
        ax.plot(x, y, **DOT, zorder=5)


def plot_scores_by_epochs(panel: Panel, ax: Axes) -> None:
    """Draw `plot_stages` by epochs without the base, on an axis from zero, a line for each number of examples."""
    drawn = plot_stages(dataclasses.replace(panel, base=panel.base.iloc[:0]), ax, "epochs", "n_examples")
    ax.set_title("Score: after RL (filled) and after SFT (hollow)")
    if drawn:
        ax.set_ylim(bottom=0)


def plot_loss_by_epochs(panel: Panel, ax: Axes) -> None:
    """Plot the generalization loss by epochs, one line per number of unique examples; add a legend to the figure."""
    labels = {"xlabel": X_LABELS["epochs"], "ylabel": "nats per token of held-out traces"}
    if not panel.begin(ax, title="Generalization loss", **labels):
        return
    everything = series(panel.candidates.sort_values("epochs", kind="stable"), "n_examples")
    for one, place in zip(everything, places(everything, "epochs", apart=0.012), strict=True):
        _line(panel, ax, one, place, "gen_loss", ms=7, mfc=one.colour, lw=1.3, elinewidth=1, label=one.label)
    log_ticks(ax, panel.candidates["epochs"])
    ax.set_ylim(bottom=0)
    legend_above(ax.figure, [*entries_of([ax]), *_rate_entry(everything)], ncols=6)


def plot_loss_vs_gain(panel: Panel, ax: Axes, correlation: float, rank_correlation: float) -> None:
    """Plot the generalization loss against what RL adds to Pass@1, with their correlations over the candidates."""
    labels = {"xlabel": "generalization loss (nats per token)", "ylabel": "gain in Pass@1 during RL (points)"}
    if not panel.begin(ax, **labels):
        return
    candidates = panel.candidates
    loss, gain = candidates["gen_loss"], candidates[panel.outcome] - candidates["pass1"]
    up = np.hypot(half_widths(candidates, "pass1"), half_widths(candidates, panel.outcome))
    avoid = error_crosses(ax, loss, gain, half_widths(candidates, "gen_loss"), up)
    for one in series(candidates, "n_examples"):
        _markers(ax, one, loss[one.rows.index], gain[one.rows.index], [one.colour])
    ax.axhline(0, color=GREY, lw=0.8)
    known = "" if math.isnan(correlation) else f"r = {correlation:.2f}, rank correlation {rank_correlation:.2f}, "
    ax.set_title(f"{known}n = {len(candidates)}")
    ax.locator_params(axis="x", nbins=5)
    per_cent(ax, "y")
    ax.margins(x=0.12)
    ends = np.array([np.nanmin(gain - np.nan_to_num(up)), np.nanmax(gain + np.nan_to_num(up))])
    ax.set_ylim(ends + 0.12 * np.array([-1, 1]) * max(np.ptp(ends), 0.01))  # zero only if it is near
    label_points(ax, loss, gain, candidate_labels(candidates), avoid)


# --- Figs. 6 and 10: recipes side by side, as bars from zero ----------------------------------------------------------

STAGES = {"pass1": ("after SFT", SAND, "//", -1), "outcome": ("after RL", SKY, "", 1)}  # label, fill, hatch, side
WIDTH = 0.38  # of a bar, where recipes are 1 apart


def plot_recipes(panel: Panel, ax: Axes, labels: Sequence[str] = ()) -> None:
    """Draw Pass@1 after SFT and after RL of each candidate as two bars with 95 % intervals; the base comes first."""
    if not panel.begin(ax, title=panel.title, ylabel="Pass@1 (%)"):
        return
    rows = pd.concat([panel.base, panel.candidates], ignore_index=True)
    names = ["base\n(no SFT)"] * len(panel.base) + (list(labels) or candidate_labels(panel.candidates, repeats=False))
    highest = 0.01
    for stage, (label, fill, hatch, side) in STAGES.items():
        column = "pass1" if stage == "pass1" else panel.outcome
        place, halves = np.arange(len(rows)) + side * WIDTH / 2, half_widths(rows, column)
        look = {"color": fill, "hatch": hatch, "edgecolor": INK, "linewidth": 0.6}
        ax.bar(place, rows[column], WIDTH, label=label, zorder=2, **look)
        ax.errorbar(place, rows[column], halves, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5, zorder=4)
        tops = (rows[column] + np.nan_to_num(halves)).to_numpy()
        if stage == "outcome":
            runs = panel.draw_runs(ax, rows, place, s=90, zorder=3, label="an RL run")
            tops = np.fmax(tops, runs.groupby("candidate")["score"].max().reindex(rows["candidate"]).to_numpy(float))
        text = {"fontsize": 7.5, "color": INK, "ha": "center", "va": "bottom", "path_effects": halo(), "zorder": 5}
        for x, value, top in zip(place, rows[column], tops, strict=True):
            ax.annotate(f"{100 * value:.0f}", (x, top), xytext=(0, 2), textcoords="offset points", **text)
        highest = max(highest, float(np.nanmax(tops)))
    for value in panel.base[panel.outcome]:
        ax.axhline(value, color=GREY, lw=1.3, zorder=1.5, label="base (no SFT) after RL")
    ax.set_xticks(range(len(rows)), names, fontsize=8.5)
    ax.set_xlim(-0.6, len(rows) - 0.4)
    ax.set_ylim(0, 1.1 * highest)
    ax.grid(False, axis="x")
    per_cent(ax, "y")


def recipe_grid(panels: Sequence[Panel], labels: Sequence[Sequence[str]] = ()) -> Figure:
    """Draw `plot_recipes` for each panel on a common scale, side by side, with one legend above."""
    most = max([len(panel.candidates) + len(panel.base) for panel in panels if len(panel.candidates)] or [6])
    width = max(6.4, 0.85 * most) if len(panels) == 1 else max(4.2, 0.78 * most)
    fig, axes = new_figure(len(panels), 1, width, 4.4, squeeze=False)
    for i, (panel, ax) in enumerate(zip(panels, axes.flat, strict=True)):
        plot_recipes(panel, ax, labels[i] if labels else ())
    drawn = [ax for ax, panel in zip(axes.flat, panels, strict=True) if len(panel.candidates)]
    for ax in drawn:
        ax.set_ylim(0, max(other.get_ylim()[1] for other in drawn))
    order = {label: i for i, (label, *_) in enumerate(STAGES.values())}
    legend_above(fig, sorted(entries_of(drawn), key=lambda entry: order.get(entry.get_label(), len(order))))
    return fig
