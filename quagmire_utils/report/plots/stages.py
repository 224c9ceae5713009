"""Candidates after SFT and after RL: Figs. 1, 2, 3, 4, 5, 7, 8, 9 of the paper.

    panels = [plots.Panel(family, candidates, base, outcome, runs, "mini")]
    fig = stage_grid(panels, x="n_examples", by="epochs")

In `plot_stages`, the large filled marker is the score after RL, the small hollow one the score after SFT (as in the
caption of Fig. 7 of the paper). A thin vertical line joins the two, and lines join the candidates of a series.
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
    shades,
)
from quagmire_utils.report.plots.series import Panel, counted, half_widths, places, series

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


# --- Figs. 3 and 5: the dataset level ---------------------------------------------------------------------------------


def plot_sft_vs_rl(panel: Panel, fit: LinearFit | None, ax: Axes) -> None:
    """Plot Pass@1 after SFT against the outcome after RL, a marker for each candidate, and the fitted line (Fig. 3).

    The base model is hollow and not in the fit. Marker: number of unique examples; lightness: epochs; dot: another
    learning rate. Below two candidates there is no line (`fit` is None), and the axis says so.
    """
    ax.set_xlabel("Pass@1 after SFT (%), mean of the benchmarks")
    ax.set_ylabel("Pass@1 after RL (%)")
    candidates, outcome = panel.candidates, panel.outcome
    if not_run(ax, candidates, panel.profile, needs=2) or fit is None:
        return
    colours = shades(sorted(candidates["epochs"].unique()))
    everyone = pd.concat([candidates, panel.base])
    ends = np.array([candidates["pass1"].min(), candidates["pass1"].max()])
    ax.plot(ends, fit.intercept + fit.slope * ends, "-", color=GREY, lw=1.5, zorder=1)
    x, y = everyone["pass1"].to_numpy(), everyone[outcome].to_numpy()
    sides = half_widths(everyone, "pass1"), half_widths(everyone, outcome)
    ax.errorbar(x, y, sides[1], sides[0], fmt="none", ecolor=GREY, elinewidth=0.8)
    shapes: dict[str, Any] = {}
    for one in series(candidates, "n_examples"):
        points = one.rows["pass1"], one.rows[outcome]
        face = [colours[epochs] for epochs in one.rows["epochs"]]
        ax.scatter(*points, s=70, marker=one.marker, c=face, edgecolors=INK, linewidths=0.8, zorder=3)
        shapes[one.label] = legend_entry(one.label, marker=one.marker, ms=8, mfc="white")
        if one.rate is not None:
            ax.plot(*points, **DOT, zorder=5)
    if len(panel.base):
        points = panel.base["pass1"], panel.base[outcome]
        ax.scatter(*points, s=110, facecolors="none", edgecolors=INK, linewidths=1.8, zorder=3)
        shapes["base"] = legend_entry("no SFT (not in the fit)", marker="o", ms=10, mfc="none", mew=1.8)
    fills = [
        legend_entry(counted(epochs, "epoch"), marker="s", ms=8, mfc=colour, mec="none")
        for epochs, colour in colours.items()
    ]
    per_cent(ax, "xy")
    ax.margins(0.1, 0.1)
    ax.set_title(f"Linear fit: R² = {fit.r2:.2f}, n = {fit.n} candidates")
    ax.legend(handles=[*shapes.values(), *fills, *_rate_entry(candidates)], loc="upper left", bbox_to_anchor=(1.0, 1.0))
    line = np.linspace(*ends, 60)
    along = zip(line, fit.intercept + fit.slope * line, strict=True)
    label_points(ax, x, y, candidate_labels(everyone), [*along_bars(x, y, *sides), *along])


def plot_scores_by_epochs(panel: Panel, ax: Axes) -> None:
    """Plot Pass@1 after SFT (hollow, dashed) and after RL (filled) by epochs, a line for each number of examples."""
    ax.set_title("Score: after RL (filled) and after SFT (hollow)")
    ax.set_ylabel("Pass@1 (%)")
    if not_run(ax, panel.candidates, panel.profile):
        return
    _lines_by_epochs(panel.candidates, ax, "pass1", style="--", filled=False)
    _lines_by_epochs(panel.candidates, ax, panel.outcome, style="-", filled=True)
    per_cent(ax, "y")
    ax.set_ylim(bottom=0)


def plot_loss_by_epochs(panel: Panel, ax: Axes) -> None:
    """Plot the generalization loss by epochs, one line per number of unique examples; add a legend to the figure."""
    ax.set_title("Generalization loss")
    ax.set_ylabel("nats per token of held-out traces")
    if not_run(ax, panel.candidates, panel.profile):
        return
    _lines_by_epochs(panel.candidates, ax, "gen_loss", style="-", filled=True)
    ax.set_ylim(bottom=0)
    entries = [*ax.get_legend_handles_labels()[0], *_rate_entry(panel.candidates)]
    ax.figure.legend(handles=entries, loc="outside upper left", ncols=6)


def plot_loss_vs_gain(panel: Panel, ax: Axes, correlation: float, rank_correlation: float) -> None:
    """Plot the generalization loss against what RL adds to Pass@1, with their correlations over the candidates."""
    ax.set_xlabel("generalization loss (nats per token)")
    ax.set_ylabel("gain in Pass@1 during RL (points)")
    candidates = panel.candidates
    if not_run(ax, candidates, panel.profile):
        return
    loss, gain = candidates["gen_loss"], candidates[panel.outcome] - candidates["pass1"]
    up = np.hypot(half_widths(candidates, "pass1"), half_widths(candidates, panel.outcome))
    right = half_widths(candidates, "gen_loss")
    ax.errorbar(loss, gain, up, right, fmt="none", ecolor=GREY, elinewidth=0.8, zorder=1)
    for one in series(candidates, "n_examples"):
        points = loss[one.rows.index], gain[one.rows.index]
        ax.scatter(*points, s=60, marker=one.marker, color=[one.colour], edgecolors=INK, zorder=3)
        if one.rate is not None:
            ax.plot(*points, **DOT, zorder=5)
    ax.axhline(0, color=GREY, lw=0.8)
    known = "" if math.isnan(correlation) else f"r = {correlation:.2f}, rank correlation {rank_correlation:.2f}, "
    ax.set_title(f"{known}n = {len(candidates)}")
    ax.locator_params(axis="x", nbins=5)
    per_cent(ax, "y")
    ax.margins(x=0.12)
    ends = np.array([np.nanmin(gain - np.nan_to_num(up)), np.nanmax(gain + np.nan_to_num(up))])
    ax.set_ylim(ends + 0.12 * np.array([-1, 1]) * max(np.ptp(ends), 0.01))  # zero only if it is near
    label_points(ax, loss, gain, candidate_labels(candidates), along_bars(loss, gain, right, up))


def _lines_by_epochs(candidates: pd.DataFrame, ax: Axes, column: str, *, style: str, filled: bool) -> None:
    """Draw a line for each number of examples and learning rate, overlapping markers moved apart."""
    everything = series(candidates.sort_values("epochs", kind="stable"), "n_examples")
    for one, place in zip(everything, places(everything, "epochs", apart=0.012), strict=True):
        look = {"color": one.line_colour, "ls": style, "lw": 1.4, "marker": one.marker, "ms": 7, "mec": INK, "mew": 0.8}
        look["label"] = one.label if one.rate is None else None
        halves = half_widths(one.rows, column, candidates)
        ax.errorbar(place, one.rows[column], halves, mfc=one.colour if filled else "white", elinewidth=0.8, **look)
        if one.rate is not None:
            ax.plot(place, one.rows[column], **DOT, zorder=5)
    log_ticks(ax, candidates["epochs"])
    ax.set_xlabel("SFT epochs")


def _rate_entry(candidates: pd.DataFrame) -> list[Any]:
    rates = sorted({one.rate for one in series(candidates, "n_examples")} - {None})
    return [legend_entry("dot: learning rate " + ", ".join(f"{r:g}" for r in rates), **DOT)] if rates else []
